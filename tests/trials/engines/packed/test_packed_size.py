"""What fits into a device's memory: slots, and room for the tokens of each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from packs import prepared
from tiny import Recorder, Tiny, build_base, made_in, write_data
from torch import Tensor, nn

from trials import host
from trials.base.devices import memory_bytes
from trials.contract import EngineConfig, InputError, Outcome
from trials.data.examples import Example, Examples
from trials.engines.packed import prepare
from trials.engines.packed import size as sizes
from trials.engines.packed.bank import Bank, shapes_of
from trials.engines.packed.corpus import Corpus
from trials.engines.packed.engine import PackedEngine
from trials.engines.packed.refusals import Refused
from trials.engines.packed.shapes import PaddedShapes, RaggedShapes
from trials.engines.packed.size import GIB, SPARES, Size, fitted, free_bytes, slot_bytes
from trials.training.batches import Limit
from trials.training.limits import free_memory

MEAN, LONGEST = 182.0, 512
TOKEN = 0.5 * 2**20  # bytes
BESIDE = GIB + SPARES["cpu"]  # what is fixed, and what is left


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> PackedEngine:
    return prepared(tiny, capacity=1)[0]


@pytest.fixture
def layers() -> dict[str, nn.Module]:
    """Some of the linear layers of an 8B base."""
    with torch.device("meta"):
        return {f"layers.{k}": nn.Linear(4096, 14336) for k in range(64)}


class Memory:
    """Sizes a pack for so many free bytes, as on half-precision CUDA."""

    def __init__(
        self, engine: PackedEngine, layers: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.engine, self.layers, self._patch = engine, layers, monkeypatch
        base = engine.shared.base
        self.base = replace(base, config=replace(base.config, dtype="bf16"))

    def fit(
        self, free: float, *, r: int = 16, token: float = TOKEN, ragged: bool = True,
        states: bool = False, **options: int,
    ) -> Size:
        self._patch.setattr(sizes, "free_bytes", lambda base, assignment: free)
        first = Size(slots=23, r=r, tokens=16896, resident=False, lag=1, ragged=ragged,
                     compiled=ragged)
        given = EngineConfig(name="packed", options=options)
        assigned = replace(self.engine.shared.assignment, engine=given,
                           states_dir="states" if states else None)
        return fitted(
            first, self.base, self.layers, assigned,
            token_bytes=token, fixed_bytes=GIB, longest=LONGEST, mean_length=MEAN,
        )

    def slot(self, r: int) -> int:
        """What a slot holds."""
        return slot_bytes(self.layers, r, torch.bfloat16)


@pytest.fixture
def memory(
    engine: PackedEngine, layers: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> Memory:
    return Memory(engine, layers, monkeypatch)


# --- what a token takes --------------------------------------------------------------------------


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("lengths", [(2047,), (1100, 1500), (700, 900), (30, 2000), (1,), (182,)])
def test_what_a_token_takes_is_found_however_long_the_rows_are(
    engine: PackedEngine, monkeypatch: pytest.MonkeyPatch, ragged: bool, lengths: tuple[int, ...]
) -> None:
    corpus = Corpus(Examples.of(
        Example((7,) * (length + 1), (False,) + (True,) * length, "", "") for length in lengths
    ), pad=0)
    shapes = (RaggedShapes(8, 16896, corpus.longest) if ragged
              else PaddedShapes(Limit(tokens=16896)))

    def rehearse(tokens: int) -> tuple[int, int]:
        shape, _ = shapes.rehearsed(tokens, corpus)
        return shape.tokens, 3 * GIB + 1000 * shape.tokens

    found: dict[str, float] = {}
    monkeypatch.setattr(engine, "size", replace(engine.size, ragged=ragged))
    monkeypatch.setattr(engine, "rehearse", rehearse)
    preparing = import_module("trials.engines.packed.prepare")  # the name is also its function's
    monkeypatch.setattr(preparing, "_fitted", lambda engine, **given: found.update(given))
    preparing._measured(engine)
    assert found == {"token_bytes": 1000, "fixed_bytes": 3 * GIB + engine.fixed_bytes}


# --- what a slot takes ---------------------------------------------------------------------------


def held(bank: Bank) -> int:
    """The bytes of all tensors of a bank."""
    found = {value.data_ptr(): value for value in vars(bank).values() if isinstance(value, Tensor)}
    return sum(tensor.nbytes for tensor in found.values())


@pytest.mark.parametrize("r", [8, 64])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float16])
def test_a_slot_is_what_one_more_takes_of_a_bank(compute: torch.dtype, r: int) -> None:
    layers: dict[str, nn.Module] = {"q": nn.Linear(48, 96), "down": nn.Linear(200, 48)}
    few, more = (
        held(Bank(shapes_of(layers), slots=slots, r=r, device=torch.device("cpu"), compute=compute))
        for slots in (3, 7)
    )
    rank = torch.int32.itemsize  # how many of its ranks are filled
    assert more - few == 4 * (slot_bytes(layers, r, compute) + rank)


# --- what fits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [8, 16, 64])
@pytest.mark.parametrize("gib", [7, 8, 11, 12, 16, 17, 24, 48, 80, 400])
@pytest.mark.parametrize("token", [0.5, 6.2])  # MiB: with gradient checkpointing, and without
def test_all_that_a_pack_takes_is_there(memory: Memory, token: float, r: int, gib: int) -> None:
    token *= 2**20
    found = memory.fit(gib * GIB, r=r, token=token)
    slots = found.slots * memory.slot(r)
    clock = RaggedShapes(found.slots, found.tokens, LONGEST).tokens  # as it is computed
    assert clock >= LONGEST
    assert slots + clock * token + BESIDE <= gib * GIB
    if found.slots > 1:
        assert found.tokens >= found.slots * 4 * MEAN  # each has its rows
    if 1 < found.slots < 23:
        one_more = slots / found.slots * (found.slots + 1)
        assert one_more + (found.slots + 1) * 4 * MEAN * token + BESIDE > gib * GIB


@pytest.mark.parametrize("r", [16, 512])
@pytest.mark.parametrize("gib", [24, 48, 400])
def test_padded_each_slot_has_room_for_its_row_and_for_a_copy(
    memory: Memory, gib: int, r: int
) -> None:
    found = memory.fit(gib * GIB, r=r, ragged=False)
    copies = found.slots * memory.slot(r) * 4 / 18  # of the parameters, in fp32
    after = max(found.slots * LONGEST * TOKEN, copies)
    assert found.slots * memory.slot(r) + after + BESIDE <= gib * GIB


def test_a_state_has_room_to_be_copied(memory: Memory) -> None:
    copy = memory.slot(64) * 12 / 18  # parameters and moments of one slot
    for gib in (16, 24, 48):
        assert memory.fit(gib * GIB + copy, r=64, states=True) == memory.fit(gib * GIB, r=64)


def test_ample_memory_is_not_needed(memory: Memory) -> None:
    found = memory.fit(400 * GIB)
    assert (found.slots, found.tokens) == (23, 16896)


def test_a_capacity_may_leave_less_than_its_rows_for_each(memory: Memory) -> None:
    most = memory.fit(16 * GIB).slots
    found = memory.fit(16 * GIB, capacity=most + 1)
    assert found.slots == most + 1
    assert LONGEST <= found.tokens < found.slots * 4 * MEAN


def test_a_capacity_that_cannot_be_says_what_can(memory: Memory) -> None:
    with pytest.raises(InputError, match=r"engine.capacity=500: .* Type ") as caught:
        memory.fit(16 * GIB, capacity=500)
    most = said(caught.value, "engine.capacity")
    assert memory.fit(16 * GIB, capacity=int(most)).slots == most
    with pytest.raises(InputError):
        memory.fit(16 * GIB, capacity=int(most) + 1)


def test_too_little_for_one_is_refused(memory: Memory) -> None:
    with pytest.raises(Refused, match="one trial of rank 64 with one row of 512 tokens needs"):
        memory.fit(2 * GIB, r=64)


def said(error: InputError, name: str) -> float:
    """The value that a message tells the user to type."""
    return float(str(error).partition(f" Type {name}=")[2].partition(",")[0])


# --- the share of a device -----------------------------------------------------------------------


@dataclass
class Machine:
    """A device of so many GiB in all; of them `held` by this process, others `free`."""

    total: float
    held: float
    free: float

    def left(self, kind: str, *, sharing: int = 1, fraction: float | None = None) -> float:
        """GiB that a worker may still take."""
        base: Any = SimpleNamespace(device=torch.device(kind))
        tiny = Tiny(Path(), Path()).assignment(
            sharing=sharing,
            engine=EngineConfig(name="packed", options={"memory_fraction": fraction}),
        )
        return free_bytes(base, tiny) / GIB


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def make(total: float, held: float, free: float) -> Machine:
        cached = 1.0  # GiB that CUDA's allocator keeps
        spoken: dict[str, Any] = {
            "memory_allocated": held, "memory_reserved": held + cached,
            "mem_get_info": (free - cached, total),
        }
        for name, gib in spoken.items():
            found = [g * GIB for g in gib] if isinstance(gib, tuple) else gib * GIB
            monkeypatch.setattr(torch.cuda, name, lambda device, found=found: found)
        properties = SimpleNamespace(total_memory=total * GIB)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        memory = SimpleNamespace(total=total * GIB, available=free * GIB)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        monkeypatch.setattr(host, "GROUP", Path("/nowhere"))  # this very process may be limited
        info = SimpleNamespace(rss=held * GIB)
        monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: info))
        return Machine(total, held, free)

    return make


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_process_holds_no_more_than_its_share(
    machine: Callable[..., Machine], kind: str
) -> None:
    empty = machine(total=80, held=6, free=74)
    assert empty.left(kind, fraction=0.25) == pytest.approx(14)
    assert empty.left(kind, fraction=0.05) == pytest.approx(-2)
    assert empty.left(kind) == pytest.approx({"cpu": 54, "cuda": 66}[kind])
    assert machine(total=80, held=6, free=10).left(kind, fraction=0.5) == pytest.approx(10)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("sharing", [2, 3, 4])
def test_workers_on_one_device_share_what_one_would_have(
    machine: Callable[..., Machine], kind: str, sharing: int
) -> None:
    alone = machine(total=80, held=6, free=74)  # none of the others has taken its part yet
    for fraction in (None, 0.9, 0.5):
        one, each = (alone.left(kind, fraction=fraction, sharing=n) for n in (1, sharing))
        assert sharing * (6 + each) == pytest.approx(6 + one)


def test_a_share_in_which_nothing_fits_says_which_would(tiny: Tiny) -> None:
    def sized(fraction: float, **options: int) -> PackedEngine:
        options = {"memory_fraction": fraction, **options}
        given = EngineConfig(name="packed", options=options)
        return prepare(tiny.assignment(engine=given, max_r=1024, sharing=2), Recorder())[0]

    with pytest.raises(Refused, match=r"\(engine.memory_fraction=0.01, shared by 2 w") as caught:
        sized(0.01, capacity=64)
    share = said(caught.value, "engine.memory_fraction")
    assert sized(share + 0.01).size.slots >= 1
    with pytest.raises(InputError, match="engine.capacity=10000: a slot of rank 1024 takes"):
        sized(share + 0.01, capacity=10_000)


# --- predicted and real --------------------------------------------------------------------------

PEAK, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes() -> int:
    """The most memory that this process has held since Linux was told to forget it."""
    return int(PEAK.read_text().partition("VmHWM:")[2].split()[0]) * 1024


def filled(tiny: Tiny, most: float, states: Path, r: int) -> tuple[PackedEngine, list[Outcome]]:
    """One of two workers trains as many trials as its share of `most` bytes holds."""
    device = torch.device(tiny.device)
    share = 2 * most / memory_bytes(device)
    driver = Recorder()
    engine, driver.setup = prepare(
        tiny.assignment(
            engine=EngineConfig(name="packed", options={"memory_fraction": share}), max_r=r,
            sharing=2, states_dir=str(states), state_every_s=0.0,
        ), driver)
    driver.trials += [
        tiny.trial(k, seed=k, examples=64, batch_size=32, learning_rate=1e-4,
                  lora={"r": min(r, 128), "alpha": 8.0})
        for k in range(engine.size.slots)
    ]
    engine.run(driver)
    return engine, [result.outcome for result in driver.results]


def filled_host(folder: Path) -> dict[str, Any] | None:
    """What a process of its own takes; None where its peak cannot be set back."""
    tiny = made_in(folder)
    held = psutil.Process().memory_info().rss
    filled(tiny, held + GIB, folder / "first", r=16)  # so that all libraries are there
    free_memory(torch.device("cpu"))
    before = psutil.Process().memory_info().rss
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    if peak_bytes() > before + 2**26:
        return None
    engine, outcomes = filled(tiny, before + GIB, folder / "second", r=4096)
    return {"slots": engine.size.slots, "outcomes": outcomes, "grown": peak_bytes() - before}


def test_a_pack_stays_within_its_share_of_a_host(tmp_path: Path) -> None:
    if memory_bytes(torch.device("cpu")) < 8 * GIB:
        pytest.skip("needs 8 GiB of memory")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(filled_host, tmp_path).result()
    if found is None:
        pytest.skip("needs a peak that can be set back")
    assert found["slots"] > 1
    assert found["outcomes"] == [Outcome.COMPLETE] * found["slots"]
    assert GIB / 2 < found["grown"] <= GIB


def filled_cuda(folder: Path, most: float, there: int) -> dict[str, Any]:
    """What a process of its own holds of the first CUDA device, where `there` bytes are others'."""
    base = build_base(
        folder / "base", hidden_size=2048, intermediate_size=8192, num_hidden_layers=4,
        num_attention_heads=16, num_key_value_heads=4,
    )
    tiny = Tiny(base, write_data(folder / "data.jsonl"), dtype="bf16", device="cuda:0")
    engine, outcomes = filled(tiny, most, folder / "states", r=128)
    free, total = torch.cuda.mem_get_info(0)
    context = total - free - torch.cuda.memory_reserved(0) - there
    return {
        "ragged": engine.size.ragged, "slots": engine.size.slots, "outcomes": outcomes,
        "peak": torch.cuda.max_memory_reserved(0) + max(0, context),
        "failures": torch.cuda.memory_stats(0)["num_ooms"],
    }


@pytest.mark.gpu
def test_a_pack_stays_within_its_share_of_a_gpu(tmp_path: Path) -> None:
    most = 6 * GIB
    free, total = torch.cuda.mem_get_info(0)
    if free < 2 * most:
        pytest.skip("needs 12 GiB of free memory")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(filled_cuda, tmp_path, most, total - free).result()
    assert found["ragged"] and 1 < found["slots"] < 32
    assert found["outcomes"] == [Outcome.COMPLETE] * found["slots"]
    assert found["failures"] == 0
    assert most / 2 < found["peak"] <= most

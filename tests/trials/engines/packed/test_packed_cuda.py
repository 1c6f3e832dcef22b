"""What packs do on CUDA alone: tokens end to end on Triton kernels, clocks as CUDA graphs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packs import interrupted, mixed, prepared, run, seated, ticked, trl
from tiny import Recorder, Tiny, build_base, made_in
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trials.contract import EngineConfig, InputError, Outcome
from trials.dropout import module_key, row_keys
from trials.engines.packed import optim, prepare
from trials.engines.packed.bank import Bank
from trials.engines.packed.clock import Clock
from trials.engines.packed.engine import PackedEngine
from trials.engines.packed.products import Group, PaddedProducts
from trials.engines.packed.size import GIB, SPARES, slot_bytes
from trials.training.limits import free_memory

pytestmark = pytest.mark.gpu

SEGMENTS = (0, 20, 20, 50, 109, 149)  # of five slots, one of them without a token
TOKENS = 160
PREPARING = """
import sys
from pathlib import Path
from packs import prepared
from tiny import made_in

folder = Path(sys.argv[1])
folder.mkdir()
engine, _ = prepared(made_in(folder, dtype="bf16", device="cuda:0"), capacity=2)
print(engine.size.ragged)
"""
RANKS = (7, 16, 20, 70, 33)  # of the slots, where the bank is as wide
SHAPES = {"o": (64, 96), "q": (192, 1090), "k": (192, 64), "v": (192, 128), "down": (320, 192)}


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny Llama in NF4 and bf16 on the first CUDA device."""
    return made_in(tmp_path_factory.mktemp("tiny"), dtype="bf16", device="cuda:0")


@pytest.fixture(scope="module")
def engine(packs: Tiny) -> PackedEngine:
    """An engine on it, to tick by hand."""
    return prepared(packs, capacity=4)[0]


# --- the kernels ---------------------------------------------------------------------------------


def ragged(dtype: torch.dtype, rates: Tensor, keys: Tensor | None) -> Any:
    """The five slots' products."""
    from trials.engines.packed.cuda.ragged import TILE, RaggedProducts

    tiles = [(slot, start, min(TILE, SEGMENTS[slot + 1] - start)) for slot in range(len(RANKS))
             for start in range(SEGMENTS[slot], SEGMENTS[slot + 1], TILE)]
    tiles += [(0, 0, 0), (0, SEGMENTS[-1], SEGMENTS[-1] - TOKENS)]
    return RaggedProducts(
        tokens=TOKENS, tiles=torch.tensor(tiles, dtype=torch.int32, device="cuda"),
        starts=torch.tensor(SEGMENTS, dtype=torch.int32, device="cuda"),
        scales=torch.tensor([1.0, 2.0, 0.5, 0.7, 1.5], device="cuda"), keys=keys,
        thresholds=torch.round(rates * 65536).to(torch.int32),
    )


@contextmanager
def nan_where_nothing_is_written() -> Iterator[None]:
    """Within, memory is NaN until something is written there."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3, device="cuda").isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def fill_own_ranks(bank: Bank) -> None:
    """Leaves of each slot what its own ranks fill."""
    ranks = RANKS[: bank.slots]
    bank.ranks.copy_(torch.tensor(ranks))
    for rows in bank.rows:
        views = bank._views(rows, bank.ranks)
        for a, b in zip(views.a, views.b, strict=True):
            for slot, rank in enumerate(ranks):
                a[slot, rank:], b[slot, :, rank:] = 0.0, 0.0


@pytest.mark.parametrize(
    ("dtype", "r", "drops", "modules"),
    [*((torch.bfloat16, r, True, ("q", "k", "v")) for r in (8, 16, 32, 64, 128)),
     (torch.bfloat16, 16, False, ("q", "k", "v")), (torch.bfloat16, 16, True, ("q",)),
     (torch.float16, 16, True, ("q", "k", "v")), (torch.float16, 64, True, ("q", "k", "v"))],
)
def test_products_end_to_end_are_those_of_each_slot_alone(
    dtype: torch.dtype, r: int, drops: bool, modules: tuple[str, ...]
) -> None:
    torch.manual_seed(r)
    bank = Bank(SHAPES, slots=5, r=r, device=torch.device("cuda"), compute=dtype)
    bank.parameters.normal_().mul_(0.1)
    bank.gradients.normal_()
    fill_own_ranks(bank)
    bank.round(5)
    group = Group(1, tuple(map(module_key, modules)))
    x = torch.randn(TOKENS, SHAPES["q"][0], device="cuda").to(dtype)
    dys = [torch.randn(TOKENS, SHAPES[name][1], device="cuda").to(dtype) for name in modules]
    biases = [torch.randn(SHAPES["q"][1], device="cuda").to(dtype), None, None][: len(modules)]
    rates = torch.tensor([0.1, 0.2, 0.5, 0.3, 0.1], dtype=torch.float64, device="cuda")
    places = torch.arange(TOKENS, device="cuda")
    keys = row_keys(7, places // 10, places % 10) if drops else None
    before = bank.gradients.clone()
    ours, (weights, gradients) = ragged(dtype, rates, keys), bank.prefix(5)
    with nan_where_nothing_is_written():
        s = ours.down(x, weights, group)
        ys = ours.up(s, weights, group, biases)
        ds = ours.back(dys, s, weights, gradients, group)
        ours.back_a(x, ds, gradients, group)
        dx = ours.back_input(ds, weights, group)
    for slot in range(5):
        there = slice(SEGMENTS[slot], SEGMENTS[slot + 1])
        if there.start == there.stop:
            assert torch.equal(bank.gradients[slot], before[slot])
            continue
        one = slice(slot, slot + 1)
        exact = PaddedProducts(
            ours.scales[one, None, None], None if keys is None else keys[None, there],
            None if keys is None else rates[one, None, None],
        )
        own = bank._views(bank.compute[one].float(), bank.ranks[one])
        given, upstream = x[there].float(), [dy[there].float() for dy in dys]
        want_gradients = before[one].clone()
        want_s = exact.down(given, own, group)
        want_ys = exact.up(
            want_s, own, group, [None if bias is None else bias.float() for bias in biases])
        into = bank._views(want_gradients, bank.ranks[one])
        want_ds = exact.back(upstream, want_s, own, into, group)
        exact.back_a(given, want_ds, into, group)
        want_dx = exact.back_input(want_ds, own, group)
        most = RANKS[slot]  # the other ranks of s and ds are nobody's
        pairs = [(s[:, there, :most], want_s[..., :most]),
                 (ds[:, there, :most], want_ds[..., :most]), (dx[there], want_dx),
                 (bank.gradients[one], want_gradients),
                 *((y[there], want) for y, want in zip(ys, want_ys, strict=True))]
        for found, want in pairs:
            assert (found.float() - want).norm() <= 8e-3 * want.norm()
    for found, bias in zip((dx, *ys), (None, *biases), strict=True):  # nobody's tokens
        assert (found[SEGMENTS[-1]:] == (0.0 if bias is None else bias)).all()


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("heads", "shared", "width"), [(4, 2, 64), (3, 3, 16), (8, 1, 128)])
@pytest.mark.parametrize("kernels", ["ShortRows", "_Rows"])
def test_rows_see_themselves_alone(
    kernels: str, heads: int, shared: int, width: int, window: int | None
) -> None:
    from trials.engines.packed import attention
    from trials.engines.packed.cuda import short_rows

    torch.manual_seed(0)
    lengths = [70, 1, 0, 200, 65, 5]
    ends = torch.tensor([0, *lengths], dtype=torch.int32, device="cuda").cumsum(0).int()
    q, k, v, dy = (torch.randn(sum(lengths), many, width, device="cuda").bfloat16()
                   for many in (heads, shared, shared, heads))
    given = [states.requires_grad_() for states in (q, k, v)]
    function = getattr(short_rows, kernels, None) or getattr(attention, kernels)
    y = function.apply(*given, ends, max(lengths), None, window)
    found = [y, *torch.autograd.grad(y, given, dy)]
    exact = [states.detach().float().requires_grad_() for states in given]
    rows = []
    for start, end in zip(ends.tolist(), ends.tolist()[1:], strict=False):
        places = torch.arange(end - start, device="cuda")
        back = places[:, None] - places[None, :]
        seen = (back >= 0) & (back < (window or 1000))
        own = [states[start:end].repeat_interleave(heads // states.shape[1], 1).transpose(0, 1)
               for states in exact]
        rows.append(scaled_dot_product_attention(*own, attn_mask=seen).transpose(0, 1))
    want = [torch.cat(rows), *torch.autograd.grad(torch.cat(rows), exact, dy.float())]
    for ours, theirs in zip(found, want, strict=True):
        assert (ours.float() - theirs).norm() <= 8e-3 * theirs.norm()
    again = torch.autograd.grad(function.apply(*given, ends, max(lengths), None, window), given, dy)
    assert all(torch.equal(one, other) for one, other in zip(found[1:], again, strict=True))


@pytest.mark.parametrize("columns", [300, 8192, 8193, 40_003])
def test_losses_and_their_gradient_take_the_logits_place(columns: int) -> None:
    from trials.engines.packed.cuda.rows import losses

    torch.manual_seed(0)
    logits = (3 * torch.randn(37, columns, device="cuda")).bfloat16()
    logits[5] = float("nan")
    logits[6, 1:100] = float("-inf")
    targets = torch.randint(0, columns, (37,), device="cuda")
    targets[6], targets[7] = 0, columns - 1
    weights = torch.rand(37, device="cuda")
    exact = logits.float().requires_grad_()
    want = torch.nn.functional.cross_entropy(exact, targets, reduction="none")
    (gradient,) = torch.autograd.grad(want, exact, weights)
    found = losses(logits, targets, weights)
    torch.testing.assert_close(found, want.detach(), rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(logits.float(), gradient, rtol=1e-2, atol=1e-5, equal_nan=True)


def test_the_fused_optimizer_makes_the_steps_of_the_plain_one() -> None:
    torch.manual_seed(0)
    banks = [Bank({"m": (96, 160), "n": (640, 1024)}, slots=4, r=16, device=torch.device("cuda"),
                  compute=torch.bfloat16) for _ in range(2)]
    for tensor, other in zip(banks[0].rows, banks[1].rows, strict=True):
        tensor.copy_(torch.randn_like(tensor).abs())
        other.copy_(tensor)
    for bank in banks:
        fill_own_ranks(bank)
        bank.gradients[1, 7] = float("nan")
        bank.round(4)
    before = [row.clone() for row in banks[0].rows]
    due = torch.tensor([1.0, 1.0, 0.0, 1.0], device="cuda")
    told = []
    for bank, fused in zip(banks, (True, False), strict=True):
        optimizer = optim.Optimizer(4, torch.device("cuda"), scaled=False)
        for slot, kind in enumerate(("adamw", "adamw", "adamw", "sgd")):
            train = replace(mixed_train(), optimizer=kind)
            optimizer.seat(slot, optim.coefficients(train, 10))
        if not fused:
            type(bank).by_kernels, kept = property(lambda self: False), type(bank).by_kernels
        try:
            told.append(optimizer.step(bank, due, torch.zeros(4, device="cuda")))
        finally:
            if not fused:
                type(bank).by_kernels = kept
    torch.testing.assert_close(told[0][:, due > 0], told[1][:, due > 0], equal_nan=True)
    for ours, plain in zip(banks[0].rows, banks[1].rows, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)
    for k, row in enumerate(banks[0].rows):
        assert torch.equal(row[2], before[k][2])  # not due: bit for bit as it was
    assert torch.equal(banks[0].parameters[1], before[0][1]) and not banks[0].gradients[1].any()
    assert torch.equal(banks[0].compute, banks[0].parameters.bfloat16())


def test_an_overflow_leaves_nothing_that_a_later_step_reads() -> None:
    from trials.engines.packed.cuda.rows import norms

    bank = Bank({"m": (640, 1024)}, slots=3, r=32, device=torch.device("cuda"),
                compute=torch.float16)
    bank.ranks.copy_(torch.tensor([3, 17, 32]))
    optimizer = optim.Optimizer(3, torch.device("cuda"), scaled=True)
    for slot in range(3):
        optimizer.seat(slot, optim.coefficients(mixed_train(), 10))
    due = torch.ones(3, device="cuda")
    bank.gradients.fill_(float("inf"))
    optimizer.step(bank, due, torch.zeros(3, device="cuda"))
    _, gradients = bank.prefix(3)
    for slot, rank in enumerate(bank.ranks.tolist()):
        gradients.a[0][slot, :rank] = 1.0
        gradients.b[0][slot, :, :rank] = 1.0
    want = (bank.ranks * float(640 + 1024)).sqrt()
    torch.testing.assert_close(norms(bank, due), want)


def mixed_train() -> Any:
    from trials.contract import TrainConfig

    return TrainConfig(learning_rate=0.01, weight_decay=0.1, scheduler="cosine", max_grad_norm=0.5)


# --- clocks --------------------------------------------------------------------------------------


def trained(engine: PackedEngine, trials: list[Any], **size: Any) -> tuple[Any, Tensor]:
    """Losses by slot and the parameters after twelve clocks."""
    with engine.slots(replace(engine.size, slots=4, **size)) as slots:
        losses = ticked(slots, seated(slots, *trials), 12)
        return losses, slots.bank.parameters.clone()


def test_rows_lie_end_to_end_here(engine: PackedEngine) -> None:
    assert engine.size.ragged and engine.size.compiled and engine.size.lag == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_the_same_clocks_give_the_same_bits(
    packs: Tiny, engine: PackedEngine, compiled: bool
) -> None:
    trials = mixed(packs, examples=96)
    (first, row), (again, other) = (trained(engine, trials, compiled=compiled) for _ in range(2))
    assert first == again
    assert torch.equal(row, other)


def test_recorded_clocks_do_what_plain_ones_do(packs: Tiny, engine: PackedEngine) -> None:
    trials = mixed(packs, examples=96)
    plain, recorded = (trained(engine, trials, compiled=way)[0] for way in (False, True))
    for slot, losses in plain.items():
        assert recorded[slot] == pytest.approx(losses, rel=2e-2)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_recomputed_is_the_same(
    packs: Tiny, engine: PackedEngine, compiled: bool
) -> None:
    found = [
        trained(engine, [replace(trial, train=replace(trial.train, gradient_checkpointing=way))
                         for trial in mixed(packs, examples=96)], compiled=compiled)
        for way in (False, True)
    ]
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("longest", [8, 12, 17, 30])
def test_short_rows_are_trained_and_evaluated(tmp_path: Path, longest: int) -> None:
    tiny = made_in(tmp_path, dtype="bf16", device="cuda:0")
    draw = random.Random(longest)
    tiny.data.write_text("".join(
        json.dumps({"prompt": "".join(draw.choices("abcdefgh", k=draw.randint(3, longest - 3))),
                    "completion": "1"}) + "\n" for _ in range(120)
    ))
    trials = [tiny.trial(k, seed=k) for k in range(3)]
    found = run(tiny, *trials, capacity=3)
    held = torch.cuda.max_memory_reserved("cuda:0")
    padded = trl(tiny, *trials)
    assert all(0 < result.memory_bytes <= held for result in found.results)
    for k in range(3):
        assert found.losses(k) == pytest.approx(padded.losses(k), rel=2e-2)


def test_checkpointed_rows_lie_end_to_end_too(packs: Tiny) -> None:
    engine, _ = prepared(packs, checkpointing=True)
    assert engine.size.ragged


def test_a_refill_records_nothing_new(packs: Tiny, engine: PackedEngine) -> None:
    with engine.slots(replace(engine.size, slots=4)) as slots:
        seats = seated(slots, *(packs.trial(k, seed=k, examples=64) for k in range(4)))
        ticked(slots, seats)
        before = len(slots.clock._replays._made)
        for seat in seats:
            slots.leave(seat)
        others = [packs.trial(k + 4, seed=k, examples=64, learning_rate=0.003, weight_decay=0.1,
                              lora={"r": 2 + k, "alpha": 4.0, "target_modules": "qv"})
                  for k in range(4)]
        ticked(slots, seated(slots, *others))
        assert before > 0 and len(slots.clock._replays._made) == before


def test_a_pack_writes_by_recorded_steps_what_each_trial_would_alone(
    packs: Tiny, engine: PackedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = engine.shared
    monkeypatch.setattr(shared, "assignment", replace(shared.assignment, samples=2))
    monkeypatch.setattr(shared.base.model, "generate", None)  # nothing else would do
    with engine.slots(replace(engine.size, slots=3)) as slots:
        seats = seated(slots, *mixed(packs, examples=96)[:3])
        ticked(slots, seats)
        together = slots.written(seats)
        alone = [slots.written([seat])[0] for seat in seats]
    assert together == alone and [len(own) for own in together] == [2, 2, 2]


def test_packs_work_on_another_device_than_the_first(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    tiny = made_in(tmp_path, dtype="bf16", device="cuda:1")
    try:
        engine, driver = prepared(tiny, capacity=2)
        assert engine.size.ragged
        driver.trials += [tiny.trial(k, seed=k, examples=96) for k in range(3)]
        engine.run(driver)
    finally:
        torch.cuda.set_device(0)
    assert [(r.outcome, r.reason) for r in driver.results] == [(Outcome.COMPLETE, None)] * 3


def test_fp16_has_a_loss_scale_for_each_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one's is too large at first, of which the first one takes no notice."""
    tiny = made_in(tmp_path, dtype="fp16", device="cuda:0")
    engine, driver = prepared(tiny, capacity=2)
    plain, found = optim.Optimizer.seat, []
    for start in (optim.FIRST_SCALE, 2.0**24):
        scales: list[Tensor] = []

        def seat(self: optim.Optimizer, slot: int, given: Any) -> None:
            plain(self, slot, given)
            self.scale[1] = start  # noqa: B023
            scales.append(self.scale)  # noqa: B023

        monkeypatch.setattr(optim.Optimizer, "seat", seat)
        trials = [tiny.trial(k, seed=k, examples=160) for k in range(2)]
        said = Recorder(trials, setup=driver.setup)
        engine.run(said)
        assert {r.outcome for r in said.results} == {Outcome.COMPLETE}
        made = [sum(len(report.history) for report in said.reports if report.trial == k)
                for k in range(2)]  # what is not made is not in the curve
        assert scales[0].tolist() == [first / 2.0 ** (20 - steps) for first, steps
                                      in zip((optim.FIRST_SCALE, start), made, strict=True)]
        found.append((made, said.losses(0)))
    (every, losses), (fewer, beside) = found
    assert every[0] == fewer[0] and losses == beside  # to the last bit
    assert every[1] > fewer[1] > 0


def test_interrupted_trials_go_on_from_a_state_that_was_written_beside_them(
    packs: Tiny, tmp_path: Path
) -> None:
    trials = [packs.trial(k, seed=k, examples=256, ticks=4) for k in range(2)]
    whole = run(packs, *trials, capacity=2)
    again = interrupted(*prepared(packs, capacity=2), trials, tmp_path)
    for k in range(2):
        assert again.losses(k) == pytest.approx(whole.losses(k), rel=2e-2)
        steps = [point.examples for r in again.reports if r.trial == k and not r.again
                 for point in r.history]
        assert min(steps) > 64


# --- what is compiled ----------------------------------------------------------------------------


def test_all_that_is_launched_was_compiled_ahead(
    packs: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton

    from trials.engines.packed.cuda import attend, kernels

    engine, driver = prepared(packs, capacity=4)
    made: list[str] = []
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda **told: made.append(told["fn"].name)
    )
    own = {kernel for module in (kernels, attend) for kernel in vars(module).values()
           if isinstance(kernel, triton.JITFunction)}
    for kernel in own:
        kernel.device_caches.clear()
    engine.compile(2048)
    ahead = {"down", "up", "back", "back_a", "back_input", "summed", "losses", "squares", "update",
             "attend", "attend_back_keys", "attend_back_queries"}
    assert set(made) == ahead
    made.clear()
    engine.rehearse(2048)
    driver.trials += [packs.trial(k, seed=k, examples=96, lora={"dropout": 0.1 * k})
                      for k in range(3)]
    engine.run(driver)
    assert [r.outcome for r in driver.results] == [Outcome.COMPLETE] * 3
    assert made == []


def test_what_one_process_compiled_the_next_one_finds(tmp_path: Path) -> None:
    places = {"TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"}
    env = {name: value for name, value in os.environ.items() if name not in places}
    env |= {"QLORA_SWEEP_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    found = []
    for folder in ("once", "twice"):
        said = subprocess.run([sys.executable, "-c", PREPARING, str(tmp_path / folder)], env=env,
                              stdout=subprocess.PIPE, check=True, text=True).stdout
        assert said.split()[-1] == "True"
        found.append(set((tmp_path / "compiled").rglob("*.cubin")))
    assert found[0] and found[0] == found[1]


# --- memory --------------------------------------------------------------------------------------


def test_a_trial_that_no_clock_fits_is_infeasible_alone(
    packs: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, sizes = Clock.tick, []

    def tick(self: Clock, seats: Any) -> Any:
        if any(seat.trial.number == 1 and seat.at > 1 for seat in seats):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        sizes.append(self.shapes.tokens)
        return plain(self, seats)

    monkeypatch.setattr(Clock, "tick", tick)
    driver = run(packs, *(packs.trial(k, seed=k, examples=96) for k in range(3)), capacity=3)
    assert {r.trial: r.outcome for r in driver.results} == {
        0: Outcome.COMPLETE, 1: Outcome.INFEASIBLE, 2: Outcome.COMPLETE}
    assert sizes[-1] == sizes[0] > min(sizes)  # less at once until it was gone


def test_a_capacity_that_cannot_fit_says_what_would(packs: Tiny) -> None:
    with pytest.raises(InputError, match=r"engine.capacity=10000000: .* Type engine.capacity=\d+,"):
        prepared(packs, capacity=10_000_000)


def test_a_small_share_of_the_memory_makes_a_small_pack(packs: Tiny, tmp_path: Path) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    free_memory(torch.device("cuda"))
    base = build_base(tmp_path, hidden_size=1024, intermediate_size=4096, num_hidden_layers=4)
    held, packed = torch.cuda.memory_allocated(), []
    for most in (4 * GIB, 5 * GIB):  # beside what other tests hold
        given = EngineConfig(name="packed", options={"memory_fraction": (held + most) / total})
        assigned = replace(packs, base=base).assignment(engine=given, max_r=128)
        engine, _ = prepare(assigned, Recorder())
        bank = engine.size.slots * slot_bytes(engine.layers, 128, torch.bfloat16)
        assert most / 3 < bank <= most - SPARES["cuda"]
        packed.append(engine.size.slots)
    assert packed[0] < packed[1]
    with pytest.raises(InputError, match="one trial of rank 16 .* or engine=trl"):
        prepared(packs, memory_fraction=2**20 / total)

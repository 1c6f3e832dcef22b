"""A pack computes what separate PEFT runs compute, and its slots do not see each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packs import alone, bench, check_distances, in_fp64, mixed, prepared, seated, ticked, trl
from safetensors.torch import load_file
from tiny import Tiny, made_in
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trials.adapters import export, fresh_adapter
from trials.base import resolve_targets
from trials.dropout import KeyedDropout
from trials.engines.packed import products
from trials.engines.packed.corpus import Corpus, Padded, Ragged, Rows, Samples
from trials.engines.packed.engine import PackedEngine
from trials.engines.packed.layers import Flight
from trials.engines.packed.optim import Optimizer
from trials.engines.packed.products import PaddedProducts
from trials.engines.packed.seat import Seat
from trials.engines.packed.slots import Slots
from trials.engines.trl import origin_of
from trials.quiet import quiet
from trials.training.batches import Batch

PAD = 0
# By module, slot, position of the example in its trial's order, and place there: the token, and
# which of its columns survive.
Masks = dict[tuple[int, int, int, int], tuple[int, bytes]]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A base where rounding is all that may differ."""
    return made_in(tmp_path_factory.mktemp("tiny"), quantisation="none")


@pytest.fixture(scope="module")
def engine(dense: Tiny) -> PackedEngine:
    """An engine on it, to tick by hand."""
    return prepared(dense, capacity=4)[0]


# --- the same maths ------------------------------------------------------------------------------


def test_in_fp64_a_pack_is_separate_runs(dense: Tiny, engine: PackedEngine) -> None:
    trials = mixed(dense)
    with in_fp64(engine):
        with bench(engine, slots=4, dtype=torch.float64) as slots:
            losses = ticked(slots, seated(slots, *trials))
            assert [len(losses[k]) for k in range(4)] == [25] * 4
            check_padding(slots, trials)
            found = [slots.bank.factors(k, t.lora.r) for k, t in enumerate(trials)]
        worst = 0.0
        for k, trial in enumerate(trials):
            expected = alone(engine, trial, dtype=torch.float64)
            assert losses[k] == pytest.approx(expected.losses, abs=1e-10)
            worst = max(worst, *(float((ours - theirs).abs().max())
                                 for name, pair in expected.factors.items()
                                 for ours, theirs in zip(found[k][name], pair, strict=True)))
    print(f"largest difference of a parameter after 25 steps in fp64: {worst:.1e}")
    assert worst < 1e-10


def check_padding(slots: Slots, trials: list[Any]) -> None:
    """What a smaller rank or an untargeted module leaves free is exactly 0."""
    bank = slots.bank
    for rows in bank.rows:
        views = bank._views(rows, bank.ranks)
        for k, (trial, seat) in enumerate(zip(trials, slots.seats, strict=True)):
            for place, name in enumerate(bank.shapes):
                r = trial.lora.r if name in seat.targets else 0
                assert not views.a[place][k, r:].any()
                assert not views.b[place][k, :, r:].any()


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_in_fp32_gradients_agree(
    dense: Tiny, engine: PackedEngine, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [dense.trial(k, seed=k, lora={"r": r, "alpha": 8.0, "dropout": dropout})
              for k, r in enumerate((8, 3))]
    seen: list[torch.Tensor] = []
    step = Optimizer.step

    def look(self: Optimizer, bank: Any, due: torch.Tensor, losses: torch.Tensor) -> Any:
        seen.append(bank.gradients[: len(due)].clone())
        return step(self, bank, due, losses)

    monkeypatch.setattr(Optimizer, "step", look)
    with bench(engine, slots=2) as slots:
        seats = seated(slots, *trials)
        starts = []
        for seat in seats:
            factors = slots.bank.factors(seat.slot, seat.trial.lora.r)
            for _, b in factors.values():
                b.normal_(std=0.1, generator=torch.Generator().manual_seed(seat.slot))
            starts.append({name: (a.clone(), b.clone()) for name, (a, b) in factors.items()})
        ticked(slots, seats, 4)  # a batch may take several clocks
        views = slots.bank._views(seen[0], slots.bank.ranks)
        for k, trial in enumerate(trials):
            expected = alone(engine, trial, start=starts[k], steps=1).gradients
            for place, name in enumerate(slots.bank.shapes):
                a, b = expected[name]
                r = trial.lora.r
                for ours, theirs in ((views.a[place][k, :r], a), (views.b[place][k, :, :r], b)):
                    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_dropout_draws_the_masks_of_the_other_engine(dense: Tiny, engine: PackedEngine) -> None:
    """Token by token, in every module, forward and backward."""
    trials = [dense.trial(k, seed=seed, examples=8, ticks=1, lora={"dropout": rate})
              for k, (seed, rate) in enumerate(((3, 0.2), (2**40 + 1, 0.4)))]
    theirs: Masks = {}
    tokens = 0
    for slot, trial in enumerate(trials):
        with trl_masks(slot, theirs):
            [result] = trl(dense, trial).results
            tokens += result.tokens
    assert len(theirs) == tokens * len(engine.layers)
    ours: Masks = {}
    with bench(engine, slots=2) as slots, packed_masks(ours):
        ticked(slots, seated(slots, *trials))
    assert ours == theirs


@contextmanager
def trl_masks(slot: int, found: Masks) -> Iterator[None]:
    """What the adapter of the TRL engine lets through, as a trial trains."""
    from trials.engines import trl_trainer

    batches: list[Batch] = []
    make, forward = trl_trainer.collate, KeyedDropout.forward

    def collate(rows: Any, pad: int) -> Batch:
        batches.append(make(rows, pad))
        return batches[-1]

    def look(self: KeyedDropout, x: Tensor) -> Tensor:
        if self.training:
            batch, kept = batches[-1], forward(self, torch.ones_like(x)) != 0
            note(found, self.module, kept, batch, torch.full_like(batch.order, slot))
        return forward(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl_trainer, "collate", collate)
        patch.setattr(KeyedDropout, "forward", look)
        yield


@contextmanager
def packed_masks(found: Masks) -> Iterator[None]:
    """What packed layers let through, as slots tick."""
    made: list[Samples] = []
    lay, draw = Corpus.samples, products.keep_mask

    def samples(*given: Any) -> Samples:
        made.append(lay(*given))
        return made[-1]

    def look(rows: Tensor, module: int, columns: int, rates: Tensor) -> Tensor:
        kept = draw(rows, module, columns, rates)
        note(found, module, kept, made[-1], made[-1].owner)
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Corpus, "samples", samples)
        patch.setattr(products, "keep_mask", look)
        yield


def note(
    found: Masks, module: int, kept: Tensor, given: Batch | Samples, owner: Tensor
) -> None:
    """Takes down what each token meets in a module: always the same."""
    rows = kept.flatten(0, -2).numpy()
    ids, *labels = (t.flatten().tolist()
                    for t in (given.input_ids, owner, given.order, given.tokens))
    for row, token, label in zip(rows, ids, zip(*labels, strict=True), strict=True):
        if token != PAD:
            mask = token, row.tobytes()
            assert found.setdefault((module, *label), mask) == mask


def test_a_base_kept_dequantised_gives_the_same_losses(
    dense: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitsandbytes import functional

    tiny, plain = replace(dense, quantisation="nf4"), functional.dequantize_4bit
    calls: list[None] = []
    losses = []

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(None)
        return plain(*given, **named)

    monkeypatch.setattr(functional, "dequantize_4bit", counted)
    for resident in (True, False):
        engine, driver = prepared(tiny, capacity=3, resident=resident)
        driver.trials += mixed(tiny, examples=48)
        calls.clear()
        engine.run(driver)
        assert (len(calls) == len(engine.layers)) is resident
        losses.append([driver.losses(trial) for trial in range(4)])
    assert losses[0] == losses[1]


def by_peft(engine: PackedEngine, seat: Seat, folder: Path) -> Path:
    """An adapter like a seat's, untrained and written by PEFT."""
    base, lora = engine.shared.base, seat.trial.lora
    targets = resolve_targets(base.facts, lora.target_modules)
    with quiet(), fresh_adapter(base.model, lora, targets, seed=0) as adapter:
        origin, revision = origin_of(base)
        return export(adapter, folder, base=origin, revision=revision)


def settings(folder: Path) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """An adapter's configuration, and the shapes of its tensors by name."""
    found = json.loads((folder / "adapter_config.json").read_text())
    found["target_modules"].sort()  # PEFT writes a set
    tensors = load_file(folder / "adapter_model.safetensors")
    return found, {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_an_exported_adapter_gives_the_packed_logits(
    dense: Tiny, engine: PackedEngine, tmp_path: Path
) -> None:
    from peft import PeftModel

    model = engine.shared.base.model
    ids = torch.arange(4, 24)[None]
    with bench(engine, slots=4) as slots:
        seats = seated(slots, *mixed(dense))
        ticked(slots, seats, 6)
        for seat in seats:
            folder = slots.export(seat, tmp_path / str(seat.slot))
            assert settings(folder) == settings(by_peft(engine, seat, tmp_path / "by-peft"))
            scale = torch.full((1, 1, 1), seat.scale)
            flight = Flight(slots.bank.gathered([seat.slot]), PaddedProducts(scale))
            with slots.pack.flying(flight), torch.no_grad():
                packed = model(input_ids=ids).logits
            loaded = PeftModel.from_pretrained(model, folder)
            try:
                with torch.no_grad():
                    torch.testing.assert_close(loaded(input_ids=ids).logits, packed)
            finally:
                loaded.unload()


# --- apart from each other -----------------------------------------------------------------------

FIXED = Padded(slots=3, rows=8, width=36)


def company(slots: Slots, seats: list[Any], clocks: int = 6) -> tuple[list[float], torch.Tensor]:
    """The first slot's losses and its row after some clocks."""
    losses = ticked(slots, seats, clocks)
    return losses[0], slots.bank.parameters[0].clone()


def test_a_trial_is_the_same_alone_and_in_any_company(
    dense: Tiny, engine: PackedEngine
) -> None:
    first = dense.trial(0, examples=48)
    found = []
    for others in ([], mixed(dense)[:2], [*mixed(dense)[:2]]):
        with bench(engine, slots=3) as slots:
            slots.clock.shapes.choose = lambda seats: (FIXED, dict.fromkeys(range(3), 8))
            seats = seated(slots, first, *others)
            if len(found) == 2:
                poison(slots, 1)
            found.append(company(slots, seats))
    for losses, row in found[1:]:
        assert losses == found[0][0]
        assert torch.equal(row, found[0][1])


def poison(slots: Slots, slot: int) -> None:
    """Makes an adapter not finite."""
    slots.bank.parameters[slot].fill_(float("nan"))


def test_a_poisoned_slot_reaches_nobody_and_leaves_nothing(
    dense: Tiny, engine: PackedEngine
) -> None:
    with bench(engine, slots=4) as slots:
        seats = seated(slots, *mixed(dense))
        poison(slots, 1)
        losses = ticked(slots, seats, 4)
        assert all(torch.isfinite(rows[[0, 2, 3]]).all() for rows in slots.bank.rows)
        assert losses[1][0] != losses[1][0]
        slots.leave(seats[1])
        assert all(not rows[1].any() for rows in slots.bank.rows)


def test_what_is_not_finite_leaves_the_parameters_alone(
    dense: Tiny, engine: PackedEngine
) -> None:
    with bench(engine, slots=2) as slots:
        seats = seated(slots, dense.trial(0), dense.trial(1, seed=8))
        slots.bank.gradients[1, 5] = float("inf")
        before = slots.bank.parameters.clone()
        ticked(slots, seats, 3)
        assert torch.equal(slots.bank.parameters[1], before[1])
        assert not torch.equal(slots.bank.parameters[0], before[0])


def test_a_bank_row_can_be_saved_and_restored_and_a_bank_widened(
    dense: Tiny, engine: PackedEngine
) -> None:
    with bench(engine, slots=2) as slots:
        seats = seated(slots, *mixed(dense)[:2])
        ticked(slots, seats, 3)
        bank = slots.bank
        rows = [t.clone() for t in bank.rows]
        kept = bank.saved(1, seats[1].trial.lora.r, seats[1].targets)
        bank.restore(1, seats[1].trial.lora.r, seats[1].targets, kept)
        assert all(torch.equal(a, b) for a, b in zip(bank.rows, rows, strict=True))
        wider = bank.widened(20)
        assert wider.r == 32
        for name, pair in bank.factors(0, 8).items():
            assert all(map(torch.equal, pair, wider.factors(0, 8)[name]))


def test_slots_start_where_peft_would(dense: Tiny, engine: PackedEngine) -> None:
    trials = [*mixed(dense), *(dense.trial(4 + k, seed=3 + k, lora={"r": 8}) for k in range(2))]
    with bench(engine, slots=len(trials), r=8) as slots:
        seated(slots, *trials)
        for k, trial in enumerate(trials):
            found = slots.bank.factors(k, trial.lora.r)
            for name, pair in alone(engine, trial, steps=0).factors.items():
                assert all(map(torch.equal, pair, found[name]))


def test_samples_are_laid_out_slot_by_slot(engine: PackedEngine) -> None:
    import numpy as np

    train, corpus = engine.shared.data.train, engine.corpus
    given = [Rows(np.array([4, 2]), np.array([10, 11])), None, Rows(np.array([7]), np.array([3]))]
    lengths = [[len(train[int(e)].input_ids) - 1 for e in rows.examples] if rows else []
               for rows in given]
    total = sum(map(sum, lengths))
    for shape, starts in (
        (Padded(slots=3, rows=3, width=40), [[0, 40], [], [240]]),
        (Ragged(slots=3, tokens=256, rows=12, targets=64, longest=48),
         [[0, lengths[0][0]], [], [sum(lengths[0])]]),
    ):
        samples = corpus.samples(given, shape)
        wanted = []
        for slot, rows in enumerate(given):
            before = len(wanted)
            for place, e in enumerate(rows.examples if rows else ()):
                example, start = train[int(e)], starts[slot][place]
                there = slice(start, start + lengths[slot][place])
                assert samples.input_ids.flatten()[there].tolist() == list(example.input_ids[:-1])
                assert samples.tokens[there].tolist() == list(range(lengths[slot][place]))
                assert set(samples.order[there].tolist()) == {int(rows.positions[place])}
                assert set(samples.owner[there].tolist()) == {slot}
                wanted += [(start + t, example.input_ids[t + 1], slot)
                           for t in range(lengths[slot][place]) if example.loss_mask[t + 1]]
            assert samples.counts[slot] == len(wanted) - before
        found = zip(samples.index.tolist(), samples.targets.tolist(), samples.slot.tolist(),
                    strict=True)
        assert list(found)[: len(wanted)] == wanted
        assert (samples.slot[len(wanted):] == 3).all()
    tiles = [tile for tile in samples.tiles.tolist() if tile[2] > 0]
    assert [slot for slot, _, _ in tiles] == sorted(slot for slot, _, _ in tiles)
    covered = [start + k for _, start, count in tiles for k in range(count)]
    assert covered == list(range(total))  # each real token once, the rest belongs to nobody
    rest = [start + k for _, start, count in samples.tiles.tolist() for k in range(-count)]
    assert rest == list(range(total, 256))
    assert samples.starts.tolist() == [0, sum(lengths[0]), sum(lengths[0]), total]
    ends = samples.ends.tolist()
    assert ends[:4] == [0, lengths[0][0], sum(lengths[0]), total] and ends[-1] == 256
    assert all(0 <= b - a <= 48 for a, b in zip(ends, ends[1:], strict=False))


class Reads(TorchDispatchMode):
    """Counts how often a number of a tensor is told to the host, which waits for the device."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_clock_reads_nothing_back(dense: Tiny, engine: PackedEngine) -> None:
    """But for one look of transformers at the positions, which rows laid end to end spare it."""
    with bench(engine, slots=4) as slots:
        seats = seated(slots, *mixed(dense))
        with Reads() as reads:
            told = [slots.clock.tick(seats) for _ in range(6)]
        assert sum(len(clock.steps) for clock in told) > 6
        assert reads.count <= len(told)


# --- beside the TRL engine -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_nf4_losses_are_as_near_as_two_trl_runs_are(dense: Tiny, dtype: str) -> None:
    tiny = replace(dense, quantisation="nf4", dtype=dtype)
    check_distances(tiny, mixed(tiny, examples=32))

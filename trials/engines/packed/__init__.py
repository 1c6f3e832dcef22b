"""Many trials at once on one frozen base.

    engine, setup = prepare(assignment, driver)
    engine.run(driver)

The way of a clock: `engine.py` (who is seated) -> `seat.py` (each one's next micro-batch) ->
`shapes.py` (how many rows, how wide) -> `corpus.py` (samples as tensors) -> `clock.py` (forward and
backward) -> `layers.py` (batched LoRA, gradients into the bank) -> `optim.py` (steps of the rows
that are due) -> `evaluation.py` (those at a tick) -> `engine.py` (reports, verdicts, refill).
`bank.py` holds the adapters, `slots.py` seats trials in it, `initial.py` lets PEFT make and write
them, `refusals.py` says what a pack cannot do.
"""

from __future__ import annotations

from trials.engines.packed.prepare import prepare as prepare

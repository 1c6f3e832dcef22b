"""Many trials at once on one frozen base.

    engine, setup = prepare(assignment, driver)
    engine.run(driver)

`prepare.py` loads the base and the data, and tries how much fits. Then, the way of a clock:

    shift.py       who is seated; what the device found out, told to the driver; who comes next
    seat.py        each one's next micro-batch        shapes.py   how much of it all of them give
    corpus.py      samples as tensors                 clock.py    forward, backward, steps
    forward.py     the base's hidden states, and the losses where there are targets
    layers.py      linear layers and their LoRA; gradients straight into the bank
    optim.py       steps of the rows that are due     evaluation.py   those at a tick

LoRA's products come in two layouts: `products.py` pads every slot to the same number of tokens (any
device), `cuda/` lays all tokens end to end, on Triton kernels. There `fused.py` compiles what is
elementwise, `attention.py` keeps rows apart (short ones by kernels of `cuda/`, long ones by flash
attention), `apart.py` tries whether it does in this base, and `replay.py` records whole clocks as
CUDA graphs.
`bank.py` holds the adapters, `slots.py` seats trials in it, `skeleton.py` has PEFT make them and
say how they are written, `size.py` says how many fit, and `refusals.py` what a pack cannot do.
`later.py` holds what is on its way between host and device. A row is an example where there are
tokens (seat, shapes, corpus), and a slot's whole adapter where there are parameters (bank, optim).
"""

from __future__ import annotations

from trials.engines.packed.prepare import prepare as prepare

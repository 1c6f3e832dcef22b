"""Trackers: W&B and TensorBoard follow a sweep, each in a process of its own.

`observer` tells the process which trial has changed; `process` reads the rest from our tables and
shows it, through `follow`, to `wandb` or `tensorboard`. `python -m sweep.tracking` does it by hand.
"""

from __future__ import annotations

NAMES = {"wandb": "W&B", "tensorboard": "TensorBoard"}

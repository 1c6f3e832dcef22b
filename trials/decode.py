"""Greedy decoding whose steps CUDA records once and replays.

A step is a thousand small launches, which a host makes ten times more slowly than a device does the
work. Recorded steps need tensors that stay where they are: a cache of keys and values of full size,
and every count on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, StaticLayer

from trials.base.devices import recording_stream

RESCALED = ("dynamic", "longrope")  # kinds of rotary positions
LOOK = 8  # steps between two looks at whether every row has ended


def recordable(model: Any) -> bool:
    """Whether a model's steps are known to read keys and values alone, and nothing on the host."""
    known = getattr(model, "_can_compile_fullgraph", False)  # the library's own word for it
    state = getattr(model, "_is_stateful", True)
    return bool(known and not state and not _rescaled(model.config.get_text_config().to_dict()))


def _rescaled(config: Any) -> bool:
    """Whether angles of positions depend on how long the text is, which the host looks up."""
    if not isinstance(config, dict):
        return False
    return config.get("rope_type", config.get("type")) in RESCALED or any(
        _rescaled(value) for value in config.values())


@torch.no_grad()
def decoded(
    model: Any, ids: Tensor, real: Tensor, *, most: int, ends: Sequence[int], records: bool
) -> Tensor:
    """The tokens that follow each row of `ids` `[rows, width]`, at most so many: `[rows, n]`.

    `real` is 1 where `ids` holds a token and 0 where it is padded, on the left. Rows go on behind
    an end, until all have met one. The result is on the CPU. `records` asks for a CUDA graph.
    The model is one of those that are `recordable`, or at least decode as those do.
    """
    rows, width = ids.shape
    count = model.config.get_text_config().num_hidden_layers
    # A sliding window is the mask's affair: its own layers count on the host.
    cache = Cache(layers=[StaticLayer(max_cache_len=width + most) for _ in range(count)])
    written, at = ids.new_zeros(rows, most), ids.new_zeros(1)
    mask, place = pad(real, (0, most), value=1), (real.cumsum(1) - 1).clamp(min=0)
    token = _next(model, ids, mask, place, cache)
    place = place[:, -1:].clone()

    def step() -> None:
        written.index_copy_(1, at, token)
        at.add_(1)
        place.add_(1)
        token.copy_(_next(model, token, mask, place, cache))

    step()
    again = _recorded(step, ids.device) if records and most > 2 else step
    made = 1
    while made < most and not (made % LOOK == 0 and _ended(written[:, :made], ends)):
        again()
        made += 1
    return written[:, :made].cpu()  # what is recorded must outlive the device's work


def _next(model: Any, ids: Tensor, mask: Tensor, place: Tensor, cache: Cache) -> Tensor:
    """The most likely token behind each row: `[rows, 1]`."""
    found = model(input_ids=ids, attention_mask=mask, position_ids=place, past_key_values=cache,
                  use_cache=True, logits_to_keep=1)
    best: Tensor = found.logits[:, -1:].argmax(-1)
    return best


def _ended(written: Tensor, ends: Sequence[int]) -> bool:
    return bool(torch.isin(written, written.new_tensor(ends)).any(1).all())


def _recorded(step: Callable[[], None], device: torch.device) -> Callable[[], Any]:
    """The step as a CUDA graph; it is not done here."""
    graph: Any = torch.cuda.CUDAGraph()
    stream = recording_stream(device)
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        step()
    return graph.replay  # type: ignore[no-any-return]

"""What a model is asked to write: the last completion, behind all that came before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trials.base import Base
from trials.data.examples import Example
from trials.generate import samples


class Writer:
    """A model that notes what it is asked and writes nothing."""

    training = False
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        self.asked += input_ids.tolist()
        return input_ids


@pytest.mark.parametrize(
    ("mask", "asked"),
    [
        ([0, 0, 0, 1, 1], [5, 6, 7]),
        ([0, 0, 1, 0, 1], [5, 6, 7, 8]),  # a conversation: its last answer
        ([0, 1, 1, 1, 1], [5]),  # a text without a prompt
    ],
)
def test_the_last_completion_is_asked_for(
    plain_base: Base, mask: list[int], asked: list[int]
) -> None:
    writer = Writer()
    example = Example((5, 6, 7, 8, 9), tuple(map(bool, mask)), "asked", "wanted")
    [sample] = samples(writer, plain_base.tokenizer, [example], torch.float32)
    assert writer.asked == [asked]
    assert (sample.prompt, sample.reference, sample.generated) == ("asked", "wanted", "")

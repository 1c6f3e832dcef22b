"""The TRL engine on bases that are not as they should be: own dropout, no finite loss, packing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bases import random_base
from safetensors.torch import load_file, save_file
from tiny import Recorder, Tiny, made_in, write_data

from trials.contract import InputError
from trials.worker import work


@pytest.mark.parametrize("kind", ["GPT2", "OPT"])
def test_a_bases_own_dropout_is_off(tmp_path: Path, kind: str) -> None:
    """It would draw from one generator for all rows: the micro-batch would change a trial."""
    folder = Path(random_base(tmp_path / "base", kind))
    tiny = Tiny(folder, write_data(tmp_path / "data.jsonl"), "none")
    whole, cut = (tiny.trial(k, batch_size=16, micro_batch_size=m) for k, m in enumerate((16, 4)))
    driver = Recorder([whole, cut])
    work(tiny.assignment(), driver)
    assert driver.losses(1) == pytest.approx(driver.losses(0), rel=2e-5)


def test_a_base_without_a_finite_loss_is_refused(tmp_path: Path) -> None:
    tiny = made_in(tmp_path)
    weights = load_file(tiny.base / "model.safetensors")
    weights["model.norm.weight"] *= float("nan")
    save_file(weights, tiny.base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="loss is nan in fp32.* Type model.dtype=bf16 or"):
        work(tiny.assignment(), Recorder())


def test_packing_is_refused_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def deaf(self: Any, **inputs: Any) -> Any:
        return forward(self, **{k: v for k, v in inputs.items() if k != "position_ids"})

    monkeypatch.setattr(LlamaForCausalLM, "forward", deaf)
    tiny = made_in(tmp_path)
    driver = Recorder()
    with pytest.raises(InputError, match="Type train.packing=false"):
        work(replace(tiny.assignment(), packing=True), driver)
    assert driver.setup is None

"""What a model writes by itself: greedy completions of evaluation prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trials.contract import Sample
from trials.data.examples import Example
from trials.evaluate import computing

MARGIN = 2  # times as long as the reference, so that a completion that does not end is seen
LONGEST = 256  # tokens


def samples(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    dtype: torch.dtype,
) -> tuple[Sample, ...]:
    """The model's own completions of the examples' prompts."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), computing(model.device, dtype):
            return tuple(_sample(model, tokenizer, example) for example in examples)
    finally:
        model.train(training)


def _sample(
    model: Any, tokenizer: PreTrainedTokenizerBase, example: Example
) -> Sample:
    prompt = _prompt(example)
    ids = torch.tensor([prompt], device=model.device)
    longest = min(LONGEST, max(1, MARGIN * (len(example.input_ids) - len(prompt))))
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=longest,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    text = tokenizer.decode(written[0, len(prompt):], skip_special_tokens=True)
    return Sample(prompt=example.prompt, reference=example.completion, generated=str(text))


def _prompt(example: Example) -> list[int]:
    """All before the last completion; of a conversation, its last answer."""
    mask = example.loss_mask
    begins = [at for at in range(1, len(mask)) if mask[at] and not mask[at - 1]]
    return list(example.input_ids[: begins[-1]])

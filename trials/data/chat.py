"""Messages -> text by the model's own chat template, with loss on what the assistant says.

Loss is on every assistant turn: from where the template asks the assistant to speak to the mark
that ends its turn. The places are found by writing the conversation once more with a placeholder
for one turn's content, so any template works that puts contents where they belong.
"""

from __future__ import annotations

import datetime
import functools
import json
from typing import Any

from trials.contract import InputError
from trials.data.tokens import Text
from trials.hub import in_short

# Templates that tell the model today's date (Llama 3's, for one) would give other data tomorrow, so
# they read this clock instead of the library's.
TODAY = datetime.datetime(2024, 7, 26)  # Llama 3's own date where there is no clock
_PARTS = "".join(f".replace('%{part}', '{TODAY:%{part}}')" for part in "aAbBdejmyYHIMSp")
_DATE = f"format.replace('%-', '%'){_PARTS}"
CLOCK = f"{{% macro strftime_now(format) %}}{{{{ {_DATE} }}}}{{% endmacro %}}\n"
PLACEHOLDER = "\u2039turn\u203a"  # no template looks for it, and trimming leaves it whole
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
Message = dict[str, str]


class Unusable(Exception):
    """Why a conversation cannot be written, to follow "each"."""


class Chat:
    """Writes conversations by one tokenizer's template. InputError if it has none."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise InputError(
                "data.format=chat: this model has no chat template, so it does not know how to "
                "write messages. Take an instruct or chat version of the model, or type "
                "data.format=completion (or alpaca) with data that has such columns."
            )
        self._template = CLOCK + tokenizer.get_chat_template()
        self._refusal: str | None = None  # the first one, which stands for all

    def text(self, item: Any) -> Text | str:
        """A conversation as pieces with loss or not, up to the assistant's last turn.

        A conversation that the template refuses or rewrites gives the reason instead.
        """
        try:
            return self._text(item)
        except Unusable as error:
            return str(error)

    def _text(self, item: Any) -> Text | str:
        messages = _messages(item)
        spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        spoken = [i for i in spoken if messages[i]["content"].strip()]
        if not spoken:
            return "has no assistant turn"
        messages = messages[: spoken[-1] + 1]
        whole = self._render(messages)
        spans = [self._span(whole, messages, index) for index in spoken]
        return Text(_pieces(whole, spans), rendered=True)

    def _span(self, whole: str, messages: list[Message], index: int) -> tuple[int, int]:
        """Where in `whole` the assistant's turn begins and ends."""
        marked = [*messages]
        marked[index] = {**messages[index], "content": PLACEHOLDER}
        before, _, after = self._render(marked).partition(PLACEHOLDER)
        start = self._start(whole, messages[:index], before)
        end = len(whole) - len(after)
        if start is None or not whole.endswith(after) or end <= start:
            raise Unusable(
                "is rewritten by this model's chat template, so what the assistant said cannot be "
                "told from the rest; another model, or data.format=completion, may take it"
            )
        return start, end + (len(self._ending) if after.startswith(self._ending) else 0)

    def _start(self, whole: str, messages: list[Message], before: str) -> int | None:
        asked = self._render(messages, add_generation_prompt=True)
        if asked != self._render(messages) and whole.startswith(asked):
            return len(asked)
        # The template has no words of its own to ask with. A space before the content is written
        # by the assistant: tokenizers put it into the next word.
        return len(before.rstrip(" ")) if whole.startswith(before) else None

    @functools.cached_property
    def _ending(self) -> str:
        """What the template writes at the end of the assistant's turn."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PLACEHOLDER}]
        return self._render(turns).partition(PLACEHOLDER)[2].rstrip()

    def _render(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt,
                chat_template=self._template,
            ))
        except Exception as error:
            roles = ", ".join(message["role"] for message in messages)
            self._refusal = self._refusal or f"a conversation of {roles}: {in_short(error)}"
            raise Unusable(
                f"is refused by this model's chat template, as {self._refusal.rstrip('.')}"
            ) from error


def _pieces(whole: str, spans: list[tuple[int, int]]) -> tuple[tuple[str, bool], ...]:
    pieces, at = [], 0
    for start, end in spans:
        pieces += [(whole[at:start], False), (whole[start:end], True)]
        at = end
    return tuple((text, has_loss) for text, has_loss in [*pieces, (whole[at:], False)] if text)


def _messages(item: Any) -> list[Message]:
    if isinstance(item, str):
        try:
            item = json.loads(item, parse_constant=lambda _: None)
        except json.JSONDecodeError:
            return []
    turns = item.get("messages", []) if isinstance(item, dict) else item
    return [_message(turn) for turn in turns or [] if isinstance(turn, dict)]


def _message(turn: dict[str, Any]) -> Message:
    """OpenAI's {role, content} or ShareGPT's {from, value}, text alone."""
    role = str(turn.get("role") or turn.get("from") or "user")
    content = turn.get("content") if "content" in turn else turn.get("value")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return {"role": ROLES.get(role, role), "content": str(content or "")}

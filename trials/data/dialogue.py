"""Dialogues to summarise, as in customer service: any common shape of turns -> clean lines of text.

The cleaning is the one usual for TweetSumm: links, user names, agents' signatures ("^AB") and
repeated white space go. Turns may be a string, a list of {speaker, text}, a list of strings,
TweetSumm's own nesting ({"turns": [{"is_agent", "sentences"}]}) or DialogStudio's pairs
({"user utterance", "system response"}); any of it may also be JSON in a string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

SPEAKERS = ("speaker", "role", "from", "author", "name")
SAYINGS = ("text", "content", "utterance", "value", "sentences", "message")
INNER = ("turns", "dialog", "dialogue", "conversation", "log", "messages")
SUMMARIES = ("abstractive_summaries", "abstractive", "summary", "summaries", "text")
PAIRS = (("user", "user utterance"), ("agent", "system response"))

PROMPT = (
    "Below is a conversation between a customer and an agent. Write a summary of the conversation."
    "\n\n### Conversation:\n{turns}\n\n### Summary:\n"
)


def conversation(item: Any) -> str:
    """The turns as clean lines, "speaker: text" where the speaker is known."""
    lines = ((speaker, clean(text)) for speaker, text in _turns(_parsed(item)))
    return "\n".join(f"{speaker}: {text}" if speaker else text for speaker, text in lines if text)


def summary(item: Any) -> str:
    """One summary as text: a string as it is, of a list the first, of sentences all of them."""
    item = _parsed(item)
    if isinstance(item, dict):
        known = next((item[name] for name in SUMMARIES if item.get(name)), None)
        return summary(known) if known is not None else ""
    if isinstance(item, list):
        if item and all(isinstance(entry, str) for entry in item):
            return _spaced(" ".join(item))
        return next((text for entry in item if (text := summary(entry))), "")
    return _spaced(item) if isinstance(item, str) else ""


def clean(text: str) -> str:
    """Without links, user names, signatures and repeated white space."""
    text = re.sub(r"(https?://|www\.)\S+", "", text)
    text = re.sub(r"(?<!\w)@\w+", "", text)  # names and the numbers that stand for them, no e-mails
    text = re.sub(r"(?<!\w)\^\w{1,3}\b", "", text)  # "^AB", an agent's initials
    return _spaced(text)


def _spaced(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _parsed(item: Any) -> Any:
    """JSON in a string becomes what it says; any other string stays."""
    if isinstance(item, str) and item.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(item, parse_constant=lambda _: None)
        except json.JSONDecodeError:
            return item
    return item


def _turns(item: Any) -> Iterator[tuple[str, str]]:
    if isinstance(item, str):
        yield from (("", line) for line in item.splitlines())
    elif isinstance(item, list):
        for entry in item:
            yield from _turn(entry)
    elif isinstance(item, dict):
        inner = next((item[name] for name in INNER if name in item), None)
        yield from _turns(inner)


def _turn(entry: Any) -> Iterator[tuple[str, str]]:
    if isinstance(entry, str):
        yield "", entry
    elif isinstance(entry, dict) and any(name in entry for _, name in PAIRS):
        yield from ((speaker, str(entry.get(name) or "")) for speaker, name in PAIRS)
    elif isinstance(entry, dict):
        said: Any = next((entry[name] for name in SAYINGS if entry.get(name)), "")
        yield _speaker(entry), " ".join(map(str, said)) if isinstance(said, list) else str(said)


def _speaker(entry: dict[str, Any]) -> str:
    if isinstance(entry.get("is_agent"), bool):
        return "agent" if entry["is_agent"] else "user"
    return str(next((entry[name] for name in SPEAKERS if entry.get(name)), ""))

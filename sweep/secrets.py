"""Passwords, keys and tokens: found by their name or their place in a URL, and hidden."""

from __future__ import annotations

import re

_WORDS = "pass|pwd|token|secret|key|credential|signature"
_END = r"\s"  # what a URL ends at, within a text


def masked(text: str) -> str:
    """The text with passwords of URLs hidden."""
    text = re.sub(rf"(://[^/@{_END}:]*):[^{_END}]*@", r"\1:***@", text)  # up to the last @
    return re.sub(rf"([?&][^=&{_END}]*(?:{_WORDS})[^=&{_END}]*)=[^&{_END}]+", r"\1=***", text,
                  flags=re.IGNORECASE)  # fmt: skip


def in_url(text: str) -> bool:
    """Whether the text is a URL that carries a user or a password."""
    return masked(text) != text or bool(re.search(r"://[^/@\s]+@", text))


def is_secret(name: str) -> bool:
    """Whether a key's name says that its value is nobody's business."""
    return bool(re.search(_WORDS, name, re.IGNORECASE))

"""Passwords, keys and tokens: found by their name or their place in a URL, and hidden."""

from __future__ import annotations

import re


def masked(text: str) -> str:
    """The text with passwords of URLs hidden."""
    text = re.sub(r"(://[^/@\s:]*):[^@\s]*@", r"\1:***@", text)
    return re.sub(r"([?&][^=&\s]*(?:pass|token|secret|key)[^=&\s]*)=[^&\s]+", r"\1=***", text)


def is_secret(name: str) -> bool:
    """Whether a key's name says that its value is nobody's business."""
    return bool(re.search(r"key|token|password|passwd|secret|credential", name, re.IGNORECASE))

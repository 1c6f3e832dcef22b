"""Passwords, keys and tokens: found by their name, shape or place in a URL, and hidden."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from trials.contract import InputError

_WORDS = "pass|pwd|token|secret|key|credential|signature"
_END = r"\s"  # what a URL ends at, within a text
_SHAPES = re.compile(  # of services that a sweep meets: hubs, clouds, code hosts
    r"\b(?:hf_|api_org_|sk-(?:[a-z]+-)?|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|AKIA|AIza)"
    r"[A-Za-z0-9_]{16,}"
)
_LEAST = 12  # characters of a secret in the environment; "true" and "disabled" are none


def masked(text: str) -> str:
    """The text with passwords of URLs, tokens and the environment's own secrets hidden."""
    return _SHAPES.sub("***", _without(_environment(), _masked_urls(text)))


def in_url(text: str) -> bool:
    """Whether the text is a URL that carries a user or a password."""
    return _masked_urls(text) != text or bool(re.search(r"://[^/@\s]+@", text))


def refuse_secrets(values: Mapping[str, Any]) -> None:
    """Raises `InputError` for a setting that is a secret: all but `storage` stand in results."""
    for name, value in values.items():
        texts = [text for text in _listed(value) if isinstance(text, str) and text]
        if name == "storage" or not any(is_secret(name) or masked(text) != text for text in texts):
            continue
        raise InputError(
            f"{name}=***: this looks like a password, a key or a token, and what is set is written "
            f"into every result. Leave {name} out and log in by the environment instead, with "
            "HF_TOKEN=... or WANDB_API_KEY=..."
        )


def is_secret(name: str) -> bool:
    """Whether a key's name says that its value is nobody's business."""
    return bool(re.search(_WORDS, name, re.IGNORECASE))


def _masked_urls(text: str) -> str:
    text = re.sub(rf"(://[^/@{_END}:]*):[^{_END}]*@", r"\1:***@", text)  # up to the last @
    return re.sub(rf"([?&][^=&{_END}]*(?:{_WORDS})[^=&{_END}]*)=[^&{_END}]+", r"\1=***", text,
                  flags=re.IGNORECASE)  # fmt: skip


def _environment() -> list[str]:
    """Values of variables that are called like secrets and are no paths; the longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if is_secret(name) and len(value) >= _LEAST and not value.startswith(("/", "~", "."))
    }
    return sorted(found, key=len, reverse=True)


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _without(secrets: list[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text

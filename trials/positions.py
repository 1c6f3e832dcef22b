"""How long a text a base can read, from its config.json alone: known before its weights are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trials.contract import DataConfig, InputError, ModelConfig
from trials.demo import BASE


def check_length(data: DataConfig, model: ModelConfig) -> None:
    """Raises InputError where samples may be longer than the base has positions.

    A base whose config.json cannot be read is left to whoever loads it, who can say why.
    """
    check_positions(data, model.name, positions(_settings(model)))


def check_positions(data: DataConfig, name: str, there: int | None) -> None:
    """Likewise, where the number of positions is at hand (None: without a limit)."""
    if there is not None and data.max_length > there:
        raise InputError(
            f"data.max_length={data.max_length}: {name} has only {there} positions. "
            f"Type data.max_length={there} or less."
        )


def positions(settings: dict[str, Any]) -> int | None:
    """The positions that a config.json names, if it does."""
    text = settings.get("text_config")  # of a base that also sees or hears
    there = (text if isinstance(text, dict) else settings).get("max_position_embeddings")
    return there if isinstance(there, int) else None


def _settings(model: ModelConfig) -> dict[str, Any]:
    folder = BASE if model.name == "demo" else Path(model.name).expanduser()
    try:
        file = folder / "config.json" if folder.exists() else _from_hub(model)
        settings = json.loads(file.read_text())
    except Exception:
        return {}
    return settings if isinstance(settings, dict) else {}


def _from_hub(model: ModelConfig) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model.name, "config.json", revision=model.revision))

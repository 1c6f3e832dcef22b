"""The embedded default: a generated pricing task (`text`), and its small base (`pretrain`)."""

from pathlib import Path

BASE = Path(__file__).parent.parent / "assets" / "demo"  # config.json, weights and tokenizer

"""Dialogues: every common shape of turns and of summaries, and the cleaning."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trials.data.dialogue import clean, conversation, summary

LINES = "user: It broke.\nagent: Try this."


@pytest.mark.parametrize(
    "turns",
    [
        "user: It broke.\n\nagent: Try   this.",
        ["user: It broke.", "agent: Try this."],
        [{"role": "user", "content": "It broke."}, {"role": "agent", "content": "Try this."}],
        [{"from": "user", "value": "It broke."}, {"from": "agent", "value": "Try this."}],
        {"dialog_id": 1, "turns": [{"is_agent": False, "sentences": ["It", "broke."]},
                                   {"is_agent": True, "sentences": ["Try this."]}]},
        {"dialog": {"turns": [{"is_agent": False, "sentences": ["It broke."]},
                              {"is_agent": True, "sentences": ["Try this. ^AB"]}]}},
        [{"turn id": 1, "user utterance": "It broke.", "system response": "Try this."}],
    ],
)
def test_shapes_of_turns(turns: Any) -> None:
    assert conversation(turns) == LINES
    assert conversation(json.dumps(turns) if not isinstance(turns, str) else turns) == LINES


@pytest.mark.parametrize("turns", [None, "", [], {}, 3, [{"speaker": "user", "text": " "}]])
def test_no_turns(turns: Any) -> None:
    assert conversation(turns) == ""


@pytest.mark.parametrize(
    "item",
    [
        "It broke. It was  mended.",
        ["It broke.", "It was mended."],
        [["It broke.", "It was mended."], ["Another one."]],
        [{"extractive": [], "abstractive": ["It broke.", "It was mended."]}],
        json.dumps({"summaries": {"abstractive_summaries": [["It broke.", "It was mended."]]}}),
    ],
)
def test_shapes_of_summaries(item: Any) -> None:
    assert summary(item) == "It broke. It was mended."


@pytest.mark.parametrize("item", [None, "", [], {}, [{}], 3])
def test_no_summary(item: Any) -> None:
    assert summary(item) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@AppleSupport @115858 help", "help"),
        ("see https://t.co/abc and www.x.org/y now", "see and now"),
        ("done ^AB", "done"),
        ("done ^MM.", "done ."),
        ("a\t b\n c", "a b c"),
        ("mail me@home.org", "mail me@home.org"),
        ("2^10 is 1024", "2^10 is 1024"),
    ],
)
def test_cleaning(text: str, expected: str) -> None:
    assert clean(text) == expected

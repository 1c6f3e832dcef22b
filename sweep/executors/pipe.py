"""What crosses the pipe between a driver and a worker's process: JSON, one message, one answer.

A message is `{"say": <method of trials.contract.Driver>, ...}`; nothing is unpickled.
"""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from typing import Any

from trials.contract import (
    Driver,
    InputError,
    Report,
    Setup,
    TrialConfig,
    TrialResult,
    Turn,
    Verdict,
    from_json,
    to_json,
)

Message = dict[str, Any]


def send(connection: Connection, message: Message) -> None:
    """Sends one message."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> Message:
    """Waits for one message. Raises EOFError or OSError when the other side is gone."""
    message: Message = json.loads(connection.recv_bytes())
    return message


class PipeDriver:
    """The driver as a worker's process sees it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def progress(self, what: str, done: int, total: int) -> None:
        """See `trials.contract.Driver`, here and below."""
        self._ask({"say": "progress", "what": what, "done": done, "total": total})

    def alive(self, trial: int, attempt: int) -> Verdict:
        """Whether to go on."""
        answer = self._ask({"say": "alive", "trial": trial, "attempt": attempt})
        return from_json(Verdict, answer["value"])

    def note(self, text: str) -> None:
        """Shown to the user."""
        self._ask({"say": "note", "text": text})

    def prepared(self, setup: Setup) -> None:
        """Moves on only if the driver agrees."""
        answer = self._ask({"say": "prepared", "value": to_json(setup)})
        if "input_error" in answer:
            raise InputError(answer["input_error"])
        self.log_to(answer.get("log"))

    def next_trial(self) -> TrialConfig | Turn:
        """A trial, WAIT or DONE."""
        answer = self._ask({"say": "next_trial"})
        if "turn" in answer:
            return Turn(answer["turn"])
        return from_json(TrialConfig, answer["value"])

    def report(self, report: Report) -> Verdict:
        """Whether to go on."""
        return from_json(Verdict, self._ask({"say": "report", "value": to_json(report)})["value"])

    def finish(self, result: TrialResult) -> None:
        """Ends a trial."""
        self._ask({"say": "finish", "value": to_json(result)})

    def log_to(self, path: str | None) -> None:
        """Where this process writes from now on; the child's entry sets it."""

    def _ask(self, message: Message) -> Message:
        send(self._connection, message)
        return receive(self._connection)


def answer(driver: Driver, message: Message) -> Message:
    """The driver's answer to a worker's message."""
    say, value = message["say"], message.get("value", "")
    if say == "progress":
        driver.progress(message["what"], message["done"], message["total"])
    elif say == "note":
        driver.note(message["text"])
    elif say == "alive":
        return {"value": to_json(driver.alive(message["trial"], message["attempt"]))}
    elif say == "prepared":
        driver.prepared(from_json(Setup, value))
    elif say == "report":
        return {"value": to_json(driver.report(from_json(Report, value)))}
    elif say == "finish":
        driver.finish(from_json(TrialResult, value))
    elif say == "next_trial":
        turn = driver.next_trial()
        return {"turn": turn.value} if isinstance(turn, Turn) else {"value": to_json(turn)}
    else:
        raise ValueError(f"a worker said {say!r}, which is no message")
    return {}

"""Which column plays which role: as the user named it, or guessed from well-known names."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from trials.contract import DataConfig, InputError
from trials.data.rows import Row


@dataclass(frozen=True, slots=True)
class Role:
    """A part that a column plays: the setting that names it, and the names it often goes by."""

    setting: str
    names: tuple[str, ...]
    required: bool = True


NEAR = 0.75  # how alike names must be: at 0.7, "completion" is near "question"
PROMPTS = ("prompt", "question", "instruction", "query", "input", "source", "problem")
COMPLETIONS = ("completion", "response", "answer", "output", "target", "label", "solution")
ROLES: dict[str, dict[str, Role]] = {
    "demo": {},
    "text": {"text": Role("text_column", ("text", "content", "document", "body"))},
    "completion": {
        "prompt": Role("prompt_column", PROMPTS),
        "completion": Role("completion_column", COMPLETIONS),
    },
    "alpaca": {
        "instruction": Role("prompt_column", ("instruction", "prompt", "question")),
        "input": Role("input_column", ("input", "context"), required=False),
        "output": Role("completion_column", ("output", "response", "answer", "completion")),
    },
    "chat": {
        "messages": Role("messages_column",
                         ("messages", "conversations", "conversation", "chat", "dialog")),
    },
    "dialogue": {
        "turns": Role("messages_column", ("dialogue", "dialog", "turns", "conversation", "log",
                                          "messages", "utterances", "transcript", "text")),
        "summary": Role("completion_column", ("summary", "summaries", "abstractive_summary",
                                              "highlights", "completion", "annotations",
                                              "original dialog info")),
    },
}


def check_columns(data: DataConfig) -> None:
    """Raises InputError where one column is named for two roles."""
    settings: dict[str, str] = {}  # column -> the setting that names it
    for role in ROLES[data.format].values():
        column = getattr(data, role.setting)
        if column is not None and column in settings:
            raise InputError(
                f"data.{role.setting}={column!r}: this column is data.{settings[column]} already, "
                "and each has its own. Name another column, or leave one of the two out: then it "
                "is guessed."
            )
        settings[column] = role.setting


def resolve_columns(
    data: DataConfig, rows: Sequence[Row], where: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The column of each role, and the roles whose column was guessed.

    Raises InputError, with the columns there are, where one is missing.
    """
    if data.format not in ROLES:
        raise InputError(f"data.format={data.format!r} is unknown. Known: {', '.join(ROLES)}.")
    there = list(dict.fromkeys(column for row in rows for column in row))
    taken = {getattr(data, role.setting) for role in ROLES[data.format].values()}
    columns: dict[str, str] = {}
    guessed = []
    for role, known in ROLES[data.format].items():
        named: str | None = getattr(data, known.setting)
        if named is not None and named not in there:
            raise InputError(_missing(named, known.setting, there, where))
        column = named or _guess(known, there, taken | set(columns.values()))
        if column is not None:
            columns[role] = column
            guessed += [] if named else [role]
        elif known.required:
            raise InputError(
                f"{where}: no column looks like the {role}. Columns there are: {_listed(there)}. "
                f"Type data.{known.setting}=<one of them>."
            )
    return columns, tuple(guessed)


def with_columns(data: DataConfig, columns: dict[str, str]) -> DataConfig:
    """`data` with each role's column named."""
    settings = {ROLES[data.format][role].setting: column for role, column in columns.items()}
    return dataclasses.replace(data, **settings)  # type: ignore[arg-type]


def _guess(role: Role, there: list[str], taken: set[str]) -> str | None:
    by_name = {column.lower(): column for column in reversed(there) if column not in taken}
    return next((by_name[name] for name in role.names if name in by_name), None)


def _missing(named: str, setting: str, there: list[str], where: str) -> str:
    near = _near(named, there)
    hint = f" Did you mean {near!r}?" if near else ""
    return (
        f"data.{setting}={named!r}: {where} has no such column.{hint} "
        f"Columns there are: {_listed(there)}."
    )


def _near(named: str, there: list[str]) -> str | None:
    """The column that a typing error, another case or ending ("Questions") makes of `named`."""
    name, columns = named.lower(), {column.lower(): column for column in reversed(there)}
    close = difflib.get_close_matches(name, columns, n=1, cutoff=NEAR)
    close += [lower for lower in columns if lower.startswith(name) or name.startswith(lower)]
    return columns[close[0]] if close else None


def _listed(there: list[str]) -> str:
    return ", ".join(there) if there else "none"

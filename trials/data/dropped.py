"""What is said about rows that cannot be used: a warning that names them, or an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trials.contract import InputError
from trials.data.formats import NO_TEMPLATE

if TYPE_CHECKING:
    from trials.data.split import Side
    from trials.data.tokens import Text

NAMED = 10  # row numbers that a message names
SHOWN = 20  # characters of a text that a message shows


def check_texts(side: Side) -> None:
    """Raises InputError where no row, or too few, can be a text at all."""
    for reason, rows in side.no_text.items():
        if reason == NO_TEMPLATE and len(rows) == side.total:
            raise InputError(
                f"data.response_template={side.config.response_template!r}: found in no sample, of "
                f"{side.total} rows. Write it exactly as the texts have it, spaces included."
            )
        if len(rows) > side.config.max_dropped * side.total:
            raise InputError(
                f"{len(rows)} of {side.total} rows cannot be used: each {reason} "
                f"({_named(rows)}). {_limit(side)}"
            )


def check_cut(side: Side) -> None:
    """Raises InputError where too many samples lose their whole completion to the length limit."""
    if len(side.cut_away) > side.config.max_dropped * side.tokenised:
        raise InputError(
            f"data.max_length={side.config.max_length}: {len(side.cut_away)} of {side.tokenised} "
            f"samples have no completion token left ({_named(side.cut_away)}). Type "
            f"data.max_length={2 * side.config.max_length} or more. {_limit(side)}"
        )


def warnings(side: Side) -> list[str]:
    """What the user should know of this source, a sentence each."""
    limit = f"data.max_length={side.config.max_length}"
    said = {f"dropped: each {reason}": rows for reason, rows in side.no_text.items()}
    said[f"dropped: no completion token left within {limit}"] = side.cut_away
    said[f"shortened to {limit} tokens: their completions lose their end"] = side.shortened
    said["not trained on: equal to an evaluation row"] = side.repeated
    named = [f"{len(rows)} of {side.total} rows of {side.key} {what} ({_named(rows)})."
             for what, rows in said.items() if rows]
    return named + _run_together(side)


def _run_together(side: Side) -> list[str]:
    """Prompts and completions of the user's own columns, with no white space where they meet."""
    if side.config.format != "completion":
        return []
    found = sorted((row, text) for _, row, text in side.texts if _meets(text))
    if not found:
        return []
    prompt, completion = found[0][1].prompt[-SHOWN:], found[0][1].completion[:SHOWN]
    return [
        f"prompts run into completions: {len(found)} of {side.total} rows of {side.key} have no "
        f"white space between them, as {prompt}\u27e6{completion}\u27e7. If a model should not "
        "write it so, end the prompts with what belongs between."
    ]


def _meets(text: Text) -> bool:
    return bool(text.prompt) and not (text.prompt[-1].isspace() or text.completion[0].isspace())


def _limit(side: Side) -> str:
    return (f"The limit is data.max_dropped={side.config.max_dropped:g} of the rows; "
            "type a higher one to go on without them.")


def _named(rows: list[int]) -> str:
    first = ", ".join(str(row) for row in sorted(rows)[:NAMED])
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {first}{more}"

"""Which texts are evaluated on, which are trained on, and which are dropped and why.

Texts are taken in the order of a hash of their content: first the evaluation set, then the training
set. So the evaluation set depends neither on a seed nor on the training set's size, and identical
texts never sit on both sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trials.contract import DataConfig, InputError
from trials.data.dropped import check_cut, check_texts, warnings
from trials.data.examples import Example
from trials.data.tokens import Encoder, Text, cut

Progress = Callable[[str, int, int], None]
Texts = Sequence[Text | str]  # a string is the reason why a row is no text
Taken = list[tuple[str, Example]]  # content hash, example
Encoded = tuple[str, int, Text, list[int], list[bool]]  # content hash, row, text, ids, mask
CHUNK = 512  # texts tokenised at once, and shown in the progress


@dataclass
class Split:
    """Both sets, and what `DataFacts` says about them (JSON values, columns left out)."""

    train: list[Example]
    eval: list[Example]
    facts: dict[str, Any]


class Side:
    """The rows of one source on their way to examples, in the order of their content."""

    def __init__(self, key: str, texts: Texts, config: DataConfig) -> None:
        self.key, self.config = key, config
        self.total = len(texts)
        self.no_text: dict[str, list[int]] = {}  # reason -> rows, counted from 1
        self.cut_away: list[int] = []  # rows with no completion token left
        self.shortened: list[int] = []  # rows with a part of their completion left
        self.repeated: list[int] = []  # rows equal to an evaluation row
        self.tokenised = 0
        self.texts = self._sorted(texts)
        self._stream: Iterator[Encoded] = iter(())

    def tokenise(self, encoder: Encoder) -> None:
        """Lets `take` begin; no text is tokenised before it is taken."""
        self._stream = self._encoded(encoder)

    def take(
        self, count: int | None, loss_on: str, skip: set[str], progress: Progress
    ) -> Taken:
        """The next `count` examples (None: all), none whose hash is in `skip`.

        An evaluation set (`loss_on` "eval") takes no text twice: its hashes are added to `skip`.
        """
        taken: Taken = []
        total = len(self.texts) if count is None else count
        while len(taken) != count and (item := next(self._stream, None)) is not None:
            digest, row, text, ids, mask = item
            if digest in skip:
                self.repeated.append(row)
                continue
            if loss_on == "all":
                mask = [False] + [True] * (len(ids) - 1)
            if (example := self._cut(row, text, ids, mask)) is not None:
                taken.append((digest, example))
                if loss_on == "eval":
                    skip.add(digest)
            if self.tokenised % CHUNK == 0:
                progress("tokenising", len(taken), total)
        return taken

    def _sorted(self, texts: Texts) -> list[tuple[str, int, Text]]:
        usable = []
        for row, text in enumerate(texts, 1):
            if isinstance(text, str):
                self.no_text.setdefault(text, []).append(row)
            else:
                usable.append((_digest(text), row, text))
        return sorted(usable, key=lambda item: item[:2])

    def _encoded(self, encoder: Encoder) -> Iterator[Encoded]:
        for start in range(0, len(self.texts), CHUNK):
            chunk = self.texts[start : start + CHUNK]
            encoded = encoder.encode([text for _, _, text in chunk])
            for (digest, row, text), (ids, mask) in zip(chunk, encoded, strict=True):
                self.tokenised += 1
                yield digest, row, text, ids, mask

    def _cut(self, row: int, text: Text, ids: list[int], mask: list[bool]) -> Example | None:
        example = cut(ids, mask, text, self.config.max_length)
        if example is None:
            self.cut_away.append(row)
        elif len(ids) > self.config.max_length:
            self.shortened.append(row)
        return example


def split(
    texts: Texts, apart: Texts | None, config: DataConfig, encoder: Encoder, progress: Progress
) -> Split:
    """Tokenises and splits; `apart` are the evaluation texts where they come from elsewhere.

    Raises InputError where there are too few texts, too many dropped, or the sides overlap.
    """
    own, other = checked(texts, apart, config)
    sides = [own] if other is own else [own, other]
    for side in sides:
        side.tokenise(encoder)
    evaluated: set[str] = set()
    eval_set = other.take(config.eval_size, "eval", evaluated, progress)
    train_set = own.take(config.train_size, config.loss_on, evaluated, progress)
    for side in sides:
        check_cut(side)
    _check_enough(own, other, len(train_set), len(eval_set))
    facts = _facts(sides, train_set, eval_set)
    return Split([e for _, e in train_set], [e for _, e in eval_set], facts)


def checked(texts: Texts, apart: Texts | None, config: DataConfig) -> tuple[Side, Side]:
    """The sides to train and to evaluate on (one and the same where `apart` is None).

    Raises InputError for all that can be known of them without a tokenizer.
    """
    own = Side("data.path", texts, config)
    other = own if apart is None else Side("evaluation data", apart, config)
    for side in [own] if other is own else [own, other]:
        check_texts(side)
    if other is not own:
        _check_overlap(own, other)
    evaluated = set(list(dict.fromkeys(digest for digest, _, _ in other.texts))[: config.eval_size])
    left = sum(digest not in evaluated for digest, _, _ in own.texts)  # some may yet be cut away
    trained = left if config.train_size is None else min(left, config.train_size)
    _check_enough(own, other, trained, len(evaluated))
    return own, other


def _digest(text: Text) -> str:
    return hashlib.sha256(json.dumps(text.pieces).encode()).hexdigest()


def _check_overlap(own: Side, other: Side) -> None:
    rows = {digest: row for digest, row, _ in own.texts}
    both = [(rows[digest], row) for digest, row, _ in other.texts if digest in rows]
    if both:
        raise InputError(
            f"eval and train overlapping: {len(both)} of {other.total} evaluation rows are also "
            f"training rows (row {both[0][1]} is row {both[0][0]} there). Remove them from one "
            "side, or leave out data.eval_path and data.eval_split: then the evaluation set is "
            "taken out of data.path."
        )


def _check_enough(own: Side, other: Side, trained: int, evaluated: int) -> None:
    wanted = own.config.train_size
    if evaluated < own.config.eval_size or (other is own and not trained):
        raise InputError(_too_few(own, other, evaluated))
    if not trained:
        raise InputError(f"{own.key} has {_rows(own)}, and none that can be trained on.")
    if wanted is not None and trained < wanted:
        raise InputError(
            f"data.train_size={wanted}: more than the data has. {own.key} has {_rows(own)}; "
            "without the evaluation set, rows equal to its rows, and those that cannot be used, "
            f"{trained} are left. Type data.train_size={trained} or less."
        )


def _too_few(own: Side, other: Side, different: int) -> str:
    """That the usable rows, of which so many are `different`, do not make an evaluation set."""
    there = (f"data.eval_size={own.config.eval_size}: {other.key} has {_rows(other)}, {different} "
             "of them usable when equal ones count once.")
    if other is own and different < 2:
        return (f"{there} It needs at least two different rows: one to train on and one to "
                "evaluate on. Bring more data, or type data.eval_path=<data to evaluate on>.")
    if not different:
        return f"{there} It needs at least one."
    most = max(1, different // 5) if other is own else different
    return f"{there} Type data.eval_size={most} or less, or bring more data."


def _rows(side: Side) -> str:
    return f"{side.total} row{'s' if side.total != 1 else ''}"


def _facts(sides: list[Side], train_set: Taken, eval_set: Taken) -> dict[str, Any]:
    lengths = [len(example.input_ids) for _, example in (*train_set, *eval_set)]
    dropped = sum(len(rows) for side in sides for rows in (side.cut_away, *side.no_text.values()))
    return {
        "content_hash": _content_hash(train_set, eval_set),
        "train_examples": len(train_set),
        "eval_examples": len(eval_set),
        "mean_length": sum(lengths) / len(lengths),
        "max_length": max(lengths),
        "truncated": sum(len(side.shortened) for side in sides),
        "dropped": dropped,
        "warnings": [warning for side in sides for warning in warnings(side)],
    }


def _content_hash(train_set: Taken, eval_set: Taken) -> str:
    lines = [f"{name} {digest}\n" for name, taken in (("train", train_set), ("eval", eval_set))
             for digest, _ in taken]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]

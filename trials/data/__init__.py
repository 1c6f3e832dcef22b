"""Data set -> tokenised examples with loss masks: a training set and a fixed evaluation set.

    rows -> columns -> texts with loss marks -> split -> tokens (cached)

`check_rows` goes that way as far as it leads without a model, and imports no torch.

Which rows are which follows from their content alone, neither from the seed nor from the sizes of
the sets: so all studies on the same data evaluate on the same examples, and a larger training
subset contains the smaller one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from trials.contract import DataConfig, DataFacts, InputError, RenderedSample
from trials.data import cache, rows
from trials.data.columns import ROLES, check_columns, resolve_columns, with_columns
from trials.data.examples import Example as Example
from trials.data.examples import Examples
from trials.data.formats import formatter
from trials.data.order import order as order
from trials.data.split import Split, checked, split
from trials.data.tokens import Encoder, Text, render
from trials.positions import check_positions

if TYPE_CHECKING:
    from trials.base import Base

Progress = Callable[[str, int, int], None]  # what, done, total (0 when unknown)
VERSION = 4  # raise it whenever the same rows would give other examples
LOSS_ON = ("completion", "all")


@dataclass
class Data:
    """Examples ready to train on; `config` says exactly which they are."""

    train: Examples
    eval: Examples
    config: DataConfig
    facts: DataFacts
    rendered: RenderedSample


def check_data(data: DataConfig) -> None:
    """Raises InputError for what is wrong without a look at rows or model: settings, a path."""
    if data.format not in ROLES:
        raise InputError(f"data.format={data.format!r} is unknown. Known: {', '.join(ROLES)}.")
    if data.loss_on not in LOSS_ON:
        raise InputError(f"data.loss_on={data.loss_on!r} is unknown. Known: {', '.join(LOSS_ON)}.")
    for name in ("train_size", "eval_size", "max_length"):
        if (size := getattr(data, name)) is not None and size < 1:
            raise InputError(f"data.{name}={size}: it must be at least 1.")
    if not 0 <= data.max_dropped <= 1:
        raise InputError(f"data.max_dropped={data.max_dropped}: it is a share, from 0 to 1.")
    check_columns(data)
    if data.format != "demo":
        rows.check_path(data.path, "data.path")
    if data.eval_path is not None:
        rows.check_path(data.eval_path, "data.eval_path")


def check_rows(data: DataConfig, progress: Progress) -> None:
    """Reads the rows and checks what can be known of them without a model, in a second or two.

    Raises InputError as `load_data` does: files, columns, template, sizes, overlap.
    """
    check_data(data)
    if data.format == "demo":
        return
    progress("checking the data", 0, 0)
    read = _read(data, *_sources(data))
    if data.format != "chat":  # whose texts the tokenizer's template writes
        checked(*_texts(data, read, None), data)


def load_data(data: DataConfig, base: Base, seed: int, progress: Progress) -> Data:
    """Reads, checks, splits and tokenises the data for this base's tokenizer.

    The seed decides only which training example comes first (and is shown). Raises InputError for
    whatever the user can change: files, columns, template, sizes, overlap, lengths.
    """
    check_data(data)
    _check_length(data, base)
    progress("reading the data", 0, 0)
    source, eval_source = _sources(data)
    config = replace(data, path=source.path or data.path, revision=source.revision or data.revision)
    if eval_source is not None and data.eval_path is not None:
        config = replace(config, eval_path=eval_source.path)
    name = _key(config, source, eval_source, base.tokenizer)
    stored = cache.load(name)
    if stored is None:
        stored = _build(config, source, eval_source, base.tokenizer, progress)
        cache.save(name, *stored)
    return _data(config, *stored, base.tokenizer, seed)


def _sources(data: DataConfig) -> tuple[rows.Source, rows.Source | None]:
    apart = data.eval_path is not None or data.eval_split is not None
    return rows.find(data), rows.find(data, evaluation=True) if apart else None


@dataclass
class _Rows:
    """What was read: rows to train on, rows to evaluate on if apart, and the columns' roles."""

    own: list[rows.Row]
    apart: list[rows.Row] | None
    columns: dict[str, str]
    guessed: tuple[str, ...]


def _read(data: DataConfig, source: rows.Source, eval_source: rows.Source | None) -> _Rows:
    own = source.read()
    columns, guessed = resolve_columns(data, own, source.where)
    apart = None if eval_source is None else eval_source.read()
    if eval_source is not None and apart is not None:
        resolve_columns(with_columns(data, columns), apart, eval_source.where)
    return _Rows(own, apart, columns, guessed)


def _texts(
    data: DataConfig, read: _Rows, tokenizer: Any
) -> tuple[list[Text | str], list[Text | str] | None]:
    to_text = formatter(data, read.columns, tokenizer)
    apart = None if read.apart is None else [to_text(row) for row in read.apart]
    return [to_text(row) for row in read.own], apart


def _check_length(data: DataConfig, base: Base) -> None:
    settings = base.model.config.get_text_config()
    check_positions(data, base.config.name, getattr(settings, "max_position_embeddings", None))


def _key(
    config: DataConfig, source: rows.Source, eval_source: rows.Source | None, tokenizer: Any
) -> str:
    """Names everything that changes the result: file contents, settings, tokenizer, code."""
    settings = asdict(replace(config, path=None, eval_path=None, content_hash=None))
    return cache.key(
        version=VERSION,
        rows=source.identity,
        eval_rows=eval_source and eval_source.identity,
        settings=settings,
        tokenizer=_tokenizer_text(tokenizer),
    )


def _tokenizer_text(tokenizer: Any) -> list[Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    added = tokenizer("a")["input_ids"]  # what it puts around a text is not in every kind's words
    kind, template = type(tokenizer).__name__, tokenizer.chat_template
    return [kind, words, template, tokenizer.special_tokens_map, added]


def _build(
    config: DataConfig, source: rows.Source, eval_source: rows.Source | None, tokenizer: Any,
    progress: Progress,
) -> tuple[dict[str, Any], cache.Arrays]:
    read = _read(config, source, eval_source)
    found = split(*_texts(config, read, tokenizer), config, Encoder(tokenizer), progress)
    facts = {"columns": read.columns, "guessed": read.guessed, **found.facts}
    return facts, _packed(found)


def _packed(found: Split) -> cache.Arrays:
    sides = {"train": Examples.of(found.train), "eval": Examples.of(found.eval)}
    return {f"{side}/{name}": array
            for side, examples in sides.items() for name, array in examples.arrays.items()}


def _data(
    config: DataConfig, stored: dict[str, Any], arrays: cache.Arrays, tokenizer: Any, seed: int
) -> Data:
    facts = DataFacts(**{**stored, "guessed": tuple(stored["guessed"]),
                         "warnings": tuple(stored["warnings"])})
    if config.content_hash not in (None, facts.content_hash):
        raise InputError(
            f"data.path={config.path}: the data has changed: {config.content_hash} was asked for, "
            f"and it is now {facts.content_hash}. Put the old data back, or start a new study."
        )
    sides = {side: Examples({name.partition("/")[2]: array for name, array in arrays.items()
                             if name.startswith(f"{side}/")}) for side in ("train", "eval")}
    first = sides["train"][order(seed, len(sides["train"]), 0, 1)[0]]
    resolved = replace(with_columns(config, facts.columns), content_hash=facts.content_hash)
    rendered = RenderedSample(pieces=render(tokenizer, first))
    return Data(sides["train"], sides["eval"], resolved, facts, rendered)

"""Data set -> tokenised examples with loss masks: a training set and a fixed evaluation set.

    rows -> columns -> texts with loss marks -> split -> tokens (cached)

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
from trials.data.columns import ROLES, resolve_columns, with_columns
from trials.data.examples import Example as Example
from trials.data.examples import Examples
from trials.data.formats import formatter
from trials.data.order import order as order
from trials.data.split import Split, split
from trials.data.tokens import Encoder, render

if TYPE_CHECKING:
    from trials.base import Base

Progress = Callable[[str, int, int], None]  # what, done, total (0 when unknown)
VERSION = 1  # raise it whenever the same rows would give other examples
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
    if data.format != "demo":
        rows.check_path(data.path, "data.path")
    if data.eval_path is not None:
        rows.check_path(data.eval_path, "data.eval_path")


def load_data(data: DataConfig, base: Base, seed: int, progress: Progress) -> Data:
    """Reads, checks, splits and tokenises the data for this base's tokenizer.

    The seed decides only which training example comes first (and is shown). Raises InputError for
    whatever the user can change: files, columns, template, sizes, overlap, lengths.
    """
    check_data(data)
    _check_length(data, base)
    progress("reading the data", 0, 0)
    source = rows.find(data)
    apart = data.eval_path is not None or data.eval_split is not None
    eval_source = rows.find(data, evaluation=True) if apart else None
    config = replace(data, path=source.path or data.path, revision=source.revision or data.revision)
    if eval_source is not None and data.eval_path is not None:
        config = replace(config, eval_path=eval_source.path)
    name = _key(config, source, eval_source, base.tokenizer)
    stored = cache.load(name)
    if stored is None:
        stored = _build(config, source, eval_source, base.tokenizer, progress)
        cache.save(name, *stored)
    return _data(config, *stored, base.tokenizer, seed)


def _check_length(data: DataConfig, base: Base) -> None:
    positions = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and data.max_length > positions:
        raise InputError(
            f"data.max_length={data.max_length}: {base.config.name} has only {positions} positions."
            f" Type data.max_length={positions} or less."
        )


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
    return [type(tokenizer).__name__, words, tokenizer.chat_template, tokenizer.special_tokens_map]


def _build(
    config: DataConfig, source: rows.Source, eval_source: rows.Source | None, tokenizer: Any,
    progress: Progress,
) -> tuple[dict[str, Any], cache.Arrays]:
    read = source.read()
    columns, guessed = resolve_columns(config, read, source.where)
    to_text = formatter(config, columns, tokenizer)
    texts = [to_text(row) for row in read]
    apart = None
    if eval_source is not None:
        eval_rows = eval_source.read()
        resolve_columns(with_columns(config, columns), eval_rows, eval_source.where)
        apart = [to_text(row) for row in eval_rows]
    found = split(texts, apart, config, Encoder(tokenizer), progress)
    facts = {"columns": columns, "guessed": guessed, **found.facts}
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

"""Search files and the command line's sweeps -> the space, and the values that stay fixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Sweep

from sweep.config.compose import Draft, check_searchable
from sweep.config.grammar import distribution, parse_value
from sweep.config.leaves import EITHER, LEAVES, SEARCHABLE, find, show, unknown_key
from sweep.names import unknown
from sweep.space import Dimension, Space, When
from trials.contract import InputError

BLOCK = """{leaf}:
    space: interval(0, 0.1)
    when: {{train.scheduler: [linear, cosine]}}"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One leaf of the search: a sweep with its text and condition, or a plain value."""

    value: Any
    text: str = ""
    when: Mapping[str, Any] | None = None


def settle(draft: Draft, values: Mapping[str, Any]) -> tuple[Space, dict[str, Any]]:
    """The space, and `values` with the search's constants in and the searched leaves out.

    A leaf that is searched only under a condition keeps its fixed value. Raises InputError.
    """
    entries = {**dict(_entries(draft.search)), **_swept(draft)}
    fixed = {**values, **_constants(draft, entries)}
    searched = {
        name: entry
        for name, entry in entries.items()
        if isinstance(entry.value, Sweep) and name not in draft.typed
    }
    given = {*draft.typed, *entries}
    for pair in EITHER:
        _settle_pair(pair, fixed, given, searched)
    frozen = [(name, fixed[name]) for name in entries if _is_frozen(name, entries, draft)]
    dimensions, inert = _dimensions(searched, fixed, draft)
    space = Space(dimensions=dimensions, frozen=(*frozen, *((name, fixed[name]) for name in inert)))
    always = {dimension.name for dimension in dimensions if not dimension.when}
    return space, {name: value for name, value in fixed.items() if name not in always}


# --- reading -------------------------------------------------------------------------------------


def _entries(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Entry]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name in LEAVES or not isinstance(value, Mapping) or "space" in value:
            yield name, _entry(name, value)
        else:
            yield from _entries(value, f"{name}.")


def _entry(name: str, value: Any) -> Entry:
    if name not in LEAVES or name.startswith("executor."):
        raise InputError(f"In the search: {unknown_key(name, SEARCHABLE)}")
    if not isinstance(value, Mapping):
        return _parsed(name, value)
    if unknown_keys := [key for key in value if key not in ("space", "when")]:
        raise InputError(_misread(name, str(unknown_keys[0])))
    if not isinstance(value.get("space"), str) or not isinstance(value.get("when"), Mapping):
        raise InputError(f"{name}: a conditional leaf has space and when:\n\n{_block(name)}")
    entry = _parsed(name, value["space"])
    if not isinstance(entry.value, Sweep):
        raise InputError(f"{name}: space: {value['space']} is no sweep. Write choice(...), ...")
    return Entry(value=entry.value, text=entry.text, when=dict(_flat(value["when"])))


def _parsed(name: str, value: Any) -> Entry:
    """A leaf's text read by Hydra's grammar; a text that is no sweep stays as it is."""
    if isinstance(value, list) and LEAVES[name].kind != "modules":
        form = f"choice({', '.join(show(entry) for entry in value)})"
        raise InputError(f"{name}: {show(value)} is a list. To search its values write {form}.")
    if not isinstance(value, str):
        return Entry(value=value)
    if not LEAVES[name].searchable and "(" not in value:
        return Entry(value=value)
    found = parse_value(name, value)
    if isinstance(found, Sweep):
        check_searchable(name)
        return Entry(value=found, text=value)
    return Entry(value=value if LEAVES[name].kind == "str" else found)


def _swept(draft: Draft) -> dict[str, Entry]:
    """The command line's sweeps; one over a conditional leaf keeps the condition."""
    conditions = {name: entry.when for name, entry in _entries(draft.search)}
    return {
        name: Entry(value=sweep, text=text, when=conditions.get(name))
        for name, (sweep, text) in draft.swept.items()
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _block(name: str) -> str:
    group, _, key = name.rpartition(".")
    return f"{group}:\n  {BLOCK.format(leaf=key)}\n"


def _misread(name: str, key: str) -> str:
    return (
        f"{name}: {unknown('key', key, ('space', 'when'))} YAML splits a sweep at its commas where "
        f"it stands in {{...}}: write the block form.\n\n{_block(name)}"
    )


# --- settling ------------------------------------------------------------------------------------


def _constants(draft: Draft, entries: Mapping[str, Entry]) -> dict[str, Any]:
    return {
        name: LEAVES[name].convert(name, entry.value)
        for name, entry in entries.items()
        if not isinstance(entry.value, Sweep) and name not in draft.typed
    }


def _is_frozen(name: str, entries: Mapping[str, Entry], draft: Draft) -> bool:
    return name in draft.typed and isinstance(entries[name].value, Sweep)


def _settle_pair(
    pair: tuple[str, str],
    fixed: dict[str, Any],
    given: set[str],
    searched: Mapping[str, Entry],
) -> None:
    """One of the two at most: what is typed or searched displaces what a file of a group says."""
    for one, other in (pair, pair[::-1]):
        wanted = one in searched or (one in given and fixed[one] is not None)
        if wanted and other not in given:
            fixed[other] = None
    both = [name for name in pair if name in searched or fixed[name] is not None]
    if len(both) == 2:
        told = " and ".join(
            f"{name}={searched[name].text if name in searched else show(fixed[name])}"
            for name in both
        )
        raise InputError(
            f"{told} are both given, and each determines the other. "
            f"Keep one: type {both[0]}=null or {both[1]}=null."
        )
    if not both and pair[0] == "budget.examples":
        raise InputError(
            f"{pair[0]}=null and {pair[1]}=null leave a trial without a length. "
            f"Type {pair[0]}=1200 or {pair[1]}=1."
        )


def _dimensions(
    searched: Mapping[str, Entry], fixed: Mapping[str, Any], draft: Draft
) -> tuple[tuple[Dimension, ...], list[str]]:
    """All dimensions in order, and the names of those that can never be active."""
    found: dict[str, Dimension] = {}
    inert: list[str] = []
    for name in _ordered(searched):
        entry = searched[name]
        told = distribution(name, find(name), entry.value, entry.text)
        conditions = [(other, _allowed(name, other, value, found))
                      for other, value in (entry.when or {}).items()]  # fmt: skip
        dead = [c for c in conditions if c[0] not in found and fixed[c[0]] not in c[1]]
        if dead:
            _check_inert(name, dead[0][0], fixed, {*draft.typed, *inert})
            inert.append(name)
            continue
        when: When = tuple(c for c in conditions if c[0] in found)
        _check_otherwise(name, when, fixed)
        found[name] = Dimension(
            name=name,
            distribution=told,
            expression=entry.text,
            when=when,
            otherwise=fixed[name] if when else None,
        )
    return tuple(found.values()), inert


def _ordered(searched: Mapping[str, Entry]) -> list[str]:
    """The names in the order of the files, each after those its condition names."""
    ordered: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            raise InputError(f"The conditions run in a circle: {circle}. Drop one `when`.")
        for other in searched[name].when or {}:
            if other in searched:
                visit(other, (*path, name))
        if name not in ordered:
            ordered.append(name)

    for name in searched:
        visit(name, ())
    return ordered


def _allowed(
    name: str, other: str, value: Any, found: Mapping[str, Dimension]
) -> tuple[Any, ...]:
    """The values of a condition, each one that its leaf can have."""
    if other not in SEARCHABLE:
        raise InputError(f"{name}: when: {unknown_key(other, SEARCHABLE)}")
    entries = value if isinstance(value, list) else [value]
    said = f"{name}: when: {other}"
    if not entries:
        raise InputError(f"{said} names no value. Write {other}: [a, b].")
    allowed = tuple(find(other).convert(other, entry, said) for entry in entries)
    if other in found:
        points = found[other].points()
        if points is None:
            raise InputError(f"{said} is an interval, so a condition on its value has no sense.")
        if missing := [entry for entry in allowed if entry not in points]:
            raise InputError(
                f"{said}={show(missing[0])} can never be: {other} is {found[other].expression}."
            )
    return allowed


def _check_inert(name: str, other: str, fixed: Mapping[str, Any], settled: set[str]) -> None:
    if other not in settled:
        raise InputError(
            f"{name} would never be searched: its condition is on {other}, which is not searched "
            f"and is {show(fixed[other])}. Search {other} too, or type {name}={show(fixed[name])}."
        )


def _check_otherwise(name: str, when: When, fixed: Mapping[str, Any]) -> None:
    needed = name not in ("lora.alpha", "lora.alpha_ratio", "train.micro_batch_size")
    if when and needed and fixed[name] is None:
        raise InputError(
            f"{name} is searched only under a condition and has no value for the other trials. "
            f"Search it without `when`."
        )

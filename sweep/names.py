"""Names that a user may type, and what to say about one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

GROUPS = ("model", "data", "lora", "train", "budget", "search",
          "engine", "executor", "sampler", "pruner", "tracking")  # fmt: skip
_SYNONYMS: Mapping[str, str] = {  # what other tools call the same thing
    "rank": "lora.r",
    "lora_r": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "modules": "lora.target_modules",
    "use_rslora": "lora.rslora",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.scheduler",
    "warmup_ratio": "train.warmup",
    "optim": "train.optimizer",
    "num_train_epochs": "budget.epochs",
    "wall_clock_hours": "budget.max_hours",
    "timeout": "budget.max_hours",
    "max_time": "budget.max_hours",
    "max_cost": "budget.max_money",
    "gpu_hours": "budget.max_device_hours",
    "max_gpu_hours": "budget.max_device_hours",
    "gpu": "cuda",
}
ADDED = ("search", "recipe")  # groups that are not among the defaults: typed with a plus


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` most probably means, if one is near."""
    known = tuple(known)
    group, _, key = name.lower().rpartition(".")
    if meant := same_word(name, known):
        return meant
    same = [entry for entry in known if group and entry.rpartition(".")[0] == group]
    for candidates, cutoff in ((same, 0.5), (known, 0.75 if group else 0.6)):
        if close := _close(key, {entry.rpartition(".")[2]: entry for entry in candidates}, cutoff):
            return close
    return _close(name, {entry: entry for entry in known}, 0.75)


def same_word(name: str, known: Iterable[str]) -> str | None:
    """The known name that differs in case only, that others call so, or that ends so."""
    known = tuple(known)
    group, _, key = name.lower().rpartition(".")
    whole = [entry for entry in known if entry.lower() == name.lower()]
    if whole or (meant := _SYNONYMS.get(key)) not in known:
        ends = [entry for entry in known if not group and entry.lower().endswith(f".{key}")]
        return next(iter([*whole, *ends]), None)
    return meant


def _close(name: str, known: Mapping[str, str], cutoff: float) -> str | None:
    lower = {entry.lower(): whole for entry, whole in known.items()}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=cutoff)
    return lower[found[0]] if found else None


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """All known names, the one nearest to `name` first."""
    first = nearest(name, known)
    return sorted(known, key=lambda entry: (entry != first, entry))


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One message about an unknown name: the nearest known one, then all of them."""
    known = tuple(known)
    meant = nearest(name, known)
    hint = f" Did you mean {meant!r}?" if meant else ""
    return f"{what} {name!r} is unknown.{hint} Known: {', '.join(nearest_first(name, known))}."

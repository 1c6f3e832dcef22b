"""What there is to type: the help, and the list of search spaces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sweep.config.compose import Draft, conf_dir, options
from sweep.names import GROUPS
from sweep.space import Space

EXAMPLES = """\
  python -m sweep +search=lora_rank                                    a demo, no download
  python -m sweep +search=lora_rank model=llama3_1_8b data=pricer      a real model, on a GPU
  python -m sweep +search=full data=local data.path=my.jsonl data.prompt_column=question \\
      data.completion_column=answer                                    your own data
  python -m sweep +search=lora_rank dry_run=true                       a look before the leap"""
NAMES = """\
  study=NAME n_trials=16 seed=0 storage=URL results_dir=results device=auto keep_adapters=3
  samples=3 samples_at_ticks=false
  dry_run=true                    all checks, the first trials, time, memory, money; leaves nothing
  lora.r=16                       a value; on a searched leaf it freezes that dimension
  lora.r='choice(8, 16)'          a dimension of the search, no file needed
  '+search=[lora_rank,schedule]'  two spaces merged
  +recipe=STUDY                   the best configuration of a finished study"""
FLAGS = """\
  --help              this page
  --cfg job           print the configuration and stop; --package lora: only that part
  --config-dir DIR    a folder with groups of your own, such as DIR/search/mine.yaml
  -sc install=bash    completion: eval "$(sweep -sc install=bash)" (or zsh, fish)"""

CODES = """\
  0  all trials are done        2    bad input; nothing was written
  1  failed                     3    a budget is used up
                                130  interrupted; the same command goes on"""


def help_text(config_dir: Path | None = None) -> str:
    """The page that `--help` prints."""
    folders = _folders(config_dir)
    groups = [f"  {group:<10}{', '.join(options(group, folders))}" for group in GROUPS]
    return "\n\n".join(
        (
            "Hyperparameter sweeps for 4-bit QLoRA fine-tuning.",
            f"Examples\n{EXAMPLES}",
            f"Searches (+search=...)\n{spaces(folders)}",
            "Groups (group=option; conf/group/option.yaml)\n" + "\n".join(groups),
            f"Names\n{NAMES}",
            f"Options\n{FLAGS}",
            f"Exit codes\n{CODES}",
            "Results so far: python -m sweep.results\n",
        )
    )


def no_search(asked: Draft, space: Space) -> str:
    """The message for a sweep without a single dimension."""
    if space.frozen:
        told = ", ".join(name for name, _ in space.frozen)
        why = f"Nothing is left to search: {told} got a plain value each."
    elif asked.search:
        why = f"+search={'+'.join(asked.searches)} has no dimension, only plain values."
    else:
        why = "Pick a search space: python -m sweep +search=lora_rank"
    spaces_ = spaces(_folders(asked.config_dir))
    return f"{why}\n\n{spaces_}\n\nOr search a leaf without a file: lora.r='choice(8, 16)'."


def spaces(folders: Sequence[Path]) -> str:
    """The search files there are, a line on each."""
    found = options("search", folders)
    width = max(map(len, found), default=0)
    return "\n".join(f"  {name:<{width}}  {_line_on(path)}" for name, path in found.items())


def _line_on(path: Path) -> str:
    """The first comment of a search file that is not its command."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("#") and "python -m" not in line and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""


def _folders(config_dir: Path | None) -> list[Path]:
    return [conf_dir(), *([config_dir] if config_dir else [])]

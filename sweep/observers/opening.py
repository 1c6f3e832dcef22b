"""What a sweep says before its first trial: what was loaded, what will be searched.

The first example is shown as the model will see it, with what carries loss marked: wrong masking
is the classic silent error.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sweep import budget
from sweep.config import SweepConfig
from sweep.observers import Opened
from sweep.results import wording
from sweep.results.wording import clean, count, here, plural
from sweep.tracking.wandb import PROJECT, sync_command
from trials.contract import RenderedSample, Setup

PIECE_LIMIT = 600  # characters shown of each piece of the example
NAMED = 3  # dimensions in the headline; all of them follow below
OPEN, CLOSE = "⟦", "⟧"


def opening(opened: Opened) -> RenderableType:
    """Everything said once the study is open."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(opened):
        facts.add_row(name, text)
    return Group(facts, Text(), Example(opened.setup.rendered), Text())


def headline(config: SweepConfig) -> str:
    """The sweep in one line, known before anything is loaded."""
    names = [clean(d.name) for d in config.space.dimensions]
    over = ", ".join(names) if len(names) <= NAMED else f"{len(names)} dimensions"
    return f"sweep {clean(config.study)}: {plural(config.limits.n_trials, 'trial')} over {over}"


class Example:
    """The first training example; what carries loss is green, or in brackets where nothing is."""

    def __init__(self, sample: RenderedSample) -> None:
        self.sample = sample

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colour = console.color_system is not None and not console.no_color
        mark = Text("what carries loss is ", "dim")
        mark.append("green" if colour else f"in {OPEN} {CLOSE}", "bold green" if colour else "")
        yield Text("the first example as the model sees it; ", "dim") + mark
        pieces = (_piece(text, loss, colour) for text, loss in _joined(self.sample))
        yield Padding(Text("").join(pieces), (0, 0, 0, 2))


def _joined(sample: RenderedSample) -> Iterator[tuple[str, bool]]:
    for loss, pieces in itertools.groupby(sample.pieces, key=lambda piece: piece[1]):
        yield "".join(text for text, _ in pieces), loss


def _piece(text: str, loss: bool, colour: bool) -> Text:
    shown = clean(text, limit=PIECE_LIMIT, lines=True).replace("\n", "↵\n")
    if not loss:
        return Text(shown)
    return Text(shown, "bold green") if colour else Text(f"{OPEN}{shown}{CLOSE}")


def _facts(opened: Opened) -> Iterator[tuple[str, RenderableType]]:
    config, setup = opened.config, opened.setup
    yield "model", Text(_model(setup))
    yield "device", Text(_device(setup))
    yield from _data(setup)
    yield "baseline", Text(_baseline(setup))
    yield "budget", Text(_budget(opened))
    if limits := budget.told(config.limits, opened.used):
        yield "", Text(f"used so far: {' · '.join(limits)}")
    yield "search", _search(config)
    if config.from_recipe:
        yield "recipe", Text(f"gave {', '.join(config.from_recipe)}; typed groups and values win")
    for name, fixed in config.space.frozen:
        where = f"{clean(name)} is fixed at {wording.value(fixed)} by the command line"
        yield "fixed", Text(where, "yellow")
    for label, line in zip(("tracking", ""), _tracking(config), strict=False):
        yield label, Text(line)
    if opened.past:
        yield "resumed", Text(_resumed(opened), "cyan")


def _model(setup: Setup) -> str:
    model, facts = setup.model, setup.model_facts
    double = " doubly quantised" if model.double_quantisation else ""
    how = {"none": "not quantised"}.get(model.quantisation, f"{model.quantisation}{double}")
    revision = f" at {clean(facts.revision)[:12]}" if facts.revision else ""
    return (
        f"{clean(facts.name)}{revision} · {clean(facts.architecture)} · "
        f"{count(facts.parameters)} parameters · {how} · {wording.size(facts.loaded_bytes)} loaded"
    )


def _device(setup: Setup) -> str:
    device = setup.device
    memory = wording.size(device.memory_bytes)
    slots = f" · {plural(setup.capacity, 'trial')} at once" if setup.capacity > 1 else ""
    name = f"{clean(device.name)} ({clean(device.kind)})"
    return f"{name} · {memory} · computes in {clean(device.dtype)}{slots}"


def _data(setup: Setup) -> Iterator[tuple[str, RenderableType]]:
    data, facts = setup.data, setup.data_facts
    yield "data", Text(
        f"{clean(data.path or data.format)} · {count(facts.train_examples)} examples to train on, "
        f"{count(facts.eval_examples)} to evaluate · {facts.mean_length:.0f} tokens on average, "
        f"longest {facts.max_length}, limit {data.max_length} · loss on {clean(data.loss_on)}"
    )
    if facts.guessed:
        pairs = (f"{role} = {facts.columns.get(role, '?')!r}" for role in facts.guessed)
        yield "", Text(f"columns guessed: {clean(', '.join(pairs))}", "yellow")
    for lost, what in ((facts.truncated, "shortened"), (facts.dropped, "dropped")):
        if lost and not facts.warnings:
            yield "", Text(f"{plural(lost, 'sample')} {what} for length", "yellow")
    for warning in facts.warnings:
        yield "warning", Text(clean(warning), "bold yellow")


def _baseline(setup: Setup) -> str:
    known = setup.baseline_accuracy is not None
    exact = f" · {wording.share(setup.baseline_accuracy)} exactly right" if known else ""
    return f"the untouched base: loss {wording.loss(setup.baseline_loss)}{exact}"


def _budget(opened: Opened) -> str:
    config = opened.config
    examples, ticks = (config.values.get(f"budget.{name}") for name in ("examples", "ticks"))
    epochs = config.values.get("budget.epochs")
    much = f"{wording.value(epochs)} epochs" if epochs is not None else _examples(examples)
    prunes = "nothing is pruned"
    if config.pruner.name != "none":
        prunes = f"{clean(config.pruner.name)} prunes from tick {opened.first_rung}"
    return (
        f"{plural(config.limits.n_trials, 'trial')} of {much}, measured {ticks} times · "
        f"{clean(config.sampler.name)} proposes, {prunes}"
    )


def _examples(examples: object) -> str:
    return f"{examples:,} examples" if isinstance(examples, int) else "a searched length"


def _search(config: SweepConfig) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for dimension in config.space.dimensions:
        when = Text(" and ").join(_when(name, values) for name, values in dimension.when)
        grid.add_row(Text(clean(dimension.name), "bold"), Text(clean(dimension.expression)), when)
    points = config.space.size()
    known = "infinitely many points" if points is None else plural(points, "point")
    return Group(grid, Text(known, "dim"))


def _when(name: str, values: tuple[object, ...]) -> Text:
    return Text(f"when {clean(name)} is {' or '.join(wording.value(v) for v in values)}", "dim")


def _tracking(config: SweepConfig) -> Iterator[str]:
    if (sync := sync_command(config)) is not None:
        yield f"W&B offline; to upload it: {sync}"
    elif "wandb" in config.tracking.names:
        project = clean(config.tracking.options.get("project") or PROJECT)
        yield f"W&B online, project {project}, group {clean(config.study)}"
    if "tensorboard" in config.tracking.names:
        yield f"tensorboard --logdir {clean(here(config.study_dir))}/tensorboard"


def _resumed(opened: Opened) -> str:
    ended = [r for r in opened.past if r.outcome not in ("running", "stopped")]
    cut = len(opened.past) - len(ended)
    kept = [f"{plural(len(ended), 'trial')} of earlier runs kept"] if ended else []
    going_on = [f"{plural(cut, 'trial')} to be continued"] if cut else []
    return ", ".join(kept + going_on)

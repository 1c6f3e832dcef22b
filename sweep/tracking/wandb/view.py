"""The saved view of a study at W&B: which configuration is good, why, and what it writes.

Made by program, once for each study; what its users then change in it is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sweep.results.wording import clean
from sweep.store import TrialRecord
from sweep.tracking.facts import Study
from sweep.tracking.wandb import PROJECT

LOG_FROM = 30  # largest by smallest value from which on an axis is logarithmic
GREEN, AMBER, RED = "#2a9d55", "#e9b44c", "#c8553d"


def saved(study: Study, records: Sequence[TrialRecord], entity: str | None) -> str:
    """Makes and saves the view; its address. Raises what W&B raises."""
    workspace = specification(study, records, entity or _own_entity())
    checked(workspace)
    return str(workspace.save().url)


def specification(study: Study, records: Sequence[TrialRecord], entity: str) -> Any:
    """The view: parallel coordinates coloured by loss, importance, learning curves, samples."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    return ws.Workspace(
        entity=entity,
        project=str(study.options.get("project") or PROJECT),
        name=f"sweep {study.name}",
        sections=[
            ws.Section(name=name, is_open=True, panels=panels)
            for name, panels in _panels(study, records).items()
        ],
        settings=ws.WorkspaceSettings(x_axis="examples", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[
                expr.Metric("Group") == clean(study.record.study, limit=120),
                expr.Metric("JobType") == "trial",
            ],
            order=[expr.Ordering(expr.Summary("eval_loss"), ascending=True)],
            pinned_columns=["summary:eval_loss", "summary:outcome",
                            *map(_config_column, study.record.dimensions)],
        ),
    )  # fmt: skip


def checked(workspace: Any) -> str:
    """What would be sent, read back by its own schema. Raises ValueError if it does not fit."""
    from wandb_workspaces.workspaces.internal import WorkspaceViewspec

    text = workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    WorkspaceViewspec.model_validate_json(text)
    return str(text)


def _panels(study: Study, records: Sequence[TrialRecord]) -> dict[str, list[Any]]:
    import wandb_workspaces.reports.v2 as wr

    wide = wr.Layout(w=24, h=12)
    half = wr.Layout(w=12, h=9)
    return {
        "Which configuration": [
            wr.ParallelCoordinatesPlot(
                title="loss by configuration", columns=_columns(study, records), layout=wide,
                gradient=[wr.GradientPoint(color=c, offset=o)
                          for c, o in ((GREEN, 0), (AMBER, 50), (RED, 100))],
            ),
            wr.ParameterImportancePlot(with_respect_to="eval_loss", layout=half),
            wr.ScatterPlot(title="loss against time", x=wr.SummaryMetric("seconds"),
                           y=wr.SummaryMetric("eval_loss"), layout=half),
        ],
        "Learning curves": [
            wr.LinePlot(title=title, x="examples", y=[metric], layout=half)
            for title, metric in (("evaluation loss", "eval_loss"), ("training loss", "train_loss"))
        ],
        "Samples": [wr.WeavePanelSummaryTable(table_name="samples", layout=wide)],
        "Devices": [
            wr.LinePlot(title=title, x="examples", y=[metric], layout=half)
            for title, metric in (("utilisation", "utilisation"),
                                  ("peak memory in bytes", "peak_memory_bytes"))
        ],
    }  # fmt: skip


def _columns(study: Study, records: Sequence[TrialRecord]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    searched = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name), log=_is_log(name, records))
        for name in study.record.dimensions
    ]
    loss = wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric("eval_loss"))
    return [*searched, loss]  # the last one colours the lines


def _config_column(name: str) -> str:
    group, _, leaf = name.partition(".")
    return f"config:{group}.value.{leaf}" if leaf else f"config:{group}.value"


def _is_log(name: str, records: Sequence[TrialRecord]) -> bool:
    """Whether the values of a dimension span orders of magnitude."""
    values = [record.params.get(name) for record in records]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    above = bool(numbers) and min(numbers) > 0
    return above and math.log(max(numbers) / min(numbers)) >= math.log(LOG_FROM)


def _own_entity() -> str:
    import wandb

    return str(wandb.Api().default_entity)

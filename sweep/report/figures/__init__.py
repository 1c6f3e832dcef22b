"""The report's figures, each a plain function of a study: `figure(frames) -> plotly Figure`.

    parallel_coordinates  all knobs and the loss, brushable
    importance            what mattered, how surely, and what chance alone gives
    slices                the loss along each knob
    contour               the loss over the two knobs that matter most
    learning_curves       every trial's evaluation loss, where the pruner decided and why
    cost                  loss against time, memory and trainable parameters, with the Pareto front
    timeline              which worker and slot trained what, and when

`FIGURES` has them by name, in the order of the report. One that cannot be drawn raises `Missing`,
whose message is a sentence for people. Their data are plain lists (no binary arrays), all text that
comes from users is escaped, backgrounds are transparent and colours hold on light and dark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sweep.report.figures.contour import contour as contour
from sweep.report.figures.cost import cost as cost
from sweep.report.figures.curves import learning_curves as learning_curves
from sweep.report.figures.importance import importance as importance
from sweep.report.figures.parallel import parallel_coordinates as parallel_coordinates
from sweep.report.figures.slices import slices as slices
from sweep.report.figures.style import Missing as Missing
from sweep.report.figures.timeline import timeline as timeline
from sweep.report.frames import StudyFrames

if TYPE_CHECKING:
    import plotly.graph_objects as go

FIGURES: Mapping[str, Callable[[StudyFrames], go.Figure]] = {
    "importance": importance,
    "parallel_coordinates": parallel_coordinates,
    "slices": slices,
    "contour": contour,
    "learning_curves": learning_curves,
    "cost": cost,
    "timeline": timeline,
}

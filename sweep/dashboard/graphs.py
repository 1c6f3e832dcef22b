"""The report's figures as the dashboard's own custom graphs, in place of the last ones."""

from __future__ import annotations

import optuna
from optuna.storages import RDBStorage

from sweep.store import Store, StudyRecord

PREFIX = "sweep_"  # before the ids of our graphs
DRAWN = f"dashboard:plot_data:{PREFIX}learning_curves:0"  # is there once they have been drawn
HEIGHT = 440  # pixels; the dashboard's cards have no more
MARGIN = {"l": 40, "r": 40, "t": 60, "b": 40}
LEGEND = {"y": -0.22, "yanchor": "top"}  # below: a narrow card needs many lines for it
TITLES = {
    "importance": "What mattered, over all trials",
    "parallel_coordinates": "All trials, pruned ones dimmed",
    "slices": "Loss along each hyperparameter",
    "contour": "Loss over the two that matter most",
    "learning_curves": "Learning curves, and where trials were pruned",
    "cost": "Loss against time, memory and size",
    "timeline": "Who trained what, and when",
}


def save_graphs(store: Store, row: StudyRecord, storage: RDBStorage) -> None:
    """Draws what can be drawn; a figure that lacks its data is left as it was."""
    from optuna_dashboard import save_plotly_graph_object

    from sweep.report.figures import FIGURES, Missing
    from sweep.report.frames import read_study

    study = optuna.load_study(study_name=row.study, storage=storage)
    frames = read_study(store, row)
    for name, draw in FIGURES.items():
        try:
            figure = draw(frames)
        except Missing:
            continue
        title = {"text": TITLES.get(name, name), "x": 0.02, "y": 0.97, "yanchor": "top"}
        figure.update_layout(title=title, height=HEIGHT, margin=MARGIN, legend=LEGEND)
        figure.update_traces(selector={"type": "parcoords"}, tickfont={"shadow": "none"})
        save_plotly_graph_object(study, figure, graph_object_id=f"{PREFIX}{name}")

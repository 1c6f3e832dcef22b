"""TensorBoard: its own readers find the curves, the samples and a filled HParams view."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import sweeping
from tracked import FAULTS, command, swept, tables, ticks

from sweep.config import SweepConfig, compose
from sweep.tracking.observer import Tracking
from trials.contract import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other packages, as they are imported
    with contextlib.redirect_stderr(io.StringIO()):
        from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
        from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
        from tensorboard.context import RequestContext
        from tensorboard.plugins.base_plugin import TBContext
        from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
        from tensorboard.plugins.hparams.backend_context import Context

EVERYTHING = {"scalars": 0, "tensors": 0}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    made = sweeping.sweep_config(
        tmp_path_factory.mktemp("boards"), "tracking=tensorboard", "samples_at_ticks=true", FAULTS
    )
    assert swept(made) == []
    return made


@pytest.fixture(scope="module")
def read(config: SweepConfig) -> EventMultiplexer:
    return _read(config)


def _read(config: SweepConfig) -> EventMultiplexer:
    multiplexer = EventMultiplexer(tensor_size_guidance=EVERYTHING)
    multiplexer.AddRunsFromDirectory(str(config.study_dir / "tensorboard"))
    multiplexer.Reload()
    return multiplexer


def _points(read: EventMultiplexer, number: int, tag: str) -> list[tuple[int, float]]:
    return [
        (event.step, pytest.approx(float(event.tensor_proto.float_val[0]), rel=1e-6))
        for event in read.Tensors(f"trial-{number}", tag)
    ]


def test_each_trial_has_its_curves(config: SweepConfig, read: EventMultiplexer) -> None:
    for record in tables(config)[1]:
        finite = [(e, x) for e, x in ticks(config, record.number) if x == x]
        assert finite == _points(read, record.number, "eval_loss")
        steps = [step for step, _ in _points(read, record.number, "train_loss")]
        assert steps == sorted(set(steps)) and steps
        assert _points(read, record.number, "utilisation")


def test_samples_are_shown_as_they_are(config: SweepConfig, read: EventMultiplexer) -> None:
    written = [e.tensor_proto.string_val[0].decode() for e in read.Tensors("trial-0", "sample 0")]
    for name in ("prompt", "reference", "base", "generated"):
        assert f"**{name}**\n\n    " in written[-1]
    text = written[-1].replace("**", "")
    assert all(line.startswith("    ") for line in text.splitlines() if line and len(line) > 10)
    assert len(written) == len(tables(config)[1][0].losses)


def _hparams(config: SweepConfig, read: EventMultiplexer) -> tuple[Any, Any]:
    """The experiment and its session groups, as TensorBoard's own view asks for them."""
    folder = str(config.study_dir / "tensorboard")
    provider = MultiplexerDataProvider(read, folder)
    context = Context(TBContext(logdir=folder, data_provider=provider))
    about = api_pb2.GetExperimentRequest()
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=100)
    experiment = get_experiment.Handler(RequestContext(), context, "", about).run()
    for status in (api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING):
        request.allowed_statuses.append(status)
    for metric in experiment.metric_infos[:1]:
        request.col_params.add(metric=metric.name)
    groups = list_session_groups.Handler(RequestContext(), context, "", request).run()
    return experiment, groups


def test_the_hparams_view_is_filled(config: SweepConfig, read: EventMultiplexer) -> None:
    experiment, groups = _hparams(config, read)
    assert {info.name for info in experiment.hparam_infos} == {"lora.r", "train.learning_rate"}
    assert experiment.metric_infos[0].name.tag == "eval_loss"
    records = {f"trial {record.number}": record for record in tables(config)[1]}
    assert len(groups.session_groups) == len(records)
    for group in groups.session_groups:
        record = records[group.name]
        assert group.hparams["lora.r"].number_value == record.params["lora.r"]
        failed = record.outcome == "failed"
        status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
        assert group.sessions[0].status == status
        if record.outcome == "complete":
            assert group.metric_values[0].value == pytest.approx(record.eval_loss, rel=1e-6)


def test_a_trial_written_twice_is_one(config: SweepConfig) -> None:
    before = {n: _points(_read(config), n, "eval_loss") for n in (0, 1)}
    marks = config.study_dir / "tensorboard" / "logged.jsonl"
    marks.write_text("".join(marks.read_text().splitlines(keepends=True)[2:]))
    said = command("test", "--tracker", "tensorboard", "--storage", config.storage)
    assert said == "TensorBoard has all of test\n"
    again = _read(config)
    assert {n: [x for x, _ in _points(again, n, "eval_loss")] for n in (0, 1)} == {
        n: [x for x, _ in points] for n, points in before.items()
    }
    assert all(len(list(folder.iterdir())) == 1 for folder in _trial_folders(config))


def _trial_folders(config: SweepConfig) -> list[Path]:
    return list((config.study_dir / "tensorboard").glob("trial-*"))


def test_without_the_package_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        compose(["+search=lora_rank", "tracking=tensorboard", f"results_dir={tmp_path}"])


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    config = sweeping.sweep_config(tmp_path, "tracking=tensorboard", "n_trials=1")
    config.study_dir.mkdir(parents=True)
    (config.study_dir / "tensorboard").write_text("in the way")
    notes: list[str] = []
    sweeping.run_inline(config, Tracking("tensorboard", notes.append))
    assert tables(config)[1][0].outcome == "complete"
    assert notes and len(set(notes)) == len(notes) and "TensorBoard" in notes[0]

"""The same sweep on PostgreSQL and MySQL, and what they do to it; see `servers` for their URLs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from servers import KINDS, ask, cut_off, own_database
from sweeping import Recorder, in_optuna, prepare, ready, stored, sweep_config, take

from sweep.config import SweepConfig
from sweep.driver import SweepDriver
from sweep.ending import COMPLETE, FAILED
from sweep.report.notebook import load_study
from sweep.results.__main__ import main as results
from sweep.run import run_sweep
from sweep.store import Store
from sweep.study import open_study
from trials.contract import InputError, Outcome, Report, TrialResult, Verdict


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with own_database(request.param) as found:
        yield found


@pytest.fixture
def config(url: str, tmp_path: Path) -> SweepConfig:
    return on(url, tmp_path)


def on(url: str, folder: Path, *more: str) -> SweepConfig:
    return sweep_config(folder, "executor=inline", f"storage='{url}'", *more)


class Acting(Recorder):
    """Does something to the server after the seventh report."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act = act

    def reported(self, report: Report, verdict: Verdict) -> None:
        super().reported(report, verdict)
        if len(self.reports) == 7:
            self._act()


def same_as_on_sqlite(config: SweepConfig, folder: Path) -> None:
    calm = sweep_config(folder, "executor=inline", f"n_trials={config.limits.n_trials}")
    assert run_sweep(calm, Recorder()) == COMPLETE
    for mine, theirs in zip(stored(config)[1], stored(calm)[1], strict=True):
        for name in ("number", "params", "outcome", "reason", "losses", "eval_loss", "examples"):
            assert getattr(mine, name) == getattr(theirs, name)
    for here, there in zip(in_optuna(config), in_optuna(calm), strict=True):
        assert (here.state, here.values, here.params) == (there.state, there.values, there.params)
        assert here.intermediate_values == there.intermediate_values


def test_a_sweep_its_end_its_extension_and_its_readers(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_sweep(on(url, tmp_path), Recorder()) == COMPLETE
    again = Recorder()
    assert run_sweep(on(url, tmp_path), again) == COMPLETE and again.starts == []
    assert again.closed_with and "has all its trials already" in again.closed_with.reason
    more = on(url, tmp_path, "n_trials=12")
    assert run_sweep(more, Recorder()) == COMPLETE
    same_as_on_sqlite(more, tmp_path / "calm")
    assert run_sweep(on(url, tmp_path, "study=other", "n_trials=2"), Recorder()) == COMPLETE
    assert len(load_study("test", storage=url).trials) == 12
    assert results(["test", "--storage", url]) == 0 and "12 of 12" in capsys.readouterr().out


def test_a_dry_run_leaves_no_table(url: str, tmp_path: Path) -> None:
    assert run_sweep(on(url, tmp_path, "dry_run=true"), Recorder()) == COMPLETE
    assert tables(url) == [] and list(tmp_path.iterdir()) == []


def test_connections_that_are_cut_cost_nothing(
    url: str, config: SweepConfig, tmp_path: Path
) -> None:
    assert run_sweep(config, Acting(lambda: cut_off(url))) == COMPLETE
    same_as_on_sqlite(config, tmp_path / "calm")


def test_a_locked_table_is_waited_for_with_a_word(
    url: str, config: SweepConfig, tmp_path: Path
) -> None:
    other = sa.create_engine(url, poolclass=sa.NullPool).connect()
    postgres = url.startswith("postgresql")
    word = "lock table sweep_ticks" if postgres else "lock tables sweep_ticks write"

    class LetsGo(Acting):
        def note(self, text: str) -> None:
            super().note(text)
            other.close()

    observer = LetsGo(lambda: other.exec_driver_sql(word))
    assert run_sweep(config, observer) == COMPLETE
    waited, again = observer.notes
    assert "lock" in waited.lower() and "Trying again" in waited and "goes on" in again
    same_as_on_sqlite(config, tmp_path / "calm")


@pytest.mark.parametrize("table", ["sweep_ticks", "trial_intermediate_values"])
def test_a_table_that_is_dropped_ends_the_run_in_order(
    table: str, url: str, config: SweepConfig
) -> None:
    observer = Acting(lambda: ask(url, f"drop table {table}"))
    assert run_sweep(config, observer) == FAILED
    assert observer.closed_with and table in observer.closed_with.reason
    assert "type the same command" in observer.closed_with.reason
    assert "LINE" not in observer.closed_with.reason


def test_a_second_driver_is_refused_and_another_study_is_not(
    config: SweepConfig, url: str, tmp_path: Path
) -> None:
    driver, _ = ready(config)
    with pytest.raises(InputError, match="is being run by process"):
        run_sweep(config, Recorder())
    assert run_sweep(on(url, tmp_path, "study=other", "n_trials=2"), Recorder()) == COMPLETE
    driver.close()


def test_sweeps_that_start_together_make_the_tables_once(url: str, tmp_path: Path) -> None:
    configs = [on(url, tmp_path / str(i), f"study=s{i}") for i in range(4)]
    setup = prepare(configs[0], SweepDriver(configs[0], Recorder()).connect("w0"))
    gate, wrong = threading.Barrier(4), []

    def begin(config: SweepConfig) -> None:
        gate.wait()
        try:
            open_study(config, setup).close()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=begin, args=(config,)) for config in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    store = Store(url)
    assert sorted(study.study for study in store.studies()) == ["s0", "s1", "s2", "s3"]
    store.close()


@pytest.mark.parametrize("part", ["password", "database"])
def test_what_no_waiting_mends_is_refused_at_once(part: str, url: str, tmp_path: Path) -> None:
    wrong = sa.make_url(url).set(**{part: "hush"}).render_as_string(hide_password=False)
    with pytest.raises(InputError, match="cannot be used: .*(Type the right user|Make it there)"):
        run_sweep(on(wrong, tmp_path), Recorder())
    assert list(tmp_path.iterdir()) == []


def test_a_password_is_in_no_row_and_no_file(url: str, tmp_path: Path) -> None:
    config = on(url, tmp_path)
    notes: list[str] = []
    assert run_sweep(config) == COMPLETE
    password = sa.make_url(url).password
    assert password and notes == []
    for table in tables(url):
        assert password not in str(ask(url, f"select * from {table}"))
    for file in config.results_dir.rglob("*"):
        assert file.is_dir() or password.encode() not in file.read_bytes()


def test_any_text_can_be_kept(config: SweepConfig) -> None:
    text = "price 😀 é \0 \ud800 " + "x" * 70_000
    driver, link = ready(config)
    trial = take(link)
    link.finish(TrialResult(trial=trial.number, attempt=0, outcome=Outcome.FAILED, eval_loss=None,
                            reason=text, worker="w0"))  # fmt: skip
    driver.close()
    reason = stored(config)[1][0].reason
    assert reason and reason.startswith("price 😀 é ␀ ? x") and len(reason) == len(text)


def test_a_study_whose_name_differs_in_capitals_is_another_one(
    url: str, config: SweepConfig, tmp_path: Path
) -> None:
    assert run_sweep(config, Recorder()) == COMPLETE
    other = on(url, tmp_path / "other", "study=Test", "n_trials=2")
    if url.startswith("mysql"):
        with pytest.raises(InputError, match="takes it for 'test'"):
            run_sweep(other, Recorder())
    else:
        assert run_sweep(other, Recorder()) == COMPLETE and len(stored(other)[1]) == 2


def tables(url: str) -> list[Any]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    return sa.inspect(engine).get_table_names()

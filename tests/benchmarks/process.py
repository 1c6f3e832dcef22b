"""One process of a benchmark's case: prepares the engine and trains until the window has closed.

    python -m tests.benchmarks.process CASE.json 0 FOLDER        as `launch.py` starts it
"""

from __future__ import annotations

import ctypes
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from tests.benchmarks import plain_trl
from tests.benchmarks.case import Case, Measured, assignment, trial
from tests.benchmarks.watch import Watch
from trials.contract import InputError, from_json, to_json
from trials.engines import engine_module
from trials.garbage import settle
from trials.training.limits import out_of_memory

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def main() -> None:
    """Measures, and writes what was found; an error is a finding too."""
    case_file, index, folder = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    if sys.platform == "linux":  # no process of ours outlives the benchmark
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    case = from_json(Case, case_file.read_text())
    try:
        found = run(case, index, folder)
    except InputError as error:
        found = Measured(reason=str(error))
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        found = Measured(reason="out of memory" if out_of_memory(error) else said)
    write(found, index, folder)


def run(case: Case, index: int, folder: Path) -> Measured:
    """Prepares the engine and trains until the window has closed."""

    def together() -> bool:
        (folder / f"warm-{index}").touch()
        return len(list(folder.glob("warm-*"))) == case.processes

    def closed() -> None:
        if case.processes > 1:  # the others need its load until they have measured
            write(watch.measured(None), index, folder)

    # Far apart: processes side by side train trials of their own.
    numbers = iter(range(1000 * index, 1000 * (index + 1)))
    watch = Watch(case, (trial(case, number) for number in numbers), together, closed)
    case = _limited(case)
    module = plain_trl if case.engine == plain_trl.NAME else engine_module(case.engine)
    engine, setup = module.prepare(assignment(case), watch)
    settle()  # as a worker does
    watch.prepared(setup)
    idle = getattr(engine, "idle", None)
    if idle is not None:
        watch.opened = idle.restart
    engine.run(watch)
    return watch.measured(None if idle is None else idle.fraction)


def write(found: Measured, index: int, folder: Path) -> None:
    """Aside, then renamed: who reads it, reads all of it."""
    aside = folder / f"part-{index}"
    aside.write_text(to_json(found))
    aside.replace(folder / f"result-{index}.json")


def _limited(case: Case) -> Case:
    """The case on a device that seems as small as it asks for: the engine is told, and held to."""
    if case.memory_bytes is None or not case.on_cuda:
        return case
    from torch import cuda

    share = case.memory_bytes / cuda.get_device_properties(case.device).total_memory
    cuda.set_per_process_memory_fraction(share, case.device)
    return replace(case, options=case.options | {"memory_fraction": round(share, 4)})


if __name__ == "__main__":
    main()

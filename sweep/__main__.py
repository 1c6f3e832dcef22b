"""The command line: `python -m sweep +search=lora_rank`. `--help` says what else there is.

Hydra's `@hydra.main` is not used: it writes the run's folder before any check of ours.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn, cast

from sweep.ending import BAD_INPUT, INTERRUPTED
from sweep.results.wording import clean
from sweep.secrets import masked
from sweep.streams import Steady, goodbye, hold, tell
from trials.contract import InputError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the sweep that the command line asks for; the exit code, one of `sweep.ending`."""
    hold()
    try:
        with _signals():
            return _main(_parsed(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        tell(f"sweep: {clean(masked(str(error)), lines=True)}")
        return BAD_INPUT
    except KeyboardInterrupt:  # while there is no sweep that could end in order, or it just ends
        tell(goodbye())
        return INTERRUPTED


def _main(asked: argparse.Namespace) -> int:
    if asked.help:
        from sweep.config.listing import help_text

        _say(help_text(asked.config_dir))
    elif asked.shell_completion:
        _complete(asked.overrides)
    elif asked.cfg:
        _say(_configuration(asked))
    else:
        from sweep.config import compose

        config = compose(asked.overrides, asked.config_dir)
        from sweep.run import run_sweep

        _raise_on_signals()  # from here on there is something to give back
        return run_sweep(config)
    return 0


def _say(text: str) -> None:
    """A whole page on standard output, whoever still reads it."""
    print(text, end="", file=cast(IO[str], Steady(sys.stdout)), flush=True)


@contextmanager
def _signals() -> Iterator[None]:
    """Until the sweep runs, Ctrl-C and SIGTERM end the process where it stands.

    An exception would come out of whatever is just being imported, as a traceback or not at all.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may be told
        return
    before = {number: signal.signal(number, _leave) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(*_: object) -> None:
    os.write(2, f"{goodbye()}\n".encode())
    os._exit(INTERRUPTED)


def _raise_on_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. Type python -m sweep --help.")


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False, prog="python -m sweep")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--package", "-p")
    parser.add_argument("--resolve", action="store_true")  # it always is
    parser.add_argument("--config-dir", "-cd", type=Path)
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    asked = parser.parse_intermixed_args(list(argv))
    if asked.multirun:
        raise InputError("--multirun is not needed: lora.r=8,16 is searched as it stands.")
    return asked


def _configuration(asked: argparse.Namespace) -> str:
    """The resolved configuration, or the part of it that --package names."""
    from omegaconf import OmegaConf

    from sweep.config import as_yaml, leaf_values
    from sweep.config.compose import draft
    from sweep.names import unknown

    found = draft(asked.overrides, asked.config_dir)
    leaf_values(found.tree)
    text = as_yaml(found)
    if not asked.package:
        return text
    part = OmegaConf.select(OmegaConf.create(text), asked.package)
    if part is None:
        raise InputError(unknown("--package:", asked.package, map(str, OmegaConf.create(text))))
    return OmegaConf.to_yaml(part) if OmegaConf.is_config(part) else f"{part}\n"


def _complete(arguments: Sequence[str]) -> None:
    """Hydra's own completion: `install=bash` prints the script, `query=bash` is what it calls."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from sweep.config.compose import conf_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="sweep"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            hydra.shell_completion("config", list(arguments))
        except ValueError as error:
            raise InputError(f"{error}. Type -sc install=bash.") from None


if __name__ == "__main__":
    sys.exit(main())

"""Keeps other packages' noise out of the terminal: progress bars, warnings, chatty loggers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = (
    "accelerate",
    "bitsandbytes",  # says at import that a package `kernels` is missing
    "datasets",
    "httpx",
    "huggingface_hub",
    "peft",
    "torch.distributed",
    "transformers",
    "trl",
)


def quiet_loggers() -> None:
    """Silences the libraries' loggers below ERROR; call it before they are imported."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def quiet() -> Iterator[None]:
    """Within, libraries neither draw progress bars, nor warn, nor log below ERROR."""
    quiet_loggers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _no_progress_bars()
        yield


def _no_progress_bars() -> None:
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    quiet_loggers()  # an import may have set its own level

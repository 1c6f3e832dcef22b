"""What every test shares: caches of its own, no key, no hub; `gpu` tests skipped without one."""

from __future__ import annotations

import gc
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Ctrl-C is heard, by what tests start too: a shell's background jobs ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


gc.disable()  # until the libraries are imported, which takes a quarter less time so


def pytest_collection_finish() -> None:
    """Passes of the collector leave out the libraries: 0.4 s less for each."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skips the tests marked `gpu` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_cuda() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True, scope="session")
def apart_from_the_user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps the user's caches, keys and settings out of the tests, and the tests out of them."""
    home = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "HF_TOKEN"):
        patch.delenv(name, raising=False)
    patch.setenv("QLORA_SWEEP_CACHE", str(home / "cache"))
    patch.setenv("WANDB_CONFIG_DIR", str(home / "wandb"))
    patch.setenv("WANDB_CACHE_DIR", str(home / "wandb"))
    patch.setenv("NETRC", str(home / "netrc"))
    patch.setenv("HF_HUB_OFFLINE", "1")
    return home

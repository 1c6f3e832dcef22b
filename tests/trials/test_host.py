"""The host's memory is that of the container or job, where one is limited."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from trials import host

GIB = 2**30
UNLIMITED = {2: "max", 1: 9223372036854771712}  # by the control groups' version


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of 64 GiB, 48 of them free, with no control groups yet; where theirs are."""
    memory = SimpleNamespace(total=64 * GIB, available=48 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(host, "GROUP", tmp_path / "own")
    monkeypatch.setattr(host, "GROUPS", tmp_path / "groups")
    return tmp_path


def group(machine: Path, version: int, path: str, limit: int | str, used: int, cache: int) -> None:
    """A control group, of which `used` bytes are in use, `cache` of them given back if need be."""
    folder = machine / "groups" / ("memory" if version == 1 else "") / path
    folder.mkdir(parents=True, exist_ok=True)
    new = version == 2
    (folder / ("memory.max" if new else "memory.limit_in_bytes")).write_text(f"{limit}\n")
    (folder / ("memory.current" if new else "memory.usage_in_bytes")).write_text(f"{used}\n")
    name = "inactive_file" if new else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 4096\n{name} {cache}\n")


def within(machine: Path, version: int, path: str) -> None:
    """Puts this process into the group."""
    kinds = "memory" if version == 1 else ""
    (machine / "own").write_text(f"9:name=systemd:/\n{3 if version == 1 else 0}:{kinds}:{path}\n")


def found() -> tuple[float, float]:
    return host.total_bytes() / GIB, host.free_bytes() / GIB


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_of_what_the_groups_leave(machine: Path, version: int) -> None:
    assert found() == (64, 48)  # no control groups at all
    within(machine, version, "/slice/job")
    assert found() == (64, 48)  # nothing to be read
    group(machine, version, "slice/job", UNLIMITED[version], 2 * GIB, 0)
    assert found() == (64, 48)
    group(machine, version, "slice/job", 32 * GIB, 5 * GIB, 3 * GIB)
    assert found() == (32, 30)
    group(machine, version, "slice", 16 * GIB, 8 * GIB, GIB)  # with others in it
    assert found() == (16, 9)
    group(machine, version, "slice", 16 * GIB, 18 * GIB, GIB)
    assert found() == (16, 0)


def test_controllers_may_share_a_hierarchy_and_lines_be_odd(machine: Path) -> None:
    group(machine, 1, "job", 8 * GIB, GIB, 0)
    (machine / "own").write_bytes(b"\nnonsense\n5:pids:/\xff\n4:cpu,memory:/job\n0::/\n")
    assert found() == (8, 7)


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_sees_its_own_group_as_the_root(machine: Path, version: int) -> None:
    group(machine, version, "", 8 * GIB, GIB, 0)
    within(machine, version, "/docker/0123abc" if version == 1 else "/")
    assert found() == (8, 7)

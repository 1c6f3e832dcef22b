"""`data.path=wandb:entity/project/name:v4`: downloaded once, pinned, and clear where it cannot."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import sweeping
from wandb_stub import RemoteArtifact, WandbStub

from sweep.tracking.__main__ import main as tracking
from sweep.tracking.wandb.reference import fetch, with_data
from trials.contract import DataConfig, InputError
from trials.data import check_rows

ROWS = b"".join(b'{"prompt": "a%d", "completion": "b"}\n' % n for n in range(40))
DATA = ("data=local", "data.eval_size=5", "data.path=wandb:me/data/tickets:latest")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbStub]:
    """It has two versions of a data set."""
    monkeypatch.setenv("QLORA_SWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    stub = WandbStub()
    for key, rows, aliases in (("A0", b"{}\n", set[str]()), ("A1", ROWS, {"latest"})):
        digest = base64.b64encode(hashlib.md5(rows).digest()).decode()
        entry = {"digest": digest, "size": len(rows), "birthArtifactID": key}
        stub.files[f"/artifact/{key}/tickets.jsonl"] = rows
        stub.artifacts[key] = RemoteArtifact(
            "tickets", "dataset", digest, aliases, {},
            {"version": 1, "storagePolicy": "wandb-storage-policy-v1",
             "storagePolicyConfig": {"storageLayout": "V2"}, "contents": {"tickets.jsonl": entry}},
        )  # fmt: skip
    monkeypatch.setenv("WANDB_BASE_URL", stub.address)
    yield stub
    stub.stop()


def test_a_data_set_is_pinned_downloaded_once_and_read_by_the_worker(
    server: WandbStub, tmp_path: Path
) -> None:
    config = with_data(sweeping.sweep_config(tmp_path, *DATA))
    assert config.data.path == "wandb:me/data/tickets:v1"
    check_rows(config.data, lambda what, done, total: None)
    (tmp_path / "cache" / "wandb" / "me" / "data" / "tickets" / "v1" / "tickets.jsonl").stat()
    server.stop = lambda: None  # type: ignore[method-assign]
    server.shutdown()
    server.server_close()
    assert fetch("wandb:me/data/tickets:v1", "data.path") == "wandb:me/data/tickets:v1"


def test_what_cannot_be_had_is_said_with_what_to_type(
    server: WandbStub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match=r"tickets:v7 cannot be had from http.*data.path="):
        with_data(sweeping.sweep_config(tmp_path, DATA[0], "data.path=wandb:me/data/tickets:v7"))
    with pytest.raises(InputError, match="sweep.tracking --fetch wandb:me/data/tickets:v1"):
        check_rows(DataConfig(format="completion", path="wandb:me/data/tickets:v1"), _ignore)
    monkeypatch.delenv("WANDB_API_KEY")
    assert tracking(["--fetch", "wandb:me/data/tickets:v1"]) == 2
    assert "wandb login" in capsys.readouterr().err
    assert tracking(["--fetch", "wandb:me/../tickets:v1"]) == 2


def _ignore(what: str, done: int, total: int) -> None:
    pass

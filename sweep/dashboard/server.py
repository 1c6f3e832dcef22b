"""Optuna's dashboard on this machine alone, with our artifacts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import RDBStorage

from sweep.store.database import engine_options
from trials.contract import InputError

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")  # a page of another name that leads here is not ours
PORT = 8080  # as optuna-dashboard's own
MOST_PORT = 65535
HEADERS = [("X-Content-Type-Options", "nosniff")]
SANDBOX = ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox")
Start = Callable[..., Any]
App = Callable[[dict[str, Any], Start], Iterable[bytes]]


def open_storage(url: str) -> RDBStorage:
    """Optuna's half of a database that is there."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return RDBStorage(url, engine_kwargs=engine_options(url), skip_table_creation=True)


def application(storage: RDBStorage, folders: Sequence[Path]) -> App:
    """The dashboard over a database and the folders of artifacts."""
    import optuna_dashboard

    return _guarded(optuna_dashboard.wsgi(storage, artifact_store=Artifacts(folders)))


def serve(app: App, port: int | None) -> Server:
    """A server that listens on 127.0.0.1; `serve_forever` runs it.

    Without a port it takes 8080, or any that is free. Raises `InputError` if a given one
    cannot be or is taken.
    """
    if port is not None and not 0 <= port <= MOST_PORT:
        raise InputError(f"--port {port}: a port is 1 to {MOST_PORT}, or 0 for any that is free.")
    for wanted in (PORT, 0) if port is None else (port,):
        try:
            return make_server(HOST, wanted, app, Server, _Silent)
        except OSError as error:
            why = error.strerror or str(error)
    raise InputError(f"--port {port}: {why}. Type another one, or none to take any that is free.")


class Artifacts:
    """Optuna's artifact store over the folders of several studies."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._stores = [FileSystemArtifactStore(folder) for folder in folders]

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """The file. Raises `ArtifactNotFound`."""
        for store in self._stores:
            try:
                return store.open_reader(artifact_id)
            except ArtifactNotFound:
                continue
        raise ArtifactNotFound(f"{artifact_id} is not there any more")

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """A file that a user adds in the browser."""
        self._stores[0].write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Deletes a file, or finds that it is gone: a study can be deleted in any case."""
        for store in self._stores:
            try:
                store.remove(artifact_id)
            except ArtifactNotFound:
                continue


class Server(ThreadingMixIn, WSGIServer):
    """Answers several questions at once; a hanging one does not keep the process alive."""

    daemon_threads = True

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.server_port}"

    def server_bind(self) -> None:
        """Without asking the network for this machine's name, which may take long."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = HOST, int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of an answer is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """No line for each request."""


def _guarded(app: Any) -> App:
    """Refuses other names that lead here, other sites too; artifacts can neither run nor lie."""

    def answer(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if not _is_ours(environ):
            start("403 Forbidden", [("Content-Type", "text/plain")])
            return [f"This dashboard answers to http://{HOST} only.\n".encode()]

        def with_headers(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            artifact = str(environ.get("PATH_INFO", "")).startswith("/artifacts/")
            extra = [*HEADERS, SANDBOX] if artifact else HEADERS
            return start(status, [*headers, *extra], *rest)

        found: Iterable[bytes] = app(environ, with_headers)
        return found

    return answer


def _is_ours(environ: dict[str, Any]) -> bool:
    """Whether this machine was asked by its name, and by no page of another site."""
    asked = urlsplit(f"//{environ.get('HTTP_HOST', HOST)}").hostname
    asker = urlsplit(environ.get("HTTP_ORIGIN", f"http://{HOST}")).hostname
    return asked in NAMES and asker in NAMES

"""Which W&B server this user talks to, whether there is a key for it, and whether it answers.

Asked without W&B's client, whose import alone takes a second.
"""

from __future__ import annotations

import configparser
import netrc
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT = "https://api.wandb.ai"
ANSWER_TIMEOUT_S = 5.0
SERVER_ERROR = 500  # HTTP status from which on the server cannot be used


def base_url() -> str:
    """The server's address: the environment's, that of `wandb login --host`, or the public one."""
    if address := os.environ.get("WANDB_BASE_URL"):
        return address.rstrip("/")
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(folder / "settings", encoding="utf-8")
    except (OSError, configparser.Error, UnicodeDecodeError):
        return DEFAULT
    return settings.get("default", "base_url", fallback=DEFAULT).rstrip("/")


def key_known() -> bool:
    """Whether this user has a key for the server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        host = urlsplit(base_url()).hostname or ""
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def unreachable(timeout_s: float = ANSWER_TIMEOUT_S) -> str | None:
    """Why the server cannot be used now, or None if it gives any sensible answer."""
    address = base_url()
    body = b'{"query": "query { viewer { id } }"}'
    headers = {"Content-Type": "application/json", "User-Agent": "qlora-sweep"}
    request = urllib.request.Request(f"{address}/graphql", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        refused = error.code >= SERVER_ERROR
        return f"{address} answers with HTTP status {error.code}" if refused else None
    except (OSError, ValueError) as error:
        return f"{address} does not answer: {getattr(error, 'reason', None) or error}"

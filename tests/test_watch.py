import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from indexer.errors import TandemError
from indexer.scan import wanted
from indexer.watch import changes


def test_what_is_wanted(tmp_path: Path) -> None:
    corpora = [tmp_path / "a", tmp_path / "b"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "picture.png").write_bytes(b"")
    for name, expected in {
        "a/x.md": True,
        "b/sub/x.csv.gz": True,
        "a/folder": True,
        "a/release-1.2": True,
        "a/.git/x.md": False,
        "a/.x.md.swp": False,
        "a/picture.png": False,
        "a/x.pairs.jsonl": False,
        "c/x.md": False,
    }.items():
        assert wanted(tmp_path / name, corpora) is expected, name


def test_a_burst_is_one_set_and_noise_is_none(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    stop = threading.Event()
    seen: list[set[str]] = []
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "a.md").write_text("text")

    def follow() -> None:
        for paths in changes([tmp_path], stop, quiet_ms=300):
            seen.append({path.name for path in paths})

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        _until(lambda: seen == [set()])
        for number in range(5):
            (tmp_path / f"{number}.md").write_text("text")
            (tmp_path / f"{number}.png").write_bytes(b"noise")
            time.sleep(0.02)
        _until(lambda: len(seen) == 2)
        (tmp_path / "0.md").rename(tmp_path / "moved.md")
        _until(lambda: len(seen) == 3)
        elsewhere.rename(tmp_path / "release-1.2")
        _until(lambda: len(seen) == 4)
    finally:
        stop.set()
        thread.join(10)
    assert seen[:3] == [set(), {f"{number}.md" for number in range(5)}, {"0.md", "moved.md"}]
    assert "release-1.2" in seen[3]
    assert not thread.is_alive()


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(TandemError, match="cannot be watched"):
        next(changes([tmp_path / "nothing"], threading.Event()))


def _until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# The command with the hashing embedder of the tests in the place of the model.
SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import service.commands.index as index
from fakes import HashingEmbedder
index.load_embedder = lambda settings, report: HashingEmbedder()
from service.cli import main
main()
"""


def test_the_command_prints_each_generation_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.md").write_text("# A\n\nThe first text.")
    root = Path(__file__).parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(tests=str(root / "tests")), "index", str(corpus), "--watch", "--json"],
        env=os.environ | {"TANDEM_HOME": str(tmp_path / "home"), "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert child.stdout is not None
    try:
        first = json.loads(child.stdout.readline())
        assert (first["generation"], first["added"]) == (1, 1)
        (corpus / "b.md").write_text("# B\n\nThe second text.")
        second = json.loads(child.stdout.readline())
        assert (second["generation"], second["added"], second["unchanged"]) == (2, 1, 1)
        (corpus / "a.md").unlink()
        third = json.loads(child.stdout.readline())
        assert (third["generation"], third["deleted"]) == (3, 1)
        # A folder that is empty for a moment is told and nothing is deleted.
        (corpus / "b.md").unlink()
        time.sleep(1.5)
        (corpus / "c.md").write_text("# C\n\nThe third text.")
        fourth = json.loads(child.stdout.readline())
        assert (fourth["added"], fourth["deleted"]) == (1, 1)
        child.send_signal(signal.SIGINT)
        rest, errors = child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0
    assert rest == ""
    assert "holds no document" in errors
    assert errors.splitlines()[-1].startswith("Stopped watching")

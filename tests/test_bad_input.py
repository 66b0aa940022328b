"""Input that is hostile or merely unlucky: a clear error or a reported failure, and the index as it was.

What single files can do to the parsers is in test_loader_limits.py; here is what they do to a sync.
"""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fakes import HashingEmbedder

from indexer import sync as sync_module
from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.outcome import Outcome
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync

SIZE = ChunkSize(40, 8)
ROOT = Path(__file__).parents[1]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "good.txt").write_text("The good document is about marmots.")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def run(store: Store, corpus: Path) -> Outcome:
    return sync(store, [corpus], HashingEmbedder(), SIZE)


def found(store: Store, question: str) -> list[str]:
    return [passage.path for passage in Retriever(store, HashingEmbedder()).retrieve(question, 50).passages]


def docx(parts: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return data.getvalue()


def laughs() -> bytes:
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    return f'<!DOCTYPE w [<!ENTITY l0 "ha">{entities}]><w:document>&l9;</w:document>'.encode()


def test_hostile_files_cost_themselves_and_are_named(store: Store, corpus: Path) -> None:
    (corpus / "bomb.docx").write_bytes(docx({"word/document.xml": b"0" * 500_000_000}))
    (corpus / "laughs.docx").write_bytes(docx({"word/document.xml": laughs()}))
    (corpus / "cut.pdf").write_bytes(b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog")
    with (corpus / "line.txt").open("wb") as file:
        file.truncate(500_000_000)
    (corpus / "half.jsonl").write_text('{"id": 1, "text": "\\ud800 lone surrogate"}\n{"id": 1, "text": "again"}')
    outcome = run(store, corpus)
    assert outcome.added == 1
    reasons = {failure["document"]: failure["reason"] for failure in outcome.failed}
    assert set(reasons) == {"bomb.docx", "laughs.docx", "cut.pdf", "line.txt", "half.jsonl"}
    assert "200,000,000" in reasons["line.txt"]
    assert found(store, "marmots") == ["good.txt"]


def test_text_that_is_no_unicode(store: Store, corpus: Path) -> None:
    (corpus / "odd.jsonl").write_text('{"id": "\\ud800", "title": "\\udfff t", "text": "A \\ud800 lone surrogate."}')
    assert run(store, corpus).added == 2
    assert found(store, "lone surrogate")[0].startswith("odd.jsonl#")


def test_odd_names_are_found_and_told_apart(store: Store, corpus: Path) -> None:
    names = ["new\nline.txt", "emoji 🦫.txt", "Case.txt", "case.txt", "percent%20#1.txt", "quote'\".txt"]
    for place, name in enumerate(names):
        (corpus / name).write_text(f"This is about subject{place}.")
    assert run(store, corpus).added == 7
    for place, name in enumerate(names):
        assert found(store, f"subject{place}")[0] == name


def test_a_loop_of_links_ends(store: Store, corpus: Path) -> None:
    (corpus / "a" / "b").mkdir(parents=True)
    (corpus / "a" / "b" / "up").symlink_to(corpus)
    (corpus / "self").symlink_to("self")
    (corpus / "a" / "b" / "deep.txt").write_text("A deep file.")
    outcome = run(store, corpus)
    assert (outcome.added, [failure["document"] for failure in outcome.failed]) == (2, ["self"])


@pytest.mark.parametrize("spare", [0, 2, 6, 15, 40])
def test_a_full_disk_leaves_the_index_as_it_was(store: Store, corpus: Path, spare: int) -> None:
    """SQLite refuses to grow beyond so many more pages, which is what it does on a full disk."""
    generation = run(store, corpus).generation
    for number in range(200):
        (corpus / f"{number}.txt").write_text(f"Number {number} is about {'many words ' * 30}.")
    with store.connection() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + spare}")
    with pytest.raises(TandemError, match="could not be written") as caught:
        run(store, corpus)
    assert "full" in str(caught.value)
    with store.read() as snapshot:
        assert snapshot.generation.number == generation
    assert found(store, "marmots") == ["good.txt"]
    store.close()
    again = Store(store.home)
    assert run(again, corpus).added == 200
    assert len(found(again, "number")) == 50


def test_a_full_disk_while_the_vector_file_is_written(
    store: Store, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = run(store, corpus).generation
    (corpus / "more.txt").write_text("More text.")
    monkeypatch.setattr(sync_module, "needs_file", lambda drift, rows: True)
    with monkeypatch.context() as full:
        full.setattr("os.fsync", _no_space)
        with pytest.raises(TandemError, match="No space left"):
            run(store, corpus)
    with store.read() as snapshot:
        assert snapshot.generation.number == generation
    assert run(store, corpus).added == 1


def _no_space(handle: int) -> None:
    raise OSError(28, "No space left on device")


CHILD = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from fakes import HashingEmbedder
from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.store import Store
from indexer.sync import sync
def report(progress):
    if {wait} and progress.stage == "embed":
        print("working", flush=True)
        sys.stdin.readline()
if {limit}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    sync(Store(Path({home!r})), [Path({corpus!r})], HashingEmbedder(), ChunkSize(40, 8), report=report)
    print("done")
except TandemError as error:
    print(error.happened)
"""


def child(store: Store, corpus: Path, limit: int = 0, wait: bool = False) -> subprocess.Popen[str]:
    script = CHILD.format(tests=str(ROOT / "tests"), home=str(store.home), corpus=str(corpus), limit=limit, wait=wait)
    pipe = subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True, env=environment)


def test_the_kernel_refuses_to_write(store: Store, corpus: Path) -> None:
    """Files may not pass 300 kB: the write-ahead log meets that in the middle of staging."""
    generation = run(store, corpus).generation
    for number in range(300):
        (corpus / f"{number}.txt").write_text(f"Number {number} is about {'many words ' * 100}.")
    with child(store, corpus, limit=300_000) as process:
        told = process.communicate(timeout=60)[0]
    assert "could not be written" in told
    with store.read() as snapshot:
        assert snapshot.generation.number == generation
    assert run(store, corpus).added == 300


def test_two_processes_sync_one_home(store: Store, corpus: Path) -> None:
    with child(store, corpus, wait=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        with pytest.raises(TandemError, match="Another process is indexing") as caught:
            run(store, corpus)
        assert caught.value.code == "conflict"
        told = process.communicate("\n" * 50, timeout=60)[0]
    assert told.endswith("done\n")
    assert run(store, corpus).unchanged == 1

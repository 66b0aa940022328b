"""Training rows: an answer only where its evidence stands, refusals elsewhere, shares kept, and `tandem rows`."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import HashingEmbedder
from typer.testing import CliRunner

from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync
from service import cli
from service.commands import rows as rows_command
from service.commands.rows import RowSources, build_rows
from service.settings import Settings
from tuner.embedder_rows import Library, holds
from tuner.pairs import Pair
from tuner.prompt import REFUSAL
from tuner.rowfile import read_rows, write_rows
from tuner.rows import (
    Mix,
    Row,
    count_kinds,
    instruction_row,
    make_training_rows,
    quoted,
    sentence,
    split_rows,
    text_row,
)

ANIMALS = ("otter", "heron", "mole", "swift", "adder", "bat", "toad", "crane", "lynx", "stork")
PLACES = ("pond", "reed", "hill", "barn", "wall", "cave", "wood", "moor", "cliff", "roof")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, (animal, place) in enumerate(zip(ANIMALS, PLACES, strict=True)):
        (corpus / f"{animal}.txt").write_text(
            f"The {animal} sleeps near the {place}. The {animal} eats {number + 3} meals a day."
        )
    store = Store(folder / "home")
    sync(store, [corpus], HashingEmbedder(), ChunkSize(40, 8))
    store.close()
    return folder / "home"


def pairs() -> list[Pair]:
    made = []
    for number, (animal, place) in enumerate(zip(ANIMALS, PLACES, strict=True)):
        name = f"{animal}.txt"
        made.append(Pair(f"{animal}1", f"Where does the {animal} sleep?", (f"near the {place}",), name, "answerable"))
        made.append(
            Pair(f"{animal}2", f"How many meals does the {animal} eat?", (str(number + 3),), name, "answerable")
        )
        made.append(Pair(f"{animal}3", f"Who painted the {animal}?", (), name, "misleading"))
    return [*made, Pair("none", "Who won the race of 1931?", (), None, "absent")]


@pytest.fixture
def library(home: Path) -> Iterator[tuple[Library, Retriever]]:
    store = Store(home)
    with store.read() as snapshot:
        yield Library(snapshot), Retriever(store, HashingEmbedder())
    store.close()


def made(
    library: tuple[Library, Retriever], mix: Mix, given: list[Pair] | None = None
) -> tuple[list[Row], Counter[str]]:
    return make_training_rows(*library, given or pairs(), mix)


def test_an_answer_cites_the_passage_that_holds_it_and_is_never_the_target_without_it(
    library: tuple[Library, Retriever],
) -> None:
    answers = {pair.question: pair.answers for pair in pairs()}
    rows, dropped = made(library, Mix(no_evidence=0.4, closed_book=0.2, absent=1, misleading=1))
    assert set(count_kinds(rows)) == {"evidence", "no-evidence", "misleading", "absent", "closed-book"} and not dropped
    for row in rows:
        holding = [n for n, p in enumerate(row.passages, start=1) if holds(p.text, answers[row.question])]
        if row.kind == "evidence":
            n = int(row.answer.split("[")[1].split("]")[0])
            assert n in holding and holds(row.answer, answers[row.question])
        elif row.kind == "closed-book":
            assert row.passages == () and row.answer == sentence(answers[row.question][0])
        else:
            assert row.answer == REFUSAL and not holding
        assert len(row.passages) <= 4 and len(set(row.passages)) == len(row.passages)


def test_evidence_stands_at_every_place_among_real_rivals(library: tuple[Library, Retriever]) -> None:
    rows, _ = made(library, Mix(k=4, no_evidence=0, fewer=0, misleading=0, absent=0))
    evidence = [row for row in rows if row.kind == "evidence"]
    places = Counter(row.answer.split("[")[1][0] for row in evidence)
    assert len(evidence) == 20 and len(places) >= 3 and all(len(row.passages) == 4 for row in evidence)
    for row in evidence:
        assert row.documents[0].removesuffix(".txt") in row.question


def test_questions_about_one_chunk_show_the_same_passages(library: tuple[Library, Retriever]) -> None:
    rows, _ = made(library, Mix(closed_book=0, absent=0, misleading=1))
    shown: dict[str, set[object]] = {}
    for row in rows:
        shown.setdefault(row.documents[0], set()).add(row.passages)
    assert len(shown) == 10 and all(len(passages) == 1 for passages in shown.values())


def test_altered_questions_are_misleading_rows_beside_their_own(library: tuple[Library, Retriever]) -> None:
    without, _ = made(library, Mix(misleading=0, absent=0, closed_book=0, no_evidence=0))
    rows, _ = made(library, Mix(misleading=0, absent=0, closed_book=0, no_evidence=0, altered=1))
    known = {pair.question for pair in pairs()}
    changed = [row for row in rows if row.question not in known]
    assert {row for row in rows if row.question in known} == set(without)
    # "does" can be negated, and nothing else in these questions can be changed.
    assert changed and all((row.kind, row.answer) == ("misleading", REFUSAL) for row in changed)
    assert all("doesn't" in row.question for row in changed)
    assert {row.passages for row in changed} <= {row.passages for row in without}


def test_shares_are_kept_and_what_is_dropped_is_counted(library: tuple[Library, Retriever]) -> None:
    lost = [
        Pair("x", "Where is it?", ("nowhere",), "otter.txt", "answerable"),
        Pair("y", "Where is it?", ("here",), "gone.txt", "answerable"),
    ]
    rows, dropped = made(library, Mix(misleading=0.2, closed_book=0.5, absent=0), [*pairs(), *lost])
    counts = count_kinds(rows)
    assert counts["misleading"] == 4 and counts["closed-book"] == 10 and "absent" not in counts
    assert dropped == {
        "misleading, over the share": 6,
        "absent, over the share": 1,
        "no answer stands in its document": 1,
        "its document is not indexed": 1,
    }


def test_equal_seeds_give_equal_rows(library: tuple[Library, Retriever]) -> None:
    first, _ = made(library, Mix(seed=1))
    assert made(library, Mix(seed=1))[0] == first != made(library, Mix(seed=2))[0]


def test_documents_never_fall_on_both_sides(library: tuple[Library, Retriever]) -> None:
    rows, _ = made(library, Mix())
    rows.append(instruction_row("Say it", "", "it"))
    kept, held = split_rows(rows, 0.3, seed=0)
    about = ({row.documents[0] for row in part if row.kind != "absent" and row.documents} for part in (kept, held))
    left, right = about
    assert left and len(right) == 3 and not left & right and len(kept) + len(held) == len(rows)
    assert rows[-1] in kept and split_rows(rows, 0, seed=0) == (rows, [])
    with pytest.raises(TandemError, match="about 1 of the indexed documents"):
        split_rows([row for row in rows if row.documents[:1] == ("otter.txt",)], 0.3, seed=0)


@pytest.mark.parametrize(
    ("answer", "n", "said"),
    [
        ("near the  pond.", 2, "near the pond [2]."),
        ("yes", 1, "Yes [1]."),
        ("in 1931", None, "in 1931."),
    ],
)
def test_an_answer_as_it_is_said(answer: str, n: int | None, said: str) -> None:
    assert sentence(answer, n) == said


def test_a_quote_is_the_sentence_that_holds_the_answer() -> None:
    text = "The mole digs. The mole sleeps near\n the hill! It snores."
    assert quoted("near the hill", text, 3) == '"The mole sleeps near the hill" [3]. near the hill [3].'
    assert quoted("digs a tunnel", text, 3) == "digs a tunnel [3]."


def test_rows_are_read_as_they_were_written_and_a_wrong_line_is_named(
    tmp_path: Path, library: tuple[Library, Retriever]
) -> None:
    rows, _ = made(library, Mix())
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    for line in ("[]", "{}", '{"kind": "other", "question": "q", "passages": [], "answer": "a", "documents": []}'):
        (tmp_path / "bad.jsonl").write_text("\n" + line)
        with pytest.raises(TandemError, match="Line 2"):
            read_rows(tmp_path / "bad.jsonl")


@pytest.mark.parametrize("values", [{"k": 0}, {"no_evidence": 1.5}, {"closed_book": -0.1}])
def test_shares_that_cannot_be_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(TandemError):
        Mix(**values)


# --- the command -----------------------------------------------------------------------------------------------------


def write_pairs(path: Path) -> Path:
    lines = [
        {"id": p.id, "question": p.question, "answers": list(p.answers), "document": p.document, "kind": p.kind}
        for p in pairs()
    ]
    lines[0]["written_by"] = "a test"
    task = {"id": "task", "instruction": "Turn it around", "input": "abc", "output": "cba"}
    path.write_text("\n".join(json.dumps(line) for line in [*lines, task]))
    return path


def test_the_command_writes_rows_and_counts_them(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_command, "load_retriever", lambda _, store, report: Retriever(store, HashingEmbedder()))
    monkeypatch.setenv("TANDEM_HOME", str(shutil.copytree(home, tmp_path / "home")))
    given, replayed = write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "other.jsonl"
    write_rows(replayed, [instruction_row("Add", "1 and 2", "3")])
    with replayed.open("a") as file:
        file.write('{"text": "Rivers carry rain."}\n')
    command = ["rows", "--pairs", str(given), "--out", str(tmp_path / "out.jsonl"), "--replay", str(replayed), "--json"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    rows = read_rows(tmp_path / "out.jsonl")
    assert body["rows"] == len(rows) and body["kinds"] == count_kinds(rows) and body["kinds"]["instruction"] == 2
    assert body["dropped"] == {"misleading, over the share": 4, "absent, over the share": 0} or body["documents"] == 10
    task = next(row for row in rows if row.question.startswith("Turn"))
    assert task == Row("instruction", "Turn it around\nabc", (), "cba", ())
    assert [row for row in rows if row.kind == "text"] == [text_row("Rivers carry rain.")]
    built = build_rows(Settings(home=home), RowSources(given))
    assert built.written_by == ("a test",) and list(built.sources) == ["pairs.jsonl"]
    assert {item["path"] for item in built.documents} == {f"{animal}.txt" for animal in ANIMALS}
    assert CliRunner().invoke(cli.app, ["rows", "--pairs", str(tmp_path / "none.jsonl")]).exit_code == 2

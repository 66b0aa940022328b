"""Pairs checked, split and made: problems have lines, parts of a split share nothing, only checked pairs are kept."""

from __future__ import annotations

import itertools
import json
import random
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fakes import HashingEmbedder
from small_models import save_small_model
from typer.testing import CliRunner

from indexer.errors import TandemError
from indexer.retrieval import Retriever
from indexer.store import Store
from service.cli import app
from service.compare.questions import read_items as read_questions
from tuner.basemodel import load_base_model
from tuner.extraction import Draft, drafts
from tuner.neardup import near_duplicates
from tuner.paircheck import check_files
from tuner.pairs import Instruction, Pair, read_items, read_pairs
from tuner.pairsplit import split_items
from tuner.prompt import Source
from tuner.synthesis import Request, Unreadable, make_pairs
from tuner.teachers import (
    langchain_ask,
    likelihood,
    model_asks,
    read_reply,
    reading_judge,
    rule_teacher,
    server_ask,
    writing_teacher,
)


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def line(number: int, question: str, document: str | None = "tides.md", **other: object) -> dict[str, object]:
    return {"id": f"p{number}", "question": question, "answers": ["the moon"], "document": document} | other


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    store = Store(home)
    yield store
    store.close()


@pytest.fixture
def retriever(store: Store) -> Retriever:
    return Retriever(store, HashingEmbedder())


# Check


def test_every_problem_is_found_with_its_line(tmp_path: Path, store: Store) -> None:
    file = write(
        tmp_path / "pairs.jsonl",
        line(1, "What raises the tides of the ocean?"),
        "{not json",
        line(3, ""),
        line(1, "Why does bread rise in the oven?", "bread.md", answers=["yeast"]),
        line(5, "How hot is the oven in degrees?", "bread.md", answers=["240 degrees"]),
        line(6, "Who wrote it?", "missing.md"),
        line(7, "What raises the tides of the ocean?", "iron.txt", answers=["wood"]),
        line(8, "Which things are said?", answers=[], kind="answerable"),
        line(9, "Where is the moon now?", None),
        line(10, "Is it absent from here?", None, kind="absent"),
        {"id": "i1", "instruction": "Sum up.", "output": ""},
        {"id": "i2", "instruction": "Sum up.", "input": "A text.", "output": "Text."},
        {"id": "p13", "question": "Whose answer is misspelt?", "answer": "the moon", "document": "tides.md"},
    )
    with store.read() as snapshot:
        problems, right = check_files([file], snapshot)
    found = {(problem.line, problem.what.split(":")[0]) for problem in problems}
    assert found == {
        (2, "is not JSON"),
        (3, "has no question"),
        (4, "has the id 'p1' of pairs.jsonl"),
        (5, "has no answer that stands in bread.md"),
        (6, "is about missing.md, which is not indexed"),
        (7, "asks nearly the same as pairs.jsonl"),
        (8, "is answerable and has no answer"),
        (9, "is answerable and names no document"),
        (10, "is absent and has answers"),
        (11, "has no output"),
        (13, 'has neither answers nor a kind; its field "answer" must be called "answers" and be a list'),
    }
    assert right == 2


def test_parts_of_a_split_may_share_nothing(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", line(1, "What raises the tides?"), line(2, "How hot is it?", "bread.md"))
    test = write(tmp_path / "test.jsonl", line(3, "When is the spring tide?"), line(4, "How hot is it?", "iron.txt"))
    problems, right = check_files([train, test], None)
    assert [(problem.path.name, problem.line) for problem in problems] == [("test.jsonl", 1), ("test.jsonl", 2)]
    assert "is about tides.md, as train.jsonl:1 is" in problems[0].what
    assert right == 2
    assert check_files([train], None) == ([], 2)


def test_lines_without_an_id_never_have_that_of_another(tmp_path: Path) -> None:
    def unnamed(question: str, document: str) -> dict[str, object]:
        return {"question": question, "answers": ["the moon"], "document": document}

    first = write(
        tmp_path / "a.jsonl",
        unnamed("What raises the tides?", "tides.md"),
        line(2, "What shines?") | {"id": "1"},
        {"id": None, "instruction": "Sum up.", "output": "Yes."},
        {"instruction": "Count up to three.", "output": "1, 2, 3"},
    )
    second = write(tmp_path / "b.jsonl", unnamed("How hot is it in there?", "bread.md"))
    assert len({item.id for item in read_items(first)}) == 4
    assert check_files([first, second], None) == ([], 5)
    # A comparison finds the tag of the line that it belongs to.
    tagged = [unnamed("What raises the tides?", "tides.md") | {"tag": "mine"}, line(2, "What shines?") | {"id": "1"}]
    assert [item.tag for item in read_questions(write(tmp_path / "c.jsonl", *tagged))] == ["mine", ""]


def test_near_duplicates_are_exactly_those_that_every_comparison_finds() -> None:
    rng = random.Random(4)
    words = [f"w{number}" for number in range(12)]
    texts = [" ".join(rng.choices(words, k=rng.randint(0, 9))) for _ in range(300)]
    for similar in (0.5, 0.85, 1.0):
        expected = set()
        for one, two in itertools.combinations(range(len(texts)), 2):
            first, second = set(texts[one].split()), set(texts[two].split())
            if first and second and len(first & second) / len(first | second) >= similar:
                expected.add((one, two))
        found = list(near_duplicates(texts, similar))
        assert len(expected) > 5
        assert set(found) == expected
        assert len(found) == len(expected)


def test_two_questions_that_differ_in_what_matters_are_two() -> None:
    assert list(near_duplicates(["Which port does it use?", "Which host does it use?", "which PORT does it use"])) == [
        (0, 2)
    ]


# Read


def test_instructions_stand_beside_pairs(tmp_path: Path) -> None:
    file = write(tmp_path / "mixed.jsonl", line(1, "What?"), {"id": "i", "instruction": " Sum up. ", "output": "Yes."})
    assert read_items(file)[1] == Instruction("i", "Sum up.", "", "Yes.")
    with pytest.raises(TandemError, match="Line 2 .*is an instruction"):
        read_pairs(file)
    write(file, line(1, "What?"), line(1, "Who?"))
    with pytest.raises(TandemError, match="Line 2 .*second time"):
        read_items(file)


# Split


def items(documents: int, each: int) -> list[Pair | Instruction]:
    return [
        Pair(
            f"{document}-{number}",
            f"Question w{document}x{number} of d{document}?",
            ("a",),
            f"d{document}",
            "answerable",
        )
        for document in range(documents)
        for number in range(each)
    ]


def test_a_split_is_by_document_and_by_likeness() -> None:
    pairs = items(40, 5)
    twin = Pair("twin", pairs[0].question, ("a",), "d39", "answerable")  # type: ignore[union-attr]
    loose = [Pair(f"n{number}", f"Nobody says w{number} v{number}?", (), None, "absent") for number in range(20)]
    parts = split_items([*pairs, twin, *loose], {"validation": 0.1, "test": 0.2}, seed=3)
    assert sum(len(part) for part in parts.values()) == 221
    where = {item.document: name for name, part in parts.items() for item in part if isinstance(item, Pair)}
    for name, part in parts.items():
        for item in part:
            assert isinstance(item, Pair)
            assert item.document is None or where[item.document] == name
    assert where["d0"] == where["d39"]
    assert abs(len(parts["validation"]) - 22) <= 5
    assert abs(len(parts["test"]) - 44) <= 5
    assert parts == split_items([*pairs, twin, *loose], {"validation": 0.1, "test": 0.2}, seed=3)
    assert parts != split_items([*pairs, twin, *loose], {"validation": 0.1, "test": 0.2}, seed=4)


def test_a_split_that_cannot_be_made_is_told() -> None:
    with pytest.raises(TandemError, match="1 groups"):
        split_items(items(1, 9), {"test": 0.5}, seed=0)
    for shares in ({"test": 1.0}, {"test": 0.0}, {"test": 0.6, "validation": 0.4}, {"test": -0.1}):
        with pytest.raises(TandemError, match="shares"):
            split_items(items(5, 2), shares, seed=0)
    parts = split_items(items(3, 50), {"test": 0.01, "validation": 0.01}, seed=0)
    assert sorted(len(part) for part in parts.values()) == [50, 50, 50]


# Make


MOON = Draft("What raises the tides of the ocean?", "The moon", "The moon raises the tides of the ocean twice a day.")
YEAST = Draft("What makes the bread rise in the oven?", "yeast", "Bread rises because yeast makes carbon dioxide.")


TRAP = Draft("What raises the tides of the lakes?", misleading=True)


def scripted(*found: Draft) -> Any:
    """Proposes everything for every chunk: only what belongs to it may be kept."""
    return lambda title, text: list(found)


def test_only_what_can_be_checked_is_kept(tmp_path: Path, retriever: Retriever, store: Store) -> None:
    wrong = [
        Draft(MOON.question, "The sun", MOON.evidence),
        Draft("What raises the moon and the tides here?", "The moon", MOON.evidence),
        Draft("According to the text, what raises tides?", "The moon", MOON.evidence),
        Draft("Tides?", "The moon", MOON.evidence),
        Draft("Do zebras like quantum chromodynamics much?", "The moon", MOON.evidence),
    ]
    made = make_pairs(retriever, scripted(*wrong, MOON, MOON, YEAST), tmp_path / "made.jsonl", Request(count=50))
    pairs = read_pairs(tmp_path / "made.jsonl")
    assert {(pair.document, pair.answers) for pair in pairs} == {
        ("tides.md", ("The moon",)),
        ("bread.md", ("yeast",)),
    }
    assert made.kept == 2 and made.ended == "no chunk left"
    for reason in (
        "the evidence is not in the chunk word for word",
        "the evidence does not hold the answer",
        "the question gives its answer away",
        "the question points at the passage",
        "not one question of 4 to 40 words",
        "the question shares no word with the chunk",
        "nearly the same was asked before",
    ):
        assert made.dropped[reason] >= 1, reason
    with store.read() as snapshot:
        for value in map(json.loads, (tmp_path / "made.jsonl").read_text().splitlines()):
            text = snapshot.document(value["document"]).text
            assert text[value["start"] : value["end"]] == value["evidence"]
            assert snapshot.chunk(value["chunk"])[1].path == value["document"]
        problems, right = check_files([tmp_path / "made.jsonl"], snapshot)
    assert (problems, right) == ([], 2)


def test_a_question_that_finds_other_chunks_is_dropped(tmp_path: Path, retriever: Retriever) -> None:
    lost = Draft("Which blast furnace of the ocean melts iron with wood?", "The moon", MOON.evidence)
    made = make_pairs(retriever, scripted(lost), tmp_path / "made.jsonl", Request(k=1))
    assert made.kept == 0
    assert made.dropped["the retriever does not find its chunk among 1 passages"] == 1


def test_a_misleading_question_is_kept_where_what_it_finds_does_not_answer_it(
    tmp_path: Path, retriever: Retriever, store: Store
) -> None:
    judged: list[tuple[str, list[str]]] = []

    def judge(question: str, passages: Sequence[str]) -> bool:
        judged.append((question, list(passages)))
        return "ocean" in question

    answered = Draft("What raises the tides of every ocean?", misleading=True)
    far = Draft("Which blast furnace of the ocean melts iron with wood?", misleading=True)
    target = tmp_path / "made.jsonl"
    made = make_pairs(retriever, scripted(TRAP, answered, far, MOON), target, Request(k=1), judge=judge)
    lines = {value["question"]: value for value in map(json.loads, target.read_text().splitlines())}
    assert lines.keys() == {TRAP.question, MOON.question}
    trap = lines[TRAP.question]
    assert (trap["kind"], trap["answers"], trap["document"]) == ("misleading", [], "tides.md") and "start" not in trap
    assert made.dropped["a misleading question that the passages answer"] >= 1
    assert made.dropped["the retriever does not find its chunk among 1 passages"] >= 1
    # It was judged by what the service would show.
    shown = [passages for question, passages in judged if question == TRAP.question]
    assert shown and all("tide" in passages[0] and len(passages) == 1 for passages in shown)
    with store.read() as snapshot:
        assert check_files([target], snapshot) == ([], 2)
    unread = make_pairs(
        retriever, scripted(TRAP), tmp_path / "a.jsonl", Request(k=1), judge=lambda *said: bool(read_reply("Yes."))
    )
    assert unread.kept == 0 and unread.dropped["the teacher's reply was not what it was asked for"] == 1
    alone = make_pairs(retriever, scripted(TRAP), tmp_path / "b.jsonl", Request(k=1))
    assert alone.kept == 0 and alone.dropped["misleading questions were not asked for"] == 1


def test_one_chunk_gives_three_answerable_and_two_misleading_pairs(tmp_path: Path, retriever: Retriever) -> None:
    words = ("raises", "moves", "lifts", "pulls", "turns")
    asked = [replace(MOON, question=f"What {word} the tides of that ocean {word}?") for word in words]
    traps = [replace(TRAP, question=f"What {word} tides in {word} lakes {word}?") for word in words]
    target = tmp_path / "made.jsonl"
    made = make_pairs(retriever, scripted(*traps, *asked), target, Request(k=4), judge=lambda *said: False)
    of_moon = [pair for pair in read_pairs(target) if pair.document == "tides.md"]
    assert sorted(pair.kind for pair in of_moon) == ["answerable"] * 3 + ["misleading"] * 2
    assert made.dropped["over the number of pairs for one chunk"] >= 2


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path, retriever: Retriever) -> None:
    target = tmp_path / "made.jsonl"
    asked: list[str] = []

    def teacher(title: str, text: str) -> Sequence[Draft]:
        asked.append(text)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [MOON, YEAST]

    with pytest.raises(KeyboardInterrupt):
        make_pairs(retriever, teacher, target, Request())
    with pytest.raises(TandemError, match="already"):
        make_pairs(retriever, teacher, target, Request())
    # Killed between a chunk's pairs and the note about it, and in the middle of a line.
    with target.open("a") as file:
        file.write(json.dumps(line(9, "What was cut off?", chunk="0" * 16)) + '\n{"id": "torn", "quest')
    made = make_pairs(retriever, teacher, target, Request(resume=True))
    whole = make_pairs(retriever, scripted(MOON, YEAST), tmp_path / "whole.jsonl", Request())
    assert target.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert (made.kept, made.chunks, made.dropped) == (whole.kept, whole.chunks, whole.dropped)
    # The chunk that was asked about first is not asked about again.
    assert len(set(asked)) == len(asked) - 1


def test_it_stops_at_the_count_and_when_it_is_told(tmp_path: Path, retriever: Retriever) -> None:
    made = make_pairs(retriever, scripted(MOON, YEAST), tmp_path / "one.jsonl", Request(count=1))
    assert (made.kept, made.ended) == (1, "all asked for")
    stop = threading.Event()
    stop.set()
    made = make_pairs(retriever, scripted(MOON), tmp_path / "none.jsonl", Request(), cancel=stop)
    assert (made.kept, made.ended) == (0, "stopped")


def test_a_reply_is_read_whatever_stands_around_its_list() -> None:
    value = [{"question": "Q?", "answer": "a", "evidence": "E [1]."}]
    for reply in (json.dumps(value), f"As said in [1]:\n```json\n{json.dumps(value)}\n``` Done [x]."):
        assert read_reply(reply) == [Draft("Q?", "a", "E [1].")]
    assert read_reply("[]") == []
    for reply in (
        "Sorry.",
        "[1]",
        '[{"question": "Q?"}]',
        '[{"question": 1, "answer": "a", "evidence": "e"}]',
        "[" * 5000,
    ):
        with pytest.raises(Unreadable):
            read_reply(reply)


class Server(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server does, and fails as one: 503 once, then the reply."""

    failures = 1
    bodies: list[Any] = []
    keys: list[str] = []

    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": "first"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Server.bodies.append(body)
        Server.keys.append(self.headers.get("authorization", ""))
        if body["model"] == "gone":
            self.reply(404, {})
        elif Server.failures:
            Server.failures -= 1
            self.reply(503, {})
        else:
            text = body["messages"][0]["content"]
            known = [draft for draft in (MOON, YEAST) if draft.evidence in text]
            if "seems to answer and does not" in text:
                known = [replace(TRAP, evidence="It says so.")] if MOON.evidence in text else []
            elif "Look for the answer" in text:
                known = []
            fields = [{"question": d.question, "answer": d.answer, "evidence": d.evidence} for d in known]
            self.reply(200, {"choices": [{"message": {"content": f"Here: {json.dumps(fields)}"}}]})

    def reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.failures, Server.bodies, Server.keys = 1, [], []
    http = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_server_teaches(tmp_path: Path, retriever: Retriever, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    made = make_pairs(retriever, writing_teacher(server_ask(server, key="secret")), tmp_path / "made.jsonl", Request())
    assert made.kept == 2
    assert {body["model"] for body in Server.bodies} == {"first"}
    assert "in other words than its own" in Server.bodies[0]["messages"][0]["content"]
    assert set(Server.keys) == {"Bearer secret"}
    with pytest.raises(TandemError, match="status 404") as caught:
        make_pairs(retriever, writing_teacher(server_ask(server, "gone")), tmp_path / "other.jsonl", Request())
    assert "--resume" in caught.value.do
    for url in ("ftp://x", "http://"):
        with pytest.raises(TandemError, match="no address"):
            server_ask(url)


def test_a_chat_model_of_langchain_teaches(
    tmp_path: Path, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    from langchain_core.language_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage

    with pytest.raises(TandemError, match="no chat model 'nobody:m' here") as caught:
        langchain_ask("nobody:m")
    assert caught.value.code == "unavailable" and "provider:model" in caught.value.expected
    said = [{"question": MOON.question, "answer": MOON.answer, "evidence": MOON.evidence}]
    # Says this once, and fails from then on.
    chat = GenericFakeChatModel(messages=iter([AIMessage(f"Here: {json.dumps(said)}")]))
    monkeypatch.setattr("langchain.chat_models.init_chat_model", lambda spec, **options: chat)
    teach = writing_teacher(langchain_ask("fake:m"))
    assert teach("Tides", MOON.evidence) == [MOON]
    with pytest.raises(TandemError, match="teacher fake:m does not answer: StopIteration") as caught:
        make_pairs(retriever, teach, tmp_path / "made.jsonl", Request())
    assert caught.value.code == "unavailable" and "--resume" in caught.value.do


def test_a_reply_that_is_no_list_is_counted_and_passed_over(tmp_path: Path, retriever: Retriever) -> None:
    made = make_pairs(retriever, lambda title, text: read_reply("Sorry."), tmp_path / "made.jsonl", Request())
    assert made.kept == 0 and made.chunks > 0
    assert made.dropped["the teacher's reply was not what it was asked for"] == made.chunks


def test_what_a_teacher_that_writes_is_asked() -> None:
    tasks: list[str] = []

    def ask(task: str) -> str:
        tasks.append(task)
        return json.dumps([{"question": "Q?", "answer": "a", "evidence": "E."}])

    assert writing_teacher(ask)("T", "The text.") == [Draft("Q?", "a", "E.")]
    assert writing_teacher(ask, misleading=True)("T", "The text.") == [
        Draft("Q?", "a", "E."),
        Draft("Q?", misleading=True),
    ]
    assert len(tasks) == 3 and all(task.endswith("Title: T\nPassage:\nThe text.") for task in tasks)
    judge = reading_judge(ask)
    assert judge("Why?", ["One.", "Two."])
    assert tasks[-1].endswith("Question: Why?\nPassages:\nOne.\n\nTwo.")
    assert not reading_judge(lambda task: "[]")("Why?", ["One."])
    with pytest.raises(Unreadable):
        reading_judge(lambda task: "NONE")("Why?", ["One."])


def test_the_base_model_writes_the_json_it_is_asked_for(tmp_path: Path) -> None:
    # Its weights are random, so every word of it is noise; the form is not.
    base = load_base_model(str(save_small_model(tmp_path / "model", window=4096)), cache=tmp_path, device="cpu")
    write, read = model_asks(base)
    found = writing_teacher(write, misleading=True)("Tides", MOON.evidence)
    assert {draft.misleading for draft in found} == {True, False}
    assert reading_judge(read)(MOON.question, [MOON.evidence]) in (True, False)


def test_the_local_teacher_ranks_what_rules_wrote(tmp_path: Path) -> None:
    import torch

    base = load_base_model(str(save_small_model(tmp_path / "model")), cache=tmp_path, device="cpu")
    text = "The oven has two doors. The melting point of iron is 1538 degrees."
    source, question = Source("T", text), "How many doors does the oven have?"
    from tuner.prompt import build_prompt

    ids = build_prompt(base.tokenizer, question, [source], limit=500).ids
    shown = base.tokenizer.decode(list(ids))
    # A token is a byte here, so the question's first and last places can be read off the text.
    first = len(base.tokenizer(shown[: shown.rindex(question)], add_special_tokens=False)["input_ids"])
    with torch.inference_mode():
        logs = base.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    asked = range(first + 1, first + len(base.tokenizer(question, add_special_tokens=False)["input_ids"]))
    expected = sum(float(logs[place - 1, ids[place]]) for place in asked) / len(asked)
    assert likelihood(base, source, question) == pytest.approx(expected, rel=1e-4)
    found = list(rule_teacher(base)("T", text))
    assert {draft.question for draft in found} == {draft.question for draft in drafts(text)}
    scores = [likelihood(base, source, draft.question) for draft in found]
    assert scores == sorted(scores, reverse=True)


# Commands


def test_the_commands(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, server: str, retriever: Retriever
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_HOME", str(home))
    monkeypatch.setattr("service.commands.pairs.load_retriever", lambda *arguments: retriever)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    runner = CliRunner()

    def tandem(*words: str) -> Any:
        return runner.invoke(app, ["pairs", *words])

    made = tandem("make", "made.pairs.jsonl", "--teacher", server)
    assert made.exit_code == 0, made.output
    assert re.search(r"made.pairs.jsonl: 2 pairs from \d+ chunks", made.stdout) and "dropped:" in made.stdout
    assert tandem("make", "made.pairs.jsonl", "--teacher", server).exit_code == 2
    assert tandem("make", "other.jsonl", "--teacher", "magic").exit_code == 2
    assert json.loads(tandem("make", "made.pairs.jsonl", "--teacher", server, "--resume", "--json").stdout)["kept"] == 2
    checked = tandem("check", "made.pairs.jsonl")
    assert (checked.exit_code, checked.stdout) == (0, "2 lines are right, 0 problems.\n")
    trapped = tandem("make", "trapped.jsonl", "--teacher", server, "--misleading")
    assert trapped.exit_code == 0 and " 3 pairs from " in trapped.stdout, trapped.output
    assert [pair.question for pair in read_pairs(Path("trapped.jsonl")) if pair.kind == "misleading"] == [TRAP.question]
    refused = tandem("make", "none.jsonl", "--misleading")
    assert refused.exit_code == 2 and "rules write no misleading questions" in refused.output
    split = tandem("split", "made.pairs.jsonl", "--test", "0.5", "--validation", "0")
    assert split.exit_code == 0, split.output
    parts = [tmp_path / f"made.{name}.pairs.jsonl" for name in ("train", "test")]
    lines = [text for part in parts for text in part.read_text().splitlines()]
    assert sorted(lines) == sorted((tmp_path / "made.pairs.jsonl").read_text().splitlines())
    assert tandem("check", *map(str, parts)).exit_code == 0
    assert tandem("split", "made.pairs.jsonl", "--test", "0.5", "--validation", "0").exit_code == 2
    write(tmp_path / "bad.jsonl", line(1, "What is it?", "gone.md"))
    wrong = tandem("check", "bad.jsonl")
    assert wrong.exit_code == 2 and wrong.stdout.startswith("bad.jsonl:1: is about gone.md")
    assert tandem("check", "bad.jsonl", "--no-index").exit_code == 0
    assert tandem("check", "missing.jsonl").exit_code == 2

"""The second opinion in the service and on the command line: what it refuses, what it lets pass, what it costs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from conftest import MakeService
from fakes import FixedAdapters, ScriptedGenerator
from starlette.testclient import TestClient
from test_answerability import card_of, save_encoder, saved
from typer.testing import CliRunner

from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.store import Store
from indexer.sync import sync
from service.answer import Answer
from service.answering import Answerer
from service.api.app import create_app
from service.assembly import load_embedder, load_retriever
from service.cli import app
from service.commands.doctor import run_doctor
from service.question import Question
from service.running import Service
from service.secondopinion import SecondOpinion, load_opinion
from service.settings import Settings
from tuner import guards
from tuner.answerability_model import AnswerabilityModel
from tuner.prompt import REFUSAL, Source

MELTS = "At which degrees does iron melt?"
SAID = "Iron melts at 1538 degrees Celsius [1]."


class FixedModel:
    """Every passage with the word scores high, every other low; `asked` is what it was asked."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.asked: list[tuple[str, int]] = []

    def judge(self, question: str, sources: Sequence[Source]) -> float:
        self.asked.append((question, len(sources)))
        return max(0.9 if self.word in source.text else 0.1 for source in sources)


def with_opinion(service: Service, word: str) -> FixedModel:
    model = FixedModel(word)
    service.answerer.opinion = SecondOpinion(cast(AnswerabilityModel, model), card_of("strict", {}, threshold=0.5))
    return model


def test_a_question_whose_passages_hold_the_answer_is_answered(make_service: MakeService) -> None:
    service = make_service(SAID)
    model = with_opinion(service, "1538")
    answer = service.answerer.answer(Question(MELTS, k=2))
    assert not answer.refused and answer.answerability == 0.9
    assert model.asked == [(MELTS, len(answer.passages))]


def test_a_doubted_question_is_refused_before_the_model_is_asked(make_service: MakeService) -> None:
    generator = ScriptedGenerator(SAID)
    service = make_service(generator)
    with_opinion(service, "zinc")
    answer = service.answerer.answer(Question(MELTS))
    assert (answer.answer, answer.refused, answer.refusal_reason) == (REFUSAL, True, "nothing_relevant")
    assert answer.citations == () and answer.passages and answer.answerability == 0.1
    assert generator.prompts == []
    # The place in the queue is given back.
    assert service.answerer.answer(Question(MELTS)).refused


def test_what_the_gate_refuses_and_closed_book_questions_are_not_judged(make_service: MakeService) -> None:
    service = make_service("Rome.", FixedAdapters(), min_relevance=1)
    model = with_opinion(service, "zinc")
    refused, closed = (service.answerer.answer(Question(MELTS, mode=mode)) for mode in ("rag", "base"))
    assert refused.refusal_reason == "nothing_relevant" and refused.answerability is None
    assert closed.answer == "Rome." and closed.answerability is None
    assert model.asked == []


def test_a_stream_and_the_log_tell_of_it(make_service: MakeService, caplog: pytest.LogCaptureFixture) -> None:
    service = make_service(SAID)
    with_opinion(service, "zinc")
    streamed = list(service.answerer.stream(Question(MELTS)))
    assert streamed[0] == REFUSAL and isinstance(streamed[1], Answer)
    with (
        caplog.at_level(logging.INFO, "service.api.observing"),
        TestClient(create_app(service), base_url="http://127.0.0.1") as client,
    ):
        body = client.post("/ask", json={"question": MELTS}).json()
    assert body["refused"] and body["refusal_reason"] == "nothing_relevant"
    lines = [record.fields for record in caplog.records if getattr(record, "fields", {}).get("route") == "/ask"]
    assert [line["answerability"] for line in lines] == [0.1]


def test_the_setting_names_a_model_of_this_home(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", weights=tmp_path / "weights")
    assert load_opinion(settings) is None
    named = settings.model_copy(update={"answerability": "strict"})
    with pytest.raises(TandemError, match="no second opinion 'strict'"):
        load_opinion(named)
    folder = saved(named.home, save_encoder(tmp_path / "small"))
    opinion = load_opinion(named)
    assert opinion is not None and opinion.refuses(0.29) and not opinion.refuses(0.3)
    (folder / "vocab.txt").unlink(missing_ok=True)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TandemError, match="misses a file"):
        load_opinion(named)


def test_the_doctor_names_it_only_where_one_is_set(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def checks(**more: str) -> list[dict[str, str]]:
        run_doctor(
            Settings(home=home, weights=tmp_path / "none", base_model="/none", embedder="/none", **more), as_json=True
        )  # type: ignore[arg-type]
        return [item for item in json.loads(capsys.readouterr().out)["checks"] if item["check"] == "second opinion"]

    saved(home, save_encoder(tmp_path / "small"))
    assert checks() == []
    (found,) = checks(answerability="strict")
    assert found["ok"] and found["found"] == "strict, of small, refuses under 0.3000"
    saved(home, tmp_path / "small", "older", documents=("bread.md", "sold.md"))
    (older,) = checks(answerability="older")
    assert older["ok"] and older["found"].endswith("; 1 of its documents are gone")
    (missing,) = checks(answerability="gone")
    assert not missing["ok"] and "answerability" in missing["do"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--r", "8"], "--r means nothing to the recipe answerability"),
        (["--no-activate"], "--no-activate means nothing"),
        (["--resume", "--name", "a"], "--resume means nothing"),
        (["--epochs", "1.5", "--pairs", "p"], "Whole epochs"),
        (["--epochs", "0", "--pairs", "p"], "--epochs is 0"),
        ([], "needs pairs"),
        (["--pairs", "missing.jsonl"], "cannot be read"),
        (["--pairs", "missing.jsonl", "--name", "../x"], "cannot name"),
    ],
)
def test_what_cannot_be_asked_is_said(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    small = save_encoder(tmp_path / "small")
    monkeypatch.setenv("TANDEM_EMBEDDER", str(small))
    result = CliRunner().invoke(app, ["tune", "--recipe", "answerability", *arguments])
    assert result.exit_code == 2 and said in result.output


ANIMALS = ("otter", "heron", "mole", "swift", "adder", "bat", "toad", "crane", "lynx", "hare", "wren", "vole")


@pytest.mark.slow
def test_pairs_are_taught_and_the_service_uses_the_result(
    tmp_path: Path, weights_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus").mkdir()
    lines = []
    for number, name in enumerate(ANIMALS):
        (tmp_path / "corpus" / f"{name}.txt").write_text(f"The {name} sleeps in its den and weighs {number + 2} kilos.")
        shared = {"document": f"{name}.txt"}
        lines.append({"id": f"a{number}", "question": f"What does the {name} weigh?", "answers": ["kilos"], **shared})
        lines.append({"id": f"m{number}", "question": f"What does the {name} eat?", "kind": "misleading", **shared})
        lines.append({"id": f"n{number}", "question": f"Who is prime minister {number}?", "kind": "absent"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "does", "weigh", "eat", "who", "the", *ANIMALS]
    small = save_encoder(tmp_path / "small", words)
    settings = Settings(home=tmp_path / "home", corpora=(tmp_path / "corpus",), weights=weights_cache, k=4)
    store = Store(settings.home)
    sync(store, settings.corpora, load_embedder(settings), ChunkSize(40, 8))
    monkeypatch.setenv("TANDEM_K", "4")
    for name, value in (("HOME", settings.home), ("WEIGHTS", weights_cache.resolve()), ("CORPORA", tmp_path)):
        monkeypatch.setenv(f"TANDEM_{name}", str(value))
    options = ["--pairs", str(tmp_path / "pairs.jsonl"), "--base-model", str(small), "--name", "taught"]
    options += ["--epochs", "16", "--learning-rate", "0.003", "--batch-size", "4", "--json", "--force"]
    result = CliRunner().invoke(app, ["tune", "--recipe", "answerability", *options])
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert body["saved"] and body["name"] == "taught" and body["rows"] > 20
    assert body["validation"]["auc"]["misleading"] > 0.5 and body["losses"][-1] < body["losses"][0]
    card = json.loads((settings.home / "answerability" / "taught" / "card.json").read_text())
    assert card["base"] == "small" and card["validation"] == body["validation"] and len(card["documents"]) > 5
    used = settings.model_copy(update={"answerability": "taught"})
    opinion = load_opinion(used)
    assert opinion is not None and opinion.card.threshold == body["threshold"]
    refused = []
    for threshold in (0.0, 1.0):
        other = replace(opinion, card=replace(opinion.card, threshold=threshold))
        generator = ScriptedGenerator("The bat weighs 7 kilos [1].")
        answer = Answerer(load_retriever(used, store), generator, used, FixedAdapters(), other).answer(
            Question("What does the bat weigh?")
        )
        assert 0 < (answer.answerability or 0) < 1
        refused.append(answer.refused)
    assert refused == [False, True]
    store.close()
    again = CliRunner().invoke(app, ["tune", "--recipe", "answerability", *options])
    assert again.exit_code == 2 and "already" in again.output
    # Only the first half of the documents has misleading questions: the subject alone would tell what to refuse.
    monkeypatch.setattr(guards, "MANY_ANSWERED", 1)
    half = [line for line in lines if line.get("kind") != "misleading" or int(line["id"][1:]) < len(ANIMALS) // 2]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in half))
    options[options.index("taught")], options[options.index("16")] = "half", "1"
    warned = CliRunner().invoke(app, ["tune", "--recipe", "answerability", *options])
    assert warned.exit_code == 0, warned.output
    assert "no misleading question is about" in warned.stderr.replace("\n", " ")
    assert "no misleading question is about" not in result.stderr.replace("\n", " ")

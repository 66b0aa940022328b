"""The second opinion: its rows and measures, a small encoder that really learns, its folder, and what it refuses."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import HashingEmbedder

from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync
from tuner.answerability import AnswerabilityRecipe, judge_all, tune_answerability
from tuner.answerability_measure import auc, choose_threshold, measured, threshold_behind, worth
from tuner.answerability_model import MOST_TOKENS, AnswerabilityModel
from tuner.answerability_rows import Asked, JudgedRow, ask_for, make_judged_rows, split_pairs
from tuner.answerability_store import AnswerabilityCard, model_folder, new_model_folder, open_model, save_model
from tuner.embedder_rows import Library
from tuner.encoders import Step
from tuner.pairs import Kind, Pair
from tuner.prompt import Source

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "has", "it", "?", ":", "title", "yes", "no", "filler"]
BEES = "The queen lays the eggs. Workers gather nectar all summer long and dance for each other."
TEXTS = {
    "bees": BEES,
    "ants": "Ants follow trails of scent. Soldiers guard the nest, and a colony may live for decades.",
    "owls": "Owls hunt at night. Their flight makes no sound, because their feathers break the air.",
}


def save_encoder(folder: Path, words: Sequence[str] = WORDS, *, window: int = 512) -> Path:
    """A BERT of 20,000 random weights that knows these words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=window,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "corpus").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "corpus" / f"{name}.txt").write_text(text)
    store = Store(tmp_path / "home")
    sync(store, [tmp_path / "corpus"], HashingEmbedder(), ChunkSize(40, 8))
    yield store
    store.close()


def pair(kind: Kind, question: str, answer: str = "", document: str | None = "bees.txt") -> Pair:
    return Pair(question, question, (answer,) if answer else (), document, kind)


# --- rows ------------------------------------------------------------------------------------------------------------


def rows_of(store: Store, *pairs: Pair) -> tuple[list[JudgedRow], dict[str, int]]:
    with store.read() as snapshot:
        rows, dropped = make_judged_rows(Library(snapshot), Retriever(store, HashingEmbedder()), pairs)
    return rows, dict(dropped)


def test_an_answerable_question_learns_its_evidence_and_one_passage_without_it(store: Store) -> None:
    rows, dropped = rows_of(store, pair("answerable", "Who lays the eggs?", "The queen"))
    assert [(row.holds, row.document) for row in rows][:1] == [(True, "bees.txt")]
    assert rows[0].span is not None and rows[0].source.text[slice(*rows[0].span)] == "The queen"
    assert len(rows) == 2 and not rows[1].holds and "queen" not in rows[1].source.text
    assert not dropped


def test_what_is_not_answered_is_learned_as_no(store: Store) -> None:
    rows, _ = rows_of(
        store, pair("misleading", "Which queen gathers nectar?"), pair("absent", "Who flies to Mars?", document=None)
    )
    assert [row.holds for row in rows] == [False] * 3
    assert rows[0].source.text == BEES and rows[0].document == "bees.txt"
    assert {row.question for row in rows[1:]} == {"Who flies to Mars?"}


def test_pairs_without_evidence_are_counted(store: Store) -> None:
    rows, dropped = rows_of(
        store, pair("answerable", "Who sings?", "A nightingale"), pair("misleading", "Who?", document="gone.txt")
    )
    assert rows == []
    assert dropped == {"no answer stands in its document": 1, "its document is not indexed": 1}


def test_a_question_whose_evidence_is_not_shown_is_told_apart(store: Store) -> None:
    retriever = Retriever(store, HashingEmbedder())
    found = ask_for(retriever, [pair("answerable", "Who lays the eggs?", "The queen")], k=3)[0]
    missed = ask_for(retriever, [pair("answerable", "Who hunts at night, and owls?", "The queen")], k=1)[0]
    assert (found.kind, len(found.passages)) == ("answerable", 3)
    assert (missed.kind, missed.passages[0].path) == ("missed", "owls.txt")


def test_the_split_keeps_documents_together_and_shares_what_is_about_none() -> None:
    pairs = [pair("answerable", f"{number}?", "x", f"d{number % 10}") for number in range(40)]
    pairs += [pair("absent", f"nowhere {number}?", document=None) for number in range(20)]
    train, held_out = split_pairs(pairs, 0.2, 1)
    assert {item.id for item in train} | {item.id for item in held_out} == {item.id for item in pairs}
    assert len(train) + len(held_out) == 60
    assert not {item.document for item in train} & ({item.document for item in held_out} - {None})
    assert sum(item.document is None for item in held_out) == 4


# --- measures --------------------------------------------------------------------------------------------------------


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    chooser = np.random.default_rng(0)
    for _ in range(20):
        positive, negative = chooser.integers(0, 6, 9) / 5, chooser.integers(0, 6, 7) / 5
        pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
        assert auc(positive, negative) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(np.zeros(0), np.ones(3)) is None


def test_the_threshold_refuses_as_much_as_over_refusal_allows() -> None:
    scores = np.random.default_rng(1).random(100)
    threshold = choose_threshold(scores)
    assert (scores < threshold).sum() == 5
    assert (scores < np.nextafter(threshold, 2)).sum() == 6
    assert (np.full(10, 0.4) < choose_threshold(np.full(10, 0.4))).sum() == 0


def test_behind_a_gate_what_it_refuses_anyway_costs_nothing() -> None:
    scores = np.arange(100) / 100
    kinds = ["answerable"] * 100
    passed = scores >= 0.3
    threshold = threshold_behind(kinds, scores, passed)  # type: ignore[arg-type]
    assert (passed & (scores < threshold)).sum() == 5
    assert threshold == pytest.approx(0.35)


def test_worth_is_what_is_refused_beyond_the_gate() -> None:
    kinds = ["answerable"] * 50 + ["misleading"] * 40 + ["absent"] * 10 + ["missed"] * 7
    before = np.zeros(107, bool)
    before[90:95] = True
    after = before.copy()
    after[:2] = after[50:70] = after[100:] = True
    found = worth(kinds, before, after, 0)  # type: ignore[arg-type]
    assert (found.refused_rightly, found.refused_wrongly) == pytest.approx((20 / 50, 2 / 50))
    assert found.gain == pytest.approx(0.36) and found.low < 0.36 < found.high and found.low > 0.15
    assert worth(kinds, before, before, 0).gain == 0  # type: ignore[arg-type]


def test_what_is_measured_is_told_by_kind() -> None:
    kinds = ["answerable", "answerable", "misleading", "absent"]
    found = measured(kinds, np.asarray([0.9, 0.4, 0.5, 0.1]), 0.45)  # type: ignore[arg-type]
    assert found["auc"] == {"misleading": 0.5, "absent": 1.0}
    assert found["refused"] == {"answerable": 0.5, "misleading": 0.0, "absent": 1.0}
    assert found["questions"] == {"answerable": 2, "missed": 0, "misleading": 1, "absent": 1}
    assert found["curve"][0]["answerable"] == 0.0 and len(found["curve"]) == 21
    json.dumps(found, allow_nan=False)


# --- the model -------------------------------------------------------------------------------------------------------


def test_question_and_passage_are_read_as_one_sequence(encoder: Path) -> None:
    model = AnswerabilityModel(encoder)
    ids = model.encode("who has it ?", [Source("title", "yes"), Source("", "no " * 500)])
    assert [WORDS[token] for token in ids[0]["input_ids"]] == "[CLS] who has it ? [SEP] title : yes [SEP]".split()
    assert len(ids[1]["input_ids"]) == MOST_TOKENS and ids[1]["input_ids"][:5] == ids[0]["input_ids"][:5]
    assert len(model.encode("who " * 900, [Source("", "no " * 900)])[0]["input_ids"]) == MOST_TOKENS


def test_the_best_passage_decides_and_its_neighbours_change_nothing(encoder: Path) -> None:
    model = AnswerabilityModel(encoder)
    sources = [Source("title", "yes"), Source("", "no filler " * 30), Source("", "filler")]
    scores = model.score("who has it ?", sources)
    alone = [model.score("who has it ?", [source])[0] for source in sources]
    assert scores == pytest.approx(alone, abs=0.02) and len(set(scores)) == 3
    assert model.judge("who has it ?", sources) == pytest.approx(max(scores))
    assert model.judge("who has it ?", []) == 0.0


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    from small_models import save_small_model

    with pytest.raises(TandemError, match="family is 'llama'"):
        AnswerabilityModel(save_small_model(tmp_path / "llama"), name="llama")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TandemError, match="cannot read a question"):
        AnswerabilityModel(tmp_path / "empty")


def lesson(count: int, seed: int) -> list[JudgedRow]:
    """Whether the passage says yes."""
    chooser = random.Random(seed)
    rows = []
    for number in range(count):
        words = ["filler"] * chooser.randint(1, 9) + ["yes" if number % 2 else "no"]
        chooser.shuffle(words)
        text = " ".join(words)
        span = (text.index("yes"), text.index("yes") + 3) if number % 2 else None
        rows.append(JudgedRow("who has it ?", Source("", text), bool(number % 2), "d", span))
    return rows


class Shown(Asked):
    """A question with sources of its own."""

    @property
    def sources(self) -> list[Source]:
        return [Source("", "filler"), Source("", self.question.split("|")[1])]


HELD_OUT = [
    *(Shown("answerable", f"who has it ?|yes {'filler ' * count}", ()) for count in range(5)),
    *(Shown("misleading", f"who has it ?|no {'filler ' * count}", ()) for count in range(5)),
]
QUICK = AnswerabilityRecipe(epochs=4, learning_rate=5e-3, batch_size=8)


def test_an_encoder_learns_what_it_is_shown(encoder: Path) -> None:
    steps: list[Step] = []
    taught = tune_answerability(encoder, lesson(128, 0), HELD_OUT, QUICK, report=steps.append)
    yes, no = (taught.model.score("who has it ?", [Source("", f"filler {word}")])[0] for word in ("yes", "no"))
    assert yes > 0.5 > no
    assert taught.losses[-1] < 0.8 * taught.losses[0]
    epochs = [step for step in steps if step.validation is not None]
    assert epochs[taught.epoch - 1].validation == max(step.validation or 0 for step in epochs) == 1.0
    assert [step.step for step in steps if step.validation is None] == list(range(1, 16 * len(taught.losses) + 1))
    assert (judge_all(taught.model, HELD_OUT) == taught.scores).all()
    assert not taught.model.model.training


def test_equal_runs_give_equal_weights(encoder: Path) -> None:
    one_epoch, rows = replace(QUICK, epochs=1), lesson(16, 0)
    unplaced = [replace(row, span=None) for row in rows]
    other_seed = replace(one_epoch, seed=1)
    first, again, seeded, not_pointing = [
        tune_answerability(encoder, taught, HELD_OUT, recipe).model.model.state_dict()
        for taught, recipe in ((rows, one_epoch), (rows, one_epoch), (rows, other_seed), (unplaced, one_epoch))
    ]
    assert all((first[name] == again[name]).all() for name in first)
    for other in (seeded, not_pointing):
        assert any((first[name] != other[name]).any() for name in first)


def test_a_run_that_is_stopped_leaves_nothing(encoder: Path) -> None:
    steps: list[Step] = []
    with pytest.raises(TandemError, match="stopped"):
        tune_answerability(
            encoder, lesson(64, 0), HELD_OUT, QUICK, report=steps.append, stopped=lambda: len(steps) >= 3
        )
    assert len(steps) == 4  # a step is told after it was asked whether to stop


def test_a_run_that_diverges_says_so(encoder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = save_encoder(tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    state["embeddings.LayerNorm.weight"][:] = float("nan")
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(TandemError, match="diverged"):
        tune_answerability(broken, lesson(16, 0), HELD_OUT, QUICK)


def test_one_side_alone_teaches_nothing(encoder: Path) -> None:
    with pytest.raises(TandemError, match="0 of them with an answer"):
        tune_answerability(encoder, [replace(row, holds=False) for row in lesson(16, 0)], HELD_OUT, QUICK)
    with pytest.raises(TandemError, match="what refusing is worth"):
        tune_answerability(encoder, lesson(16, 0), HELD_OUT[:5], QUICK)


@pytest.mark.parametrize(("values", "named"), [({"epochs": 0}, "epochs"), ({"learning_rate": 0.5}, "learning-rate")])
def test_hyper_parameters_that_cannot_work_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(TandemError, match=f"--{named}"):
        AnswerabilityRecipe(**values)


# --- its folder ------------------------------------------------------------------------------------------------------


def card_of(name: str, files: Any, **changes: Any) -> AnswerabilityCard:
    values: dict[str, Any] = {
        "name": name, "base": "small", "base_sha256": "0", "form": "1", "threshold": 0.3, "recipe": {}, "pairs": {},
        "documents": (), "validation": {}, "versions": {}, "created": "2026-01-01", "files": files,
    }  # fmt: skip
    return AnswerabilityCard(**{**values, **changes})


def saved(home: Path, encoder: Path, name: str = "strict", **changes: Any) -> Path:
    folder = new_model_folder(home, name)
    save_model(folder, lambda files: card_of(name, files, **changes), AnswerabilityModel(encoder))
    return folder


def test_a_model_is_opened_as_it_was_saved(tmp_path: Path, encoder: Path) -> None:
    folder = saved(tmp_path, encoder)
    source = [Source("title", "yes filler")]
    model, card = open_model(tmp_path, "strict", tmp_path / "cache")
    assert card.threshold == 0.3 and "model.safetensors" in card.files
    again, _ = open_model(tmp_path, "strict", tmp_path / "cache", verify=True)
    assert model.score("who ?", source) == again.score("who ?", source)
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert new_model_folder(tmp_path, None).name == "tuned-1"
    with pytest.raises(TandemError, match="already"):
        new_model_folder(tmp_path, "strict")


def test_a_model_that_was_changed_is_refused(tmp_path: Path, encoder: Path) -> None:
    folder = saved(tmp_path, encoder)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before[:-1] + b" ")
        with pytest.raises(TandemError, match=f"changed since it was made: {name}"):
            open_model(tmp_path, "strict", tmp_path / "cache")
        (folder / name).write_bytes(before)
    (folder / "config.json").unlink()
    with pytest.raises(TandemError, match="misses a file"):
        open_model(tmp_path, "strict", tmp_path / "cache")


def test_a_model_for_another_form_or_without_a_card_is_refused(tmp_path: Path, encoder: Path) -> None:
    saved(tmp_path, encoder, "older", form="0")
    with pytest.raises(TandemError, match="the form '0'"):
        open_model(tmp_path, "older", tmp_path / "cache")
    saved(tmp_path, encoder, "wild", threshold=7)
    for name in ("wild", "missing"):
        with pytest.raises(TandemError, match=f"no second opinion '{name}'"):
            open_model(tmp_path, name, tmp_path / "cache")
    card = saved(tmp_path, encoder, "outside") / "card.json"
    values = json.loads(card.read_text())
    values["files"]["../older/config.json"] = "0"
    card.write_text(json.dumps(values))
    with pytest.raises(TandemError, match="files elsewhere"):
        open_model(tmp_path, "outside", tmp_path / "cache")
    for name in ("../x", "", ".hidden", "a/b"):
        with pytest.raises(TandemError, match="cannot name"):
            model_folder(tmp_path, name)

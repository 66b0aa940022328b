"""When a model refuses: probabilities against one reading a row, the opening of an answer against tables by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import save_adapter, save_small_model

from indexer.errors import TandemError
from tuner.adapters import CARD_FILE, read_card
from tuner.basemodel import BaseModel, load_base_model
from tuner.chat import closed_ids
from tuner.decoding import Steps
from tuner.generation import TorchGenerator
from tuner.grouploss import Reading
from tuner.prompt import REFUSAL, Source, build_prompt
from tuner.refusing import Doubt, choose_threshold, doubt, find_doubts, open_answer, refusal_ids
from tuner.rows import Row

BEES, IRON = Source("Bees", "A hive has a queen."), Source("Iron", "Iron melts at 1538 degrees.")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = save_small_model(tmp_path_factory.mktemp("small") / "model")
    return load_base_model(str(folder), cache=folder.parent, device="cpu")


class Table:
    """Reads nothing: the probabilities after each beginning are written down."""

    def __init__(self, after: dict[tuple[int, ...], list[float]]) -> None:
        self.after = {begin: torch.tensor(shares).log() for begin, shares in after.items()}
        self.was_read: tuple[int, ...] = ()

    def peek(self, ids: tuple[int, ...], last: int) -> torch.Tensor:
        assert last == len(ids)
        return torch.stack([self.after[ids[: place + 1]] for place in range(last)])

    def read(self, ids: tuple[int, ...]) -> None:
        self.was_read = tuple(ids)


REFUSED = (0, 1)


def opened(first: list[float], second: list[float], threshold: float) -> tuple[tuple[int, ...], int | None, Table]:
    table = Table({(): first, (0,): second})
    said, logits = open_answer(table, table.after[()], REFUSED, threshold)  # type: ignore[arg-type]
    return said, None if logits is None else int(logits.argmax()), table


def test_a_refusal_over_the_threshold_is_said() -> None:
    # r = 0.6 * 0.9 = 0.54, a = 0.3: the doubt is 0.54 / 0.84 = 0.643.
    said, following, _ = opened([0.6, 0.3, 0.1], [0.05, 0.9, 0.05], 0.64)
    assert (said, following) == (REFUSED, None)


def test_below_it_the_best_other_answer_is_begun() -> None:
    # Of the 0.6 for token 0, 0.54 belong to the refusal: 0.06 are left, and token 1 has 0.3.
    said, following, table = opened([0.6, 0.3, 0.1], [0.05, 0.9, 0.05], 0.65)
    assert (said, following) == ((), 1)
    assert table.was_read == ()


def test_an_answer_that_begins_as_the_refusal_does_is_kept() -> None:
    # r = 0.18; what begins with 0 and is no refusal has 0.42, most of it with token 2: the doubt is 0.3.
    said, following, table = opened([0.6, 0.3, 0.1], [0.1, 0.3, 0.6], 0.31)
    assert (said, following) == ((0,), 2)
    assert table.was_read == (0,)
    assert opened([0.6, 0.3, 0.1], [0.1, 0.3, 0.6], 0.29)[0] == REFUSED


def test_a_low_threshold_refuses_what_greedy_decoding_would_answer() -> None:
    # r = 0.27, a = 0.6: 0.310
    said, following, _ = opened([0.3, 0.6, 0.1], [0.05, 0.9, 0.05], 0.3)
    assert (said, following) == (REFUSED, None)
    assert opened([0.3, 0.6, 0.1], [0.05, 0.9, 0.05], 0.32)[:2] == ((), 1)


def test_an_unlikely_refusal_costs_no_reading() -> None:
    class Nothing:
        pass

    logits = torch.tensor([0.1, 0.8, 0.1]).log()
    said, after = open_answer(Nothing(), logits, REFUSED, 0.2)  # type: ignore[arg-type]
    assert said == ()
    assert after is logits


def test_a_peek_leaves_nothing_behind(small: BaseModel) -> None:
    with torch.inference_mode():
        steps, plain = Steps(small, 40), Steps(small, 40)
        for item in (steps, plain):
            item.read((5, 6, 7))
        seen = steps.peek((8, 9), 2)
        assert torch.equal(seen, Steps(small, 40).read((5, 6, 7, 8, 9), 2)) or torch.allclose(
            seen, Steps(small, 40).read((5, 6, 7, 8, 9), 2), atol=1e-5
        )
        assert torch.allclose(steps.read((10,)), plain.read((10,)), atol=1e-5)


def test_doubts_are_those_of_reading_each_row_alone(small: BaseModel) -> None:
    rows = [
        Row("evidence", "Who leads?", (BEES, IRON), "queen [1].", ("a",)),
        Row("absent", "Who sings?", (IRON,), REFUSAL, ("b",)),
        Row("misleading", "Who leads the ants?", (BEES, IRON), REFUSAL, ("a",)),
    ]
    found = find_doubts(small.model, small.tokenizer, rows, Reading(), limit=400, precision="float32")
    refusal = refusal_ids(small.tokenizer)
    for row, seen in zip(rows, found, strict=True):
        ids = [*build_prompt(small.tokenizer, row.question, row.passages, limit=400).ids, *refusal]
        with torch.inference_mode():
            shares = small.model(torch.tensor([ids])).logits[0].double().softmax(-1)
        begin = len(ids) - len(refusal)
        refused = math.prod(float(shares[place - 1, ids[place]]) for place in range(begin, len(ids)))
        others = shares[begin - 1].tolist()
        others[refusal[0]] -= refused
        assert seen.value == pytest.approx(refused / (refused + max(others)), rel=1e-3)
        begun = closed_ids(small.tokenizer, row.answer)[0]
        assert seen.begins_right == (others.index(max(others)) == begun)


def test_a_row_begins_right_when_the_other_answer_does(small: BaseModel) -> None:
    ids = build_prompt(small.tokenizer, "Who leads?", (BEES,), limit=400).ids
    with torch.inference_mode():
        likeliest = int(small.model(torch.tensor([ids])).logits[0, -1].argmax())
    word = small.tokenizer.decode([likeliest])
    rows = [Row("evidence", "Who leads?", (BEES,), answer, ("a",)) for answer in (word + "x", "\u00e9")]
    right, wrong = find_doubts(small.model, small.tokenizer, rows, Reading(), limit=400, precision="float32")
    assert right.begins_right == bool(word.strip())
    assert not wrong.begins_right


def test_no_refusal_is_no_doubt() -> None:
    assert doubt(torch.tensor([0.5, 0.5]), 0, 0.0) == 0.0


def test_the_threshold_refuses_as_much_as_it_may() -> None:
    answerable = [Doubt(0.0, True)] * 10 + [Doubt(0.0, False)] * 8 + [Doubt(0.5, False), Doubt(0.9, True)]
    unanswerable = [Doubt(value, False) for value in [0.1] * 5 + [0.6] * 10 + [0.95] * 5]
    # From 0.1 on: 2 of 20 are refused wrongly and all others rightly. 10 right, 8 wrong, 20 refused rightly: 22 / 40.
    found = choose_threshold(answerable, unanswerable)
    assert found is not None
    assert (found.value, found.answerable_refused, found.unanswerable_refused) == pytest.approx((0.1, 0.1, 1.0))
    assert found.truthfulness == pytest.approx(22 / 40)


def test_a_threshold_under_which_too_many_answers_are_lost() -> None:
    # At 0.2 all of the unanswerable are told apart, but 6 of 20 answers are lost; at 0.6 it is 1, and 8 of 12 refused.
    answerable = [Doubt(value, True) for value in [0.1] * 14 + [0.3] * 5 + [0.7]]
    unanswerable = [Doubt(value, False) for value in [0.2] * 4 + [0.6] * 8]
    found = choose_threshold(answerable, unanswerable)
    assert found is not None
    assert (found.value, found.answerable_refused, found.unanswerable_refused) == pytest.approx((0.6, 0.05, 8 / 12))


def test_no_threshold_where_it_says_nothing() -> None:
    low, high = Doubt(0.1, True), Doubt(0.9, True)
    assert choose_threshold([low] * 9, [high] * 30) is None
    assert choose_threshold([high] * 30, [low] * 30) is None


def test_the_card_decides_and_the_setting_over_it(small: BaseModel, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "quiet", small, seed=1)
    prompt = build_prompt(small.tokenizer, "Who leads?", [BEES], limit=400)
    closed = build_prompt(small.tokenizer, "Who leads?", None, limit=400)

    def answer(asked: object, setting: float | None = None) -> str:
        # A base model that an adapter was attached to cannot be given to another generator.
        fresh = load_base_model(small.name, cache=tmp_path, device="cpu")
        generator = TorchGenerator(fresh, {"quiet": folder}, refusal_threshold=setting)
        try:
            return "".join(p.text for p in generator.generate(asked, max_tokens=40, adapter="quiet"))  # type: ignore[arg-type]
        finally:
            generator.close()

    plain = answer(prompt)
    assert plain != REFUSAL
    card = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps({**card, "refusal_threshold": 0.0}))
    assert answer(prompt) == REFUSAL
    # Closed book nothing is held against passages, so it is answered as before.
    assert answer(closed) != REFUSAL
    assert answer(prompt, setting=1.0) == plain
    (folder / CARD_FILE).write_text(json.dumps({**card, "refusal_threshold": 1.0}))
    assert answer(prompt) == plain
    assert answer(prompt, setting=0.0) == REFUSAL


@pytest.mark.parametrize("value", ["high", -0.1, 1.5])
def test_a_threshold_that_is_none(small: BaseModel, tmp_path: Path, value: object) -> None:
    folder = save_adapter(tmp_path / "odd", small, seed=1)
    card = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps({**card, "refusal_threshold": value}))
    with pytest.raises(TandemError, match="refusal_threshold"):
        read_card(folder)
    assert replace(read_card(save_adapter(tmp_path / "plain", small, seed=1)), name="x").refusal_threshold is None

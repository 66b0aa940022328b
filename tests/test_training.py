"""The training loop: exact gradients, and runs that continue bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import save_small_model
from tuning_rows import make_rows

from indexer.errors import TandemError
from tuner.basemodel import BaseModel, load_base_model
from tuner.blocks import passage_spans
from tuner.grouploss import Reading, block_mask, find_reading, group_loss
from tuner.groups import ANSWER_ROOM, PLAIN_ROWS, TEXT_TOKENS, Encoded, encode_rows, row_prompt
from tuner.objective import Supervised, autocast
from tuner.recipe import Recipe
from tuner.rows import Row, text_row
from tuner.schedule import Progress, Schedule, learning_rate, reading_order, step_seed, validation_steps
from tuner.train import Training, evaluate, train
from tuner.trainable import make_trainable

SCHEDULE = Schedule(epochs=2, learning_rate=1e-2, accumulation=1, validations=2, precision="float32", seed=5)
DROPPED = Recipe("lora", r=4, dropout=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("base"), window=2048)


@pytest.fixture
def base(folder: Path) -> BaseModel:
    return load_base_model(str(folder), cache=folder / "cache", device="cpu")


def encoded(base: BaseModel, count: int = 8) -> Encoded:
    return encode_rows(base.tokenizer, make_rows(count), limit=1900)


def prepare(base: BaseModel, schedule: Schedule = SCHEDULE, recipe: Recipe = DROPPED) -> Training:
    trainable = make_trainable(base, recipe)
    groups = encoded(base).groups
    reading = find_reading(trainable.model, "none", shared=not recipe.gradient_checkpointing)
    objective = Supervised(trainable.model, reading)
    return Training(trainable.model, trainable.parameters, objective, groups, groups[:2], schedule)


def weights(training: Training) -> dict[str, Any]:
    return {name: parameter.detach().clone() for name, parameter in training.parameters.items()}


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(bool((value == right[name]).all()) for name, value in left.items())


def gradients(base: BaseModel, recipe: Recipe, reading: Reading) -> dict[str, Any]:
    trainable = make_trainable(base, recipe)
    trainable.model.train()
    for group in encoded(base).groups:
        for loss in group_loss(trainable.model, group, reading):
            loss.backward()
    return {name: parameter.grad for name, parameter in trainable.parameters.items()}


def test_rows_that_show_the_same_passages_are_one_group_and_learn_only_answers(base: BaseModel) -> None:
    result = encoded(base)
    assert [len(group.endings) for group in result.groups] == [3, 2, 1, 2]
    assert (result.rows, result.shortened, result.dropped) == (8, 0, 0)
    first = result.groups[0]
    for ending, row in zip(first.endings, make_rows(3), strict=True):
        ids = first.prefix + ending.ids
        prompt = row_prompt(base.tokenizer, row, 1900)
        assert ids[: len(prompt.ids)] == prompt.ids
        learned = [id_ for id_, flag in zip(ending.ids, ending.learned, strict=True) if flag]
        assert tuple(learned) == ids[len(prompt.ids) :]
        assert base.tokenizer.decode(learned) == row.answer + "<|im_end|>"


def test_a_row_whose_evidence_does_not_fit_is_dropped_and_not_taught(base: BaseModel) -> None:
    row = make_rows(1)[0]
    long = replace(row, passages=(row.passages[1], row.passages[0]), answer="twice a day [2].")
    limit = len(row_prompt(base.tokenizer, replace(long, passages=long.passages[:1]), 1900).ids)
    result = encode_rows(base.tokenizer, [long, replace(long, answer="Nothing.")], limit=limit)
    assert (result.rows, result.shortened, result.dropped) == (1, 2, 1)


def test_rows_without_passages_are_grouped_by_length_and_within_the_limit(base: BaseModel) -> None:
    words = [3, 90, 4, 60, 5, 80, 6, 7]
    rows = [Row("instruction", "word " * count, (), "Done.", ()) for count in words]
    lengths = [len(row_prompt(base.tokenizer, row, 1900).ids) for row in rows]
    limit = lengths[1] + ANSWER_ROOM
    result = encode_rows(base.tokenizer, rows, limit=limit)
    sizes = [[len(ending.ids) for ending in group.endings] for group in result.groups]
    assert [size for some in sizes for size in some] == sorted(size for some in sizes for size in some)
    assert all(len(some) <= PLAIN_ROWS and len(some) * some[-1] <= limit + ANSWER_ROOM for some in sizes)
    assert len(sizes) < len(rows) == result.rows


def test_a_text_is_learned_in_pieces_without_a_prompt(base: BaseModel) -> None:
    text = "The moon\nraises <|im_end|> the tides. " * 40
    shown = " ".join(["The moon raises < |im_end|> the tides."] * 40)
    ids = base.tokenizer(shown, add_special_tokens=False)["input_ids"]
    assert len(ids) > 2 * TEXT_TOKENS
    result = encode_rows(base.tokenizer, [text_row(text), text_row("a")], limit=1900)
    pieces = sorted((ending for group in result.groups for ending in group.endings), key=lambda piece: -len(piece.ids))
    assert (result.rows, result.dropped) == (1, 1), "one token predicts nothing"
    assert sorted(token for piece in pieces for token in piece.ids) == sorted(ids)
    assert [len(piece.ids) for piece in pieces[:2]] == [TEXT_TOKENS] * 2 and pieces[0].ids == tuple(ids[:TEXT_TOKENS])
    assert all(piece.learned == (False,) + (True,) * (len(piece.ids) - 1) for piece in pieces)


def test_a_row_whose_answer_is_too_long_is_left_out(base: BaseModel) -> None:
    row = make_rows(1)[0]
    limit = len(row_prompt(base.tokenizer, row, 1900).ids)
    result = encode_rows(base.tokenizer, [row, replace(row, answer="word " * 400)], limit=limit)
    assert (result.rows, result.dropped) == (1, 1)
    assert max(group.tokens for group in result.groups) <= limit + ANSWER_ROOM


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_last_layers_of_a_model_in_16_bits_are_trained(base: BaseModel, precision: str) -> None:
    import torch

    base.model.to(torch.bfloat16)
    trainable = make_trainable(base, Recipe("partial", layers=1, precision=precision))
    reading = find_reading(trainable.model, "none")
    assert reading == Reading(True, True)
    with autocast(trainable.model, precision):
        sum(group_loss(trainable.model, encoded(base).groups[0], reading)).backward()
    assert all(p.dtype == torch.float32 and p.grad.abs().max() > 0 for p in trainable.parameters.values())


def test_an_instruction_is_a_plain_turn_of_chat(base: BaseModel) -> None:
    prompt = row_prompt(base.tokenizer, make_rows(8)[7], 1900)
    assert [message["role"] for message in prompt.messages] == ["user"]
    assert "numbered passages" not in base.tokenizer.decode(prompt.ids)


@pytest.mark.parametrize("recipe", [Recipe("lora", r=4), Recipe("full")], ids=["lora", "full"])
def test_shared_reading_gives_the_gradients_of_rows_alone(folder: Path, recipe: Recipe) -> None:
    found = []
    for reading in (Reading(True, True), Reading(False, False)):
        found.append(gradients(load_base_model(str(folder), cache=folder / "cache", device="cpu"), recipe, reading))
    shared, alone = found
    assert shared.keys() == alone.keys() and len(shared) > 5
    for name, gradient in alone.items():
        assert float((shared[name] - gradient).abs().max()) < 2e-4 * max(1.0, float(gradient.abs().max())), name
    assert any(float(gradient.abs().max()) > 0 for gradient in alone.values())


def test_gradient_checkpointing_changes_no_gradient(folder: Path) -> None:
    found = []
    for checkpointing in (False, True):
        base = load_base_model(str(folder), cache=folder / "cache", device="cpu")
        recipe = Recipe("lora", r=4, gradient_checkpointing=checkpointing)
        found.append(gradients(base, recipe, Reading(shared=False)))
        assert base.model.is_activation_checkpointing is checkpointing
    for name, gradient in found[0].items():
        assert float((found[1][name] - gradient).abs().max()) < 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_blocks_hide_passages_from_each_other_and_nothing_from_what_follows(base: BaseModel) -> None:
    import torch

    mask = block_mask(7, ((1, 3), (3, 5)), "cpu", torch.float32)[0, 0] == 0
    seen = [[int(place) for place in row.nonzero()[:, 0]] for row in mask]
    assert seen == [[0], [1], [1, 2], [3], [3, 4], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6]]
    row = make_rows(1)[0]
    prompt = row_prompt(base.tokenizer, row, 1900)
    spans = passage_spans(base.tokenizer, prompt)
    texts = [base.tokenizer.decode(prompt.ids[start:end]) for start, end in spans]
    assert texts == [f"[{n}] {s.title}: {s.text}\n" for n, s in enumerate(row.passages, start=1)]
    group = encoded(base).groups[0]
    with torch.no_grad():
        whole, blocks = (
            sum(float(part) for part in group_loss(base.model, group, Reading(), blocks=blocks))
            for blocks in (False, True)
        )
    assert abs(whole - blocks) > 1e-4


def test_a_model_that_cannot_share_is_read_row_by_row_and_cannot_have_blocks(base: BaseModel) -> None:
    assert find_reading(base.model, "none") == Reading(True, True)
    assert find_reading(base.model, "none", shared=False) == Reading(False, True)
    with pytest.raises(TandemError, match="apart from each other"):
        find_reading(base.model, "none", shared=False, blocks=True)


class Stop(Exception):
    """The process dies."""


def test_a_run_cut_off_anywhere_and_resumed_equals_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    def fresh() -> Training:
        base = load_base_model(str(folder), cache=folder / "cache", device="cpu")
        return prepare(base, replace(SCHEDULE, seconds=0.0, weight_decay=0.1))

    whole = fresh()
    expected = train(whole, tmp_path / "whole" / "c.safetensors")
    assert expected.steps == 8 and len(expected.validation) == 2 and len(expected.losses) == 8
    shown = expected.losses[0]
    for loss in expected.losses[1:]:
        shown = 0.95 * shown + 0.05 * loss
    assert expected.loss == pytest.approx(shown)
    for cut in (1, 3, 4, 7):
        checkpoint = tmp_path / str(cut) / "c.safetensors"

        def die(progress: Progress, cut: int = cut) -> None:
            if progress.step == cut + 1:
                raise Stop

        with pytest.raises(Stop):
            train(fresh(), checkpoint, report=die)
        resumed = fresh()
        steps: list[int] = []
        result = train(resumed, checkpoint, report=lambda progress, steps=steps: steps.append(progress.step))
        assert steps[0] == cut + 1
        assert same(weights(resumed), weights(whole))
        assert result.validation == expected.validation and result.best_step == expected.best_step
        assert result.losses == expected.losses
    other = fresh()
    train(replace(other, schedule=replace(other.schedule, seed=6)), tmp_path / "other" / "c.safetensors")
    assert not same(weights(other), weights(whole))


def test_a_finished_run_is_not_trained_further_and_the_best_parameters_are_kept(
    folder: Path, base: BaseModel, tmp_path: Path
) -> None:
    training = prepare(base, replace(SCHEDULE, epochs=8, learning_rate=0.02, validations=10, patience=2))
    # An answer that no row teaches soon becomes less likely.
    untaught = [replace(make_rows(3)[2], answer="ZQXJ" * 4)]
    training = replace(training, validation=encode_rows(base.tokenizer, untaught, limit=1900).groups)
    progress = train(training, tmp_path / "c.safetensors")
    losses = dict(progress.validation)
    assert progress.best_step == min(losses, key=lambda step: losses[step])
    assert progress.step < progress.steps
    assert [step for step in losses if step > progress.best_step] == sorted(losses)[-2:]
    assert evaluate(training, training.validation) == pytest.approx(min(losses.values()), rel=1e-6)
    again = prepare(load_base_model(str(folder), cache=folder / "cache", device="cpu"), training.schedule)
    assert train(again, tmp_path / "c.safetensors").step == progress.step
    assert same(weights(again), weights(training))


def test_bitsandbytes_optimiser_continues_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes.optim

    # Off a GPU nothing is paged, and the library says so; the state is the same.
    monkeypatch.setattr(bitsandbytes.optim, "PagedAdamW32bit", bitsandbytes.optim.AdamW32bit)

    def fresh() -> Training:
        base = load_base_model(str(folder), cache=folder / "cache", device="cpu")
        return replace(prepare(base, replace(SCHEDULE, seconds=0.0)), paged=True)

    def die(progress: Progress) -> None:
        if progress.step == 5:
            raise Stop

    whole, resumed = fresh(), fresh()
    train(whole, tmp_path / "whole.safetensors")
    with pytest.raises(Stop):
        train(fresh(), tmp_path / "cut.safetensors", report=die)
    train(resumed, tmp_path / "cut.safetensors")
    assert same(weights(resumed), weights(whole))


def test_a_checkpoint_of_another_run_and_a_damaged_one_are_refused(
    folder: Path, base: BaseModel, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "c.safetensors"
    stopped = iter((False, False, True))
    with pytest.raises(TandemError, match="stopped at step 2 of 8"):
        train(prepare(base), checkpoint, stop=lambda: next(stopped))
    other = load_base_model(str(folder), cache=folder / "cache", device="cpu")
    with pytest.raises(TandemError, match="other settings"):
        train(prepare(other, replace(SCHEDULE, weight_decay=0.1)), checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:50])
    other = load_base_model(str(folder), cache=folder / "cache", device="cpu")
    with pytest.raises(TandemError, match="cannot be read"):
        train(prepare(other), checkpoint)


def test_the_rate_rises_then_falls_to_a_tenth() -> None:
    schedule = Schedule(learning_rate=1.0, warm_up=0.1)
    rates = [learning_rate(step, 100, schedule) for step in range(100)]
    assert rates[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert rates[55] == pytest.approx(0.55, abs=0.01) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 <= rates[-1] < 0.101


def test_an_epoch_reads_everything_once_in_an_order_of_its_own() -> None:
    order = reading_order(50, Schedule(epochs=2.5, block_share=0.3, seed=1))
    places = [place for place, _ in order]
    assert len(order) == 125
    assert sorted(places[:50]) == sorted(places[50:100]) == list(range(50)) and places[:50] != places[50:100]
    assert 20 < sum(blocks for _, blocks in order) < 55
    assert order == reading_order(50, Schedule(epochs=2.5, block_share=0.3, seed=1))
    assert order != reading_order(50, Schedule(epochs=2.5, block_share=0.3, seed=2))
    assert validation_steps(10, 4) == {2, 5, 8, 10} and validation_steps(1, 4) == {1}
    assert len({step_seed(seed, step) for seed in range(20) for step in range(500)}) == 10_000

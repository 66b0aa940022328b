"""DPO: its loss against trl's trainer, what is learned, and where preferences come from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_models import save_small_model
from tuning_rows import make_rows

from indexer.errors import TandemError
from tuner.basemodel import BaseModel, load_base_model
from tuner.grouploss import Reading
from tuner.groups import row_prompt
from tuner.preference import (
    Preference,
    PreferenceObjective,
    Weighed,
    answer_logs,
    encode_preferences,
    preferences_of,
    read_preferences,
    weigh,
    write_preferences,
)
from tuner.prompt import REFUSAL
from tuner.recipe import Recipe
from tuner.rows import Row
from tuner.schedule import Schedule
from tuner.train import Training, train
from tuner.trainable import make_trainable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("base"), window=2048)


@pytest.fixture
def base(folder: Path) -> BaseModel:
    return load_base_model(str(folder), cache=folder / "cache", device="cpu")


def test_preferences_of_rows_refuse_what_is_missing_and_nothing_else() -> None:
    made = preferences_of(make_rows(8), seed=0)
    by_question = {item.question: item for item in made}
    # No passages, or passages that answer nothing: nothing to prefer.
    assert "Repeat the word\nmoon" not in by_question and "Why does bread rise?" not in by_question
    assert len(made) == 5
    refusal = by_question["Who named the tides?"]
    assert refusal.chosen == REFUSAL and refusal.rejected in ("twice a day [1].", "The moon [1].")
    answers = {row.question: row.answer for row in make_rows(8)}
    for item in made:
        assert item.chosen == answers[item.question] != item.rejected
    rejected = {item.rejected == REFUSAL for item in made if item.chosen != REFUSAL}
    assert preferences_of(make_rows(8), seed=0) == made and rejected


def test_the_loss_is_that_of_trl(folder: Path, base: BaseModel, tmp_path: Path) -> None:
    import torch
    from torch.nn.functional import logsigmoid

    preferences = preferences_of(make_rows(8), seed=0)
    groups, shortened, dropped = encode_preferences(base.tokenizer, preferences, limit=1900)
    assert (len(groups), shortened, dropped) == (5, 0, 0)
    reference = weigh(base.model, groups, Reading(), "float32")
    # A changed policy: the reference stays what was weighed before.
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter.mul_(1.05)
    ours = [
        float(loss)
        for item in reference
        for loss in PreferenceObjective(base.model, Reading(), 0.3).losses(item, blocks=False)
    ]
    assert len({round(loss, 4) for loss in ours}) > 1
    margins = [float((logs := answer_logs(base.model, group, Reading()))[0] - logs[1]) for group in groups]
    by_hand = [
        -float(logsigmoid(torch.tensor(0.3 * (margin - (item.chosen - item.rejected)))))
        for margin, item in zip(margins, reference, strict=True)
    ]
    assert ours == pytest.approx(by_hand, rel=1e-4)
    assert ours == pytest.approx(trl_losses(folder, base, reference, 0.3, tmp_path), rel=1e-3)


def trl_losses(folder: Path, base: BaseModel, reference: list[Weighed], beta: float, output: Path) -> list[float]:
    """What trl's own trainer computes for the same ids, with a reference model of its own."""
    import warnings

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import DPOConfig
        from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

        settings = DPOConfig(
            output_dir=str(output), beta=beta, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True
        )
        trainer = DPOTrainer(
            model=base.model,
            ref_model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
            processing_class=base.tokenizer,
        )
        trainer.model.eval()
        trainer.ref_model.eval()
        collate = DataCollatorForPreference(pad_token_id=0)
        losses = []
        for item in reference:
            chosen, rejected = (item.group.prefix + ending.ids for ending in item.group.endings)
            at = len(item.group.prefix) + item.group.endings[0].learned.index(True)
            ids = {"prompt_ids": chosen[:at], "chosen_ids": chosen[at:], "rejected_ids": rejected[at:]}
            batch = collate([{name: list(value) for name, value in ids.items()}])
            with torch.no_grad():
                losses.append(float(trainer._compute_loss(trainer.model, batch, False)))
    return losses


def test_training_prefers_the_chosen_answers(base: BaseModel, tmp_path: Path) -> None:
    preferences = preferences_of(make_rows(8), seed=0)
    groups, _, _ = encode_preferences(base.tokenizer, preferences, limit=1900)
    trainable = make_trainable(base, Recipe("lora", r=4))
    weighed = weigh(base.model, groups, Reading(), "float32")
    schedule = Schedule(epochs=6, learning_rate=5e-3, accumulation=5, precision="float32", validations=1)
    training = Training(
        base.model, trainable.parameters, PreferenceObjective(base.model, Reading(), 0.1), weighed, weighed, schedule
    )
    progress = train(training, tmp_path / "c.safetensors")
    # Before the first step policy and reference are the same, so each loss is log 2.
    assert progress.validation[-1][1] < 0.6
    after = weigh(base.model, groups, Reading(), "float32")
    gained = [(b.chosen - b.rejected) - (a.chosen - a.rejected) for a, b in zip(weighed, after, strict=True)]
    assert sum(value > 0 for value in gained) >= 4


def test_a_preference_whose_evidence_does_not_fit_is_left_out(base: BaseModel) -> None:
    item = next(item for item in preferences_of(make_rows(8), 0) if item.chosen == "at 1538 degrees [2].")
    short = replace(item, passages=item.passages[:1], chosen="x")
    limit = len(row_prompt(base.tokenizer, Row("evidence", item.question, short.passages, "x", ()), 1900).ids)
    groups, shortened, dropped = encode_preferences(base.tokenizer, [item, short], limit=limit)
    assert (len(groups), shortened, dropped) == (1, 1, 1)


@pytest.mark.parametrize(
    "line",
    ["[]", "{}", '{"question": "q", "passages": [], "chosen": "a", "rejected": "a"}',
     '{"question": " ", "passages": [], "chosen": "a", "rejected": "b"}',
     '{"question": "q", "passages": [{"title": "t"}], "chosen": "a", "rejected": "b"}'],
)  # fmt: skip
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "q", "passages": [], "chosen": "a", "rejected": "b"}\n\n' + line)
    with pytest.raises(TandemError, match="Line 3"):
        read_preferences(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = [*preferences_of(make_rows(8), 1), Preference("q é", (), "a", "b")]
    write_preferences(tmp_path / "p.jsonl", made)
    assert read_preferences(tmp_path / "p.jsonl") == made
    assert json.loads((tmp_path / "p.jsonl").read_text("utf-8").splitlines()[-1])["question"] == "q é"

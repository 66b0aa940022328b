"""The recipe `answerability`: an encoder with a classification head learns whether a passage holds the answer.

The loop is that of transformers' Trainer: AdamW, a learning rate that rises over the first tenth of the steps and
falls linearly to zero, binary cross-entropy, and beside it the loss of pointing at the answer (tuner/pointing.py).
After each epoch held-out questions with the passages they are shown decide: the best epoch is kept, and an epoch
without a gain ends it. Trainer's own checkpoints are pickles, so none are written: a run takes minutes, and one that
is stopped is started again.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indexer.errors import TandemError
from tuner.answerability_measure import Scores, auc, by_kind
from tuner.answerability_model import AnswerabilityModel
from tuner.answerability_rows import Asked, JudgedRow
from tuner.encoders import Step, check_values
from tuner.objective import has_bfloat16
from tuner.quiet import quiet

WARM_UP = 0.1
WEIGHT_DECAY = 0.01
# Rows below which nothing but those few would be learned.
FEWEST_ROWS = 8
# What a row holds beside what is read.
_TAUGHT = ("labels", "places")


@dataclass(frozen=True, slots=True)
class AnswerabilityRecipe:
    """Hyper-parameters. The rate suits encoders of some ten million parameters; larger ones want a lower one."""

    epochs: int = 2
    learning_rate: float = 1e-4
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise TandemError for values that cannot work."""
        check_values(self.epochs, self.learning_rate, self.batch_size)


@dataclass(frozen=True, slots=True)
class Taught:
    """The best epoch's model, its (q,) scores of the held-out questions, and the mean loss of each epoch."""

    model: AnswerabilityModel
    epoch: int
    scores: Scores
    losses: tuple[float, ...]


def tune_answerability(
    base: Path,
    rows: Sequence[JudgedRow],
    held_out: Sequence[Asked],
    recipe: AnswerabilityRecipe,
    *,
    device: str = "cpu",
    report: Callable[[Step], None] = lambda step: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Taught:
    """Teach a copy of the encoder in `base`. Equal rows, recipe and machine give equal weights.

    Raises TandemError for rows or held-out questions of one side only, when the training diverges, and when it was
    `stopped`: then nothing is left of it.
    """
    check_sides(rows, held_out)
    import torch

    with torch.random.fork_rng(), quiet():
        # The head's first weights are drawn when it is loaded; Trainer sets the generators to the same seed later.
        torch.manual_seed(recipe.seed)
        return _Teaching(AnswerabilityModel(base, device=device), rows, held_out, recipe, report, stopped).run()


def check_sides(rows: Sequence[JudgedRow], held_out: Sequence[Asked]) -> None:
    """Raise TandemError unless there are enough rows, and both what is to be answered and what is not."""
    sides = {row.holds for row in rows}
    if len(rows) < FEWEST_ROWS or len(sides) < 2:
        raise TandemError(
            f"There are {len(rows)} rows to learn from, {sum(row.holds for row in rows)} of them with an answer.",
            expected=f"At least {FEWEST_ROWS}, with and without; better some thousand.",
            do="Add pairs; `document` is the path of an indexed document, as `tandem search --json` shows it.",
        )
    kinds = {asked.kind for asked in held_out}
    if "answerable" not in kinds or not kinds & {"misleading", "absent"}:
        raise TandemError(
            "The held-out pairs do not show what refusing is worth.",
            expected="Answerable and unanswerable (misleading or absent) questions about several documents.",
            do="Add pairs of the kinds misleading and absent.",
        )


def held_out_area(asked: Sequence[Asked], scores: Scores) -> float:
    """The area under the curve of questions with evidence against those that no document answers."""
    parts = by_kind([item.kind for item in asked], scores)
    area = auc(parts["answerable"], np.concatenate([parts["misleading"], parts["absent"]]))
    assert area is not None
    return area


def judge_all(
    model: AnswerabilityModel, asked: Sequence[Asked], tell: Callable[[int, int], None] = lambda done, of: None
) -> Scores:
    """(q,) scores of the questions with the passages they are shown. Dropout is off meanwhile."""
    training = model.model.training
    model.model.eval()
    scores = np.zeros(len(asked))
    for place, item in enumerate(asked):
        tell(place, len(asked))
        scores[place] = model.judge(item.question, item.sources)
    model.model.train(training)
    return scores


class _Teaching:
    """One run."""

    def __init__(
        self,
        model: AnswerabilityModel,
        rows: Sequence[JudgedRow],
        held_out: Sequence[Asked],
        recipe: AnswerabilityRecipe,
        report: Callable[[Step], None],
        stopped: Callable[[], bool],
    ) -> None:
        self.model = model
        self.held_out = held_out
        self.recipe = recipe
        self.report = report
        self.stopped = stopped
        self.data = [self._encode(row) for row in rows]
        self.losses: list[float] = []
        self.best: tuple[float, int, Scores, dict[str, Any]] | None = None
        self._epoch: list[float] = []

    def _encode(self, row: JudgedRow) -> dict[str, Any]:
        from tuner.pointing import NO_ANSWER, NOWHERE

        places = self.model.locate(row.question, row.source, row.span) if row.span else None
        nothing = (NOWHERE, NOWHERE) if row.holds else (NO_ANSWER, NO_ANSWER)
        return self.model.encode(row.question, [row.source])[0] | {
            "labels": float(row.holds),
            "places": places or nothing,
        }

    def run(self) -> Taught:
        from transformers import PrinterCallback, Trainer

        from tuner.pointing import Pointing

        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=Pointing(self.model.model),
                args=self._arguments(folder),
                train_dataset=self.data,
                data_collator=self._collate,
                processing_class=self.model.tokenizer,
                callbacks=[self._callback()],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        if self.stopped() or self.best is None:
            raise TandemError("The tuning was stopped.", do="Start it again; nothing was kept.", code="conflict")
        _, epoch, scores, state = self.best
        self.model.model.load_state_dict(state)
        self.model.model.eval()
        return Taught(self.model, epoch, scores, tuple(self.losses))

    def _arguments(self, folder: str) -> Any:
        import torch
        from transformers import TrainingArguments

        on_cpu = self.model.model.device.type == "cpu"
        return TrainingArguments(
            output_dir=folder,
            num_train_epochs=self.recipe.epochs,
            learning_rate=self.recipe.learning_rate,
            per_device_train_batch_size=self.recipe.batch_size,
            warmup_steps=WARM_UP,
            weight_decay=WEIGHT_DECAY,
            seed=self.recipe.seed,
            bf16=has_bfloat16() if on_cpu else torch.cuda.is_bf16_supported(),
            use_cpu=on_cpu,
            train_sampling_strategy="group_by_length",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )

    def _collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        return {
            "texts": self.model.collate([{name: row[name] for name in row if name not in _TAUGHT} for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
            "places": torch.tensor([row["places"] for row in rows]),
        }

    def _callback(self) -> Any:
        from transformers import TrainerCallback

        teaching = self

        class Follow(TrainerCallback):  # type: ignore[misc]
            """Trainer's hooks: progress, stopping, and the epoch that is kept."""

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                if logs and "loss" in logs:
                    teaching.see_loss(float(logs["loss"]), state)

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_training_stop = control.should_training_stop or teaching.stopped()

            def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                # After the last epoch it is set already; that epoch is measured all the same.
                control.should_training_stop = teaching.end_epoch(state) or control.should_training_stop

        return Follow()

    def see_loss(self, loss: float, state: Any) -> None:
        """Tell of a step. Raises TandemError when the training diverged."""
        if not np.isfinite(loss):
            raise TandemError("The training diverged: the loss is not a number.", do="Lower --learning-rate.")
        self._epoch.append(loss)
        self.report(Step(math.ceil(state.epoch), state.global_step, state.max_steps, loss))

    def end_epoch(self, state: Any) -> bool:
        """Measure, keep the best, and say whether to end: an epoch that brought no gain is the last."""
        if self.stopped():
            return True
        epoch, loss = len(self.losses) + 1, sum(self._epoch) / len(self._epoch)
        self.losses.append(loss)
        self._epoch = []
        scores = judge_all(self.model, self.held_out)
        area = held_out_area(self.held_out, scores)
        self.report(Step(epoch, state.global_step, state.max_steps, loss, area))
        if self.best is not None and area <= self.best[0]:
            return True
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.model.model.state_dict().items()}
        self.best = (area, epoch, scores, weights)
        return False

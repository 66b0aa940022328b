"""The recipe `embedder`: fine-tune a sentence-transformers model so that questions land next to their chunks.

MultipleNegativesRankingLoss (Henderson et al. 2017, arXiv 1705.00652; the library's own class): in a batch, the chunks
of the other questions and all hard negatives are what a question must not be near. The learning rate rises over the
first tenth of the steps and falls linearly to zero. After each epoch held-out questions decide: the best epoch is
kept, and an epoch without a gain ends it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indexer.embedding import EMBED_BATCH, Vectors
from indexer.errors import TandemError
from indexer.weights import Weights
from tuner.embedder_rows import NEGATIVES, Row
from tuner.embedder_validation import Measured, Validation
from tuner.encoders import Step, check_values
from tuner.quiet import quiet

WARM_UP = 0.1
# Epochs in a row that may bring no gain.
PATIENCE = 1
WEIGHT_DECAY = 0.01
MOST_GRADIENT = 1.0
# Rows below which a batch has too few negatives and an epoch too few steps to learn anything.
FEWEST_ROWS = 4


@dataclass(frozen=True, slots=True)
class EmbedderRecipe:
    """Hyper-parameters. The defaults are usual for a model of this size and some hundred to some thousand rows."""

    epochs: int = 4
    learning_rate: float = 2e-5
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise TandemError for values that cannot work."""
        why = "; the other questions of a batch are negatives"
        check_values(self.epochs, self.learning_rate, self.batch_size, 2, why)


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best epoch's model in memory: `save(folder)` writes it as safetensors."""

    save: Callable[[Path], None]
    epoch: int
    measured: Measured
    losses: tuple[float, ...]


def tune_embedder(
    weights: Weights,
    rows: Sequence[Row],
    validation: Validation,
    recipe: EmbedderRecipe,
    *,
    device: str = "cpu",
    report: Callable[[Step], None] = lambda step: None,
) -> Tuned:
    """Fine-tune a copy of `weights`. Equal rows, recipe and machine give equal weights.

    Raises TandemError for too few rows and when the training diverges.
    """
    if len(rows) < FEWEST_ROWS:
        raise TandemError(
            f"There are {len(rows)} pairs to tune on.",
            expected=f"At least {FEWEST_ROWS}, and better some hundred: answerable, with a document that is indexed.",
            do="Add pairs; `document` is the path of an indexed document, as `tandem search --json` shows it.",
        )
    import torch

    with torch.random.fork_rng(), quiet():
        torch.manual_seed(recipe.seed)
        return _Training(weights, rows, validation, recipe, device).run(report)


class _Training:
    """One run."""

    def __init__(
        self, weights: Weights, rows: Sequence[Row], validation: Validation, recipe: EmbedderRecipe, device: str
    ) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        self.validation = validation
        self.model: Any = SentenceTransformer(
            str(weights.path), device=device, local_files_only=True, trust_remote_code=False
        )
        self.loss: Any = MultipleNegativesRankingLoss(self.model)
        self.random = random.Random(recipe.seed)
        # Drawn at once, because the schedule needs their number.
        self.epochs = [list(batches(rows, recipe.batch_size, self.random)) for _ in range(recipe.epochs)]
        self.steps = sum(map(len, self.epochs))
        self.optimiser = torch.optim.AdamW(self._groups(), lr=recipe.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, self._rate)

    def _groups(self) -> list[dict[str, Any]]:
        """Weight decay for matrices only, as the model was trained."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return [
            {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
        ]

    def _rate(self, step: int) -> float:
        warm = max(1, round(WARM_UP * self.steps))
        return (step + 1) / warm if step < warm else max(0.0, (self.steps - step) / max(1, self.steps - warm))

    def run(self, report: Callable[[Step], None]) -> Tuned:
        best: tuple[int, Measured, dict[str, Any]] | None = None
        losses, worse, done = [], 0, 0
        for epoch, taken in enumerate(self.epochs, start=1):
            summed = 0.0
            for batch in taken:
                loss = self._step(batch)
                summed += loss
                done += 1
                report(Step(epoch, done, self.steps, loss))
            losses.append(summed / len(taken))
            measured = self._measure()
            report(Step(epoch, done, self.steps, losses[-1], measured.value()))
            if best is None or measured.value() > best[1].value():
                state = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
                best, worse = (epoch, measured, state), 0
            else:
                worse += 1
                if worse >= PATIENCE:
                    break
        assert best is not None
        self.model.load_state_dict(best[2])
        return Tuned(self._save, best[0], best[1], tuple(losses))

    def _step(self, batch: Sequence[Row]) -> float:
        import torch

        self.model.train()
        columns = [(self._prompt("query"), "query", [row.question for row in batch])]
        documents = [[row.positive for row in batch], *self._negatives(batch)]
        columns += [(self._prompt("document", "passage", "corpus"), "document", list(texts)) for texts in documents]
        features = [self._features(prompt, task, texts) for prompt, task, texts in columns]
        loss = self.loss(features, None)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TandemError("The training diverged: the loss is not a number.", do="Lower --learning-rate.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MOST_GRADIENT)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()
        return value

    def _negatives(self, batch: Sequence[Row]) -> list[list[str]]:
        """Columns of hard negatives. The loss wants equally many of every row: other chunks fill in where some lack."""
        positives = {row.positive for row in batch}
        others = [text for text in self.validation.texts if text not in positives]
        columns = [[*row.negatives, *self.random.sample(others, min(NEGATIVES, len(others)))] for row in batch]
        count = min(NEGATIVES, *map(len, columns))
        return [[column[place] for column in columns] for place in range(count)]

    def _prompt(self, *names: str) -> str | None:
        prompts = self.model.prompts or {}
        return next((prompts[name] for name in names if prompts.get(name)), None)

    def _features(self, prompt: str | None, task: str, texts: list[str]) -> dict[str, Any]:
        features = self.model.preprocess(texts, prompt=prompt, task=task)
        return {
            name: value.to(self.model.device) if hasattr(value, "to") else value for name, value in features.items()
        }

    def _measure(self) -> Measured:
        options = {"batch_size": EMBED_BATCH, "normalize_embeddings": True, "show_progress_bar": False}
        questions: Vectors = self.model.encode_query(self.validation.questions, **options)
        chunks: Vectors = self.model.encode_document(self.validation.texts, **options)
        return self.validation.measure(questions, chunks)

    def _save(self, folder: Path) -> None:
        # No model card: the library would fill it from the hub.
        self.model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)


def batches(rows: Sequence[Row], size: int, chooser: random.Random) -> Iterator[list[Row]]:
    """All rows in random order, at most `size` at a time; what answers a question is never its negative.

    So rows of one document, whose chunks may answer each other's questions, do not come together, nor does a row with
    one whose hard negative it needs.
    """
    waiting = list(rows)
    chooser.shuffle(waiting)
    while waiting:
        batch: list[Row] = []
        left: list[Row] = []
        for row in waiting:
            fits = len(batch) < size and not any(_clash(row, other) for other in batch)
            (batch if fits else left).append(row)
        yield batch
        waiting = left


def _clash(row: Row, other: Row) -> bool:
    return (
        row.document == other.document
        or row.positive == other.positive
        or row.positive in other.negatives
        or other.positive in row.negatives
    )

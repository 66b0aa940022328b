"""A second opinion before an answer: a small encoder reads the question with each passage, and may refuse.

Off unless the setting `answerability` names a model of this home (`tandem tune --recipe answerability`). It comes after
the relevance gate, which is free, and before the base model, which costs most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from indexer.records import Passage
from service.settings import Settings
from tuner.answerability_store import AnswerabilityCard, open_model
from tuner.prompt import Source

if TYPE_CHECKING:
    from tuner.answerability_model import AnswerabilityModel


@dataclass(frozen=True, slots=True)
class SecondOpinion:
    """A model with the card that says under which score it refuses. Thread-safe."""

    model: AnswerabilityModel
    card: AnswerabilityCard

    def score(self, question: str, passages: Sequence[Passage]) -> float:
        """How likely one of the passages holds the answer, 0 to 1."""
        return self.model.judge(question, [Source(item.chunk.context, item.chunk.text) for item in passages])

    def refuses(self, score: float) -> bool:
        """Whether a question with this score is refused."""
        return score < self.card.threshold


def load_opinion(settings: Settings, *, verify: bool = False) -> SecondOpinion | None:
    """The second opinion of the settings; None when none is named. Raises TandemError as open_model does."""
    if not settings.answerability:
        return None
    device = "cuda" if settings.device == "cuda" else "cpu"
    model, card = open_model(
        settings.home, settings.answerability, settings.weights_folder, device=device, verify=verify
    )
    return SecondOpinion(model, card)

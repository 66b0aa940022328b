"""An optional second look: a cross-encoder reads the question together with each of the best passages.

Any sentence-transformers CrossEncoder with one output (Nogueira & Cho 2019, arXiv 1901.04085); off by default,
because it costs a forward pass of a model a passage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from indexer.errors import TandemError
from indexer.weights import Weights

RERANK_BATCH = 16


class Reranker(Protocol):
    """Scores passages for a question."""

    def score(self, question: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n,) scores in the order of the texts; higher is better."""


class CrossEncoderReranker:
    """A cross-encoder from safetensors. Raises TandemError when it does not load or has more than one output."""

    def __init__(self, weights: Weights, *, device: str = "cpu") -> None:
        from sentence_transformers import CrossEncoder

        try:
            model = CrossEncoder(str(weights.path), device=device, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise _unusable(weights.name, f"does not load: {error}") from error
        if model.num_labels != 1:
            raise _unusable(weights.name, f"has {model.num_labels} outputs")
        self._model: Any = model
        self.name = weights.name

    def score(self, question: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n,) scores, 0 to 1 where the model's own activation is the sigmoid."""
        if not texts:
            return np.zeros(0, np.float32)
        pairs = [(question, text) for text in texts]
        scores = self._model.predict(pairs, batch_size=RERANK_BATCH, show_progress_bar=False)
        return np.asarray(scores, np.float32).reshape(len(texts))


def _unusable(name: str, problem: str) -> TandemError:
    return TandemError(
        f"The reranker {name} {problem}.",
        expected="A sentence-transformers CrossEncoder with one output: the relevance of a text to a question.",
        do="Check the `reranker` setting, or leave it empty.",
    )

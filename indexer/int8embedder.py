"""Embedders of the usual form whose encoder is a BERT, in int8: for processors with instructions for that.

Nothing of transformers is imported, which takes seconds. The vectors are those of float32 to a cosine of 0.999, and
rank as well (the manual's benchmarks page has both), so they go by the same identity: an index that was made in
float32, on a GPU say, is searched with these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from indexer.batches import batches
from indexer.cores import lone_workers
from indexer.plainembedder import Form

if TYPE_CHECKING:
    from indexer.bert import Bert

# Tokens of one pass. Passes of 230 to 3,700 take as long a token; small ones share the cores evenly and need less room.
MOST_TOKENS = 512
_NEEDED = ("tokenizer.json", "model.safetensors")


def can_be_int8(folder: Path) -> bool:
    """Whether this processor gains by int8 and the encoder in `folder` is a BERT that indexer/bert.py knows."""
    from indexer.bert import fits
    from indexer.int8 import HAS_INT8_PRODUCTS

    return HAS_INT8_PRODUCTS and all((folder / name).is_file() for name in _NEEDED) and fits(folder)


class Int8Embedder:
    """A loaded embedder. Raises OSError, ValueError or KeyError when it does not load. Thread-safe.

    A call of one batch, as every question is, does not wait for those of many.
    """

    def __init__(self, folder: Path, form: Form) -> None:
        import torch
        from tokenizers import Tokenizer

        from indexer.bert import Bert

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._bert: Bert = Bert(folder)
        self._form = form
        self.dimension = self._bert.width
        self.window = form.window or min(_longest(folder), self._bert.places)
        threads = torch.get_num_threads()
        self._documents, self._questions = (lone_workers(threads, f"embed-{kind}") for kind in ("many", "few"))

    def __call__(self, ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """The ids of n texts -> (n, d) unit vectors."""
        rows = np.empty((len(ids), self.dimension), np.float32)
        passes = list(batches([len(text) for text in ids], MOST_TOKENS))
        workers = self._questions if len(passes) == 1 else self._documents

        def embed(places: list[int]) -> None:
            rows[places] = self._pooled([ids[place] for place in places])

        for done in [workers.submit(embed, places) for places in passes]:
            done.result()
        return rows

    def _pooled(self, ids: Sequence[Sequence[int]]) -> Any:
        tokens, starts = self._bert(ids)
        # The sum of a text's tokens is as long as it likes: only its direction counts.
        is_first = self._form.pooling == "cls"
        rows = tokens[starts[:-1]] if is_first else np.add.reduceat(tokens, starts[:-1], axis=0)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _longest(folder: Path) -> int:
    """The most tokens that the tokenizer's settings allow."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return int(min(settings.get("model_max_length") or np.inf, 10**9))

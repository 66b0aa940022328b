"""Texts to vectors: float32, unit length, one row a text, so that an inner product is the cosine similarity.

n texts, d dimensions. An embedder's `identity` names exactly what made a vector; vectors of two identities are
never compared, even where their dimensions agree.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from indexer.errors import TandemError
from indexer.records import content_hash
from indexer.weights import Weights

Vectors = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

# Offsets are taken a block at a time: one encoding of a 20-million-character text would need gigabytes.
TOKENIZE_BLOCK = 100_000
EMBED_BATCH = 32


class Embedder(Protocol):
    """What the index needs from an embedding model."""

    @property
    def identity(self) -> str:
        """Name, weights hash, dimension and pooling: equal exactly when vectors may be compared."""

    @property
    def dimension(self) -> int:
        """D."""

    @property
    def window(self) -> int:
        """The most tokens a text may have, special tokens included; a longer one would be cut silently."""

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """(n, d) unit rows, in the order of the texts."""

    def embed_question(self, text: str) -> Vectors:
        """(d,) unit vector."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included."""

    def token_starts(self, text: str) -> npt.NDArray[np.int64]:
        """Character offset at which each token of the text begins, increasing, without special tokens."""


class SentenceTransformerEmbedder:
    """Any sentence-transformers model (Reimers & Gurevych 2019, arXiv 1908.10084) with a fast tokenizer."""

    def __init__(self, weights: Weights, *, device: str = "cpu") -> None:
        model = _load(weights, device)
        self._model: Any = model
        self._tokenizer: Any = model.tokenizer
        if not getattr(self._tokenizer, "is_fast", False):
            raise TandemError(
                f"The embedder {weights.name} has no fast tokenizer, so chunks cannot be placed in their documents.",
                do="Choose an embedder that ships a tokenizer.json.",
            )
        self._dimension = int(model.get_embedding_dimension())
        self._window = int(model.max_seq_length or 512)
        pooling = "+".join(f"{type(part).__name__}:{getattr(part, 'pooling_mode', '')}" for part in model)
        self._identity = f"{weights.name}:{weights.sha256[:16]}:{self._dimension}:{content_hash(pooling)[:8]}"

    @property
    def identity(self) -> str:
        """Name, weights hash, dimension and pooling."""
        return self._identity

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._dimension

    @property
    def window(self) -> int:
        """Tokens the model reads, special tokens included."""
        return self._window

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """(n, d) unit rows. The library sorts by length inside the call, so larger calls pad less."""
        return self._encode(self._model.encode_document, list(texts))

    def embed_question(self, text: str) -> Vectors:
        """(d,) unit vector; a model with a question prefix gets it here."""
        row: Vectors = self._encode(self._model.encode_query, [text])[0]
        return row

    def _encode(self, encode: Callable[..., Any], texts: list[str]) -> Vectors:
        if not texts:
            return np.zeros((0, self._dimension), np.float32)
        rows = encode(texts, batch_size=EMBED_BATCH, normalize_embeddings=True, show_progress_bar=False)
        return np.ascontiguousarray(rows, dtype=np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as the model would see it uncut."""
        if not texts:
            return []
        return [len(ids) for ids in self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]

    def token_starts(self, text: str) -> npt.NDArray[np.int64]:
        """Where each token begins, in characters."""
        starts: list[int] = []
        for begin, end in _blocks(text):
            encoded = self._tokenizer(
                text[begin:end],
                add_special_tokens=False,
                return_offsets_mapping=True,
                return_attention_mask=False,
                truncation=False,
                verbose=False,
            )
            starts.extend(begin + start for start, stop in encoded["offset_mapping"] if stop > start)
        return np.asarray(starts, dtype=np.int64)


def _blocks(text: str) -> list[tuple[int, int]]:
    """Spans of about TOKENIZE_BLOCK characters that end at white space where there is some."""
    spans, begin = [], 0
    while begin < len(text):
        end = min(begin + TOKENIZE_BLOCK, len(text))
        if end < len(text):
            space = max(text.rfind(" ", begin, end), text.rfind("\n", begin, end))
            end = space if space > begin else end
        spans.append((begin, end))
        begin = end
    return spans


def _load(weights: Weights, device: str) -> Any:
    # The library asks the hub for missing optional files of a local folder unless it is told not to.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # It is imported along and warns that it found no optional kernels, which nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        return SentenceTransformer(str(weights.path), device=device, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise TandemError(
            f"The embedder {weights.name} does not load: {error}",
            expected="A sentence-transformers folder: modules.json, config.json, model.safetensors, tokenizer.json.",
            do="Check the `embedder` setting, or leave it at `bundled`.",
        ) from error

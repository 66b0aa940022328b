"""Texts to vectors: float32, unit length, one row a text, so that an inner product is the cosine similarity.

n texts, d dimensions. An embedder's `identity` names exactly what made a vector; vectors of two identities are
never compared, even where their dimensions agree.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from indexer.batches import batches
from indexer.cores import keep_to_container
from indexer.errors import TandemError
from indexer.folders import file_sha256
from indexer.int8embedder import Int8Embedder, can_be_int8
from indexer.plainembedder import PlainEmbedder, usual_form
from indexer.records import content_hash
from indexer.weights import Weights

Vectors = npt.NDArray[np.float32]

# Offsets are taken a block at a time: one encoding of a 20-million-character text would need gigabytes.
TOKENIZE_BLOCK = 100_000
EMBED_BATCH = 32
# Tokens, padding included, of one pass through the model. On a CPU the activations of more do not stay in its cache:
# a chunk of 137 tokens cost 53 ms of one core in batches of 32, 42 ms in batches of 8 and 40 ms in batches of 4.
CPU_TOKENS = 1024
GPU_TOKENS = 32_768


class Embedder(Protocol):
    """What the index needs from an embedding model."""

    @property
    def identity(self) -> str:
        """Equal exactly when vectors may be compared."""

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
    """Any sentence-transformers model (Reimers & Gurevych 2019, arXiv 1908.10084) with a fast tokenizer.

    One of the usual form is run without that library (indexer/plainembedder.py), which takes seconds to import, and on
    most CPUs in int8 (indexer/int8embedder.py).
    The model is loaded when it is first needed: a sync that finds nothing changed never needs it, and `identity` is
    read from the files. Thread-safe.
    """

    def __init__(self, weights: Weights, *, device: str = "cpu") -> None:
        self._weights = weights
        self._device = device
        self._lock = Lock()
        self._loaded: _Loaded | None = None

    @cached_property
    def identity(self) -> str:
        """The weights' name and hash, and a hash of every other file that decides what a vector is."""
        return f"{Path(self._weights.name).name}:{self._weights.sha256[:16]}:{_files_hash(self._weights.path)[:16]}"

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.load().dimension

    @property
    def window(self) -> int:
        """Tokens the model reads, special tokens included."""
        return self.load().window

    @property
    def precision(self) -> str:
        """What its products are computed in: int8 or float32."""
        return "int8" if isinstance(self.load()._of_ids, Int8Embedder) else "float32"

    def load(self) -> _Loaded:
        """The model, loaded by the first call. Raises TandemError when it does not load."""
        with self._lock:
            if self._loaded is None:
                self._loaded = _Loaded(self._weights, self._device)
            return self._loaded

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """(n, d) unit rows. Texts of one length are run together, so larger calls pad less."""
        return self.load().encode(list(texts), "document")

    def embed_question(self, text: str) -> Vectors:
        """(d,) unit vector; a model with a question prefix gets it here."""
        row: Vectors = self.load().encode([text], "query")[0]
        return row

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as the model would see it uncut."""
        return [len(encoding.ids) for encoding in self.load().whole.encode_batch_fast(list(texts))]

    def token_starts(self, text: str) -> npt.NDArray[np.int64]:
        """Where each token begins, in characters."""
        tokenizer = self.load().whole
        starts: list[int] = []
        for begin, end in _blocks(text):
            offsets = tokenizer.encode(text[begin:end], add_special_tokens=False).offsets
            starts.extend(begin + start for start, stop in offsets if stop > start)
        return np.asarray(starts, dtype=np.int64)


class _Loaded:
    """A model in memory with tokenizers of its own: those of the library are changed while they are used."""

    def __init__(self, weights: Weights, device: str) -> None:
        model = _load(weights, device)
        self._of_ids: Callable[[list[list[int]]], Vectors] | None
        if isinstance(model, Int8Embedder):
            self.dimension, self.window, tokenizer = model.dimension, model.window, model.tokenizer
            self._of_ids = model
        else:
            self._model: Any = model
            if not getattr(model.tokenizer, "is_fast", False):
                raise TandemError(
                    f"The embedder {weights.name} has no fast tokenizer, so chunks have no place in their documents.",
                    do="Choose an embedder that ships a tokenizer.json.",
                )
            tokenizer = model.tokenizer.backend_tokenizer
            self._padding = int(model.tokenizer.pad_token_id or 0)
            self._inputs = set(model.tokenizer.model_input_names)
            if isinstance(model, PlainEmbedder):
                self.dimension, self.window = model.dimension, model.window
                self._of_ids = partial(self._padded, model)
            else:
                self.dimension = int(model.get_embedding_dimension())
                self.window = int(model.max_seq_length or 512)
                self._of_ids = partial(self._padded, self._of_library) if _is_plain(model) else None
        self.whole, self._cut = _copy(tokenizer), _copy(tokenizer)
        self._cut.enable_truncation(self.window)
        self._lock = Lock()

    def encode(self, texts: list[str], task: Literal["document", "query"]) -> Vectors:
        """(n, d) unit rows; `task` chooses the model's own prefix, if it has one."""
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        if self._of_ids is not None:
            rows = self._of_ids([encoding.ids for encoding in self._cut.encode_batch_fast(texts)])
        else:
            encode = self._model.encode_query if task == "query" else self._model.encode_document
            with self._lock:
                rows = encode(texts, batch_size=EMBED_BATCH, normalize_embeddings=True, show_progress_bar=False)
        return np.ascontiguousarray(rows, dtype=np.float32)

    def _of_library(self, features: dict[str, Any]) -> Any:
        return self._model(features)["sentence_embedding"]

    def _padded(self, vectors: Callable[[dict[str, Any]], Any], ids: list[list[int]]) -> Vectors:
        """What SentenceTransformer.encode computes for a model without prefixes, from ids that are made once."""
        import torch

        rows = np.empty((len(ids), self.dimension), np.float32)
        most = CPU_TOKENS if self._model.device.type == "cpu" else GPU_TOKENS
        with torch.inference_mode():
            for places in batches([len(row) for row in ids], most):
                found = vectors(self._features([ids[place] for place in places]))
                rows[places] = torch.nn.functional.normalize(found, dim=1).float().cpu().numpy()
        return rows

    def _features(self, ids: list[list[int]]) -> dict[str, Any]:
        import torch

        matrix = np.full((len(ids), max(map(len, ids))), self._padding, np.int64)
        mask = np.zeros_like(matrix)
        for place, row in enumerate(ids):
            matrix[place, : len(row)], mask[place, : len(row)] = row, 1
        values = {"input_ids": matrix, "attention_mask": mask, "token_type_ids": np.zeros_like(matrix)}
        wanted = {name: value for name, value in values.items() if name in self._inputs or name == "attention_mask"}
        return {name: torch.from_numpy(value).to(self._model.device) for name, value in wanted.items()}


def _copy(tokenizer: Any) -> Any:
    """A copy of a tokenizer that neither cuts nor pads."""
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _is_plain(model: Any) -> bool:
    """Whether a text alone decides its vector: no prefixes, no routes, tokens on the right side of their padding."""
    modules = [type(part).__name__ for part in model]
    known = modules[0] == "Transformer" and set(modules[1:]) <= {"Pooling", "Dense", "Normalize"}
    prompts = [prompt for prompt in (model.prompts or {}).values() if prompt]
    return known and not prompts and model.tokenizer.padding_side == "right"


def _files_hash(folder: Path) -> str:
    """Hex SHA-256 over the configuration, tokenizer and inner modules of a model folder; its weights have their own."""
    parts: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        decides = path.suffix in {".json", ".txt", ".model"} or ("/" in name and path.suffix == ".safetensors")
        if decides and path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            parts += [name, file_sha256(path)]
    return content_hash(*parts)


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
    keep_to_container()
    form = usual_form(weights.path)
    try:
        if form is not None and device == "cpu" and can_be_int8(weights.path):
            return Int8Embedder(weights.path, form)
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        if form is not None:
            return PlainEmbedder(weights.path, form, device)
        # It is imported along and warns that it found no optional kernels, which nothing here uses.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(weights.path), device=device, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise TandemError(
            f"The embedder {weights.name} does not load: {error}",
            expected="A sentence-transformers folder: modules.json, config.json, model.safetensors, tokenizer.json.",
            do="Check the `embedder` setting, or leave it at `bundled`.",
        ) from error

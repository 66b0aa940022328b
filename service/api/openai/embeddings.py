"""POST /v1/embeddings: texts to the vectors that the index holds."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from indexer.embedding import Embedder, Vectors
from service.api.openai.errors import RequestError
from service.api.openai.models import MODES

EMBEDDER = "tandem-embedder"
MOST_TEXTS = 256


class EmbeddingsBody(BaseModel):
    """The parameters that have an effect. `input_type` is for embedders that tell questions and documents apart."""

    model_config = ConfigDict(extra="ignore")

    model: Annotated[str, Field(min_length=1, max_length=128)]
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    input_type: Literal["query", "document"] | None = None


def embed(embedder: Embedder, body: EmbeddingsBody) -> dict[str, Any]:
    """The vectors in OpenAI's shape: unit length, float or base64 of little-endian float32. Raises RequestError."""
    if body.model not in {EMBEDDER, *MODES}:
        raise RequestError(
            "There is no such embedding model.",
            expected=EMBEDDER,
            code="not_found",
            param="model",
            named="model_not_found",
        )
    texts = _texts(body)
    if body.dimensions not in (None, embedder.dimension):
        raise RequestError(
            f"The vectors of this embedder have {embedder.dimension} dimensions.",
            do="Leave `dimensions` out.",
            param="dimensions",
        )
    tokens = embedder.count_tokens(texts)
    if max(tokens) > embedder.window:
        # The embedder would leave out the rest without a word.
        raise RequestError(
            f"A text takes {max(tokens)} tokens.",
            expected=f"At most {embedder.window} tokens each.",
            do="Split it.",
            code="too_large",
            param="input",
        )
    rows = _rows(embedder, texts, body.input_type)
    data = [
        {"object": "embedding", "index": place, "embedding": _written(row, body.encoding_format)}
        for place, row in enumerate(rows)
    ]
    cost = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
    return {"object": "list", "data": data, "model": EMBEDDER, "usage": cost}


def _texts(body: EmbeddingsBody) -> list[str]:
    given = [body.input] if isinstance(body.input, str) else body.input
    texts = [text.replace("\x00", "") for text in given if isinstance(text, str)]
    if len(texts) != len(given):
        raise RequestError(
            "The input holds token ids, and they are those of another model.",
            expected="A text, or a list of texts.",
            do="Send texts; for LangChain's OpenAIEmbeddings, set check_embedding_ctx_length=False.",
            param="input",
        )
    if not 1 <= len(texts) <= MOST_TEXTS or not all(text.strip() for text in texts):
        raise RequestError(
            "The input has no text, an empty one, or too many.",
            expected=f"1 to {MOST_TEXTS} texts, none of them empty.",
            param="input",
        )
    return texts


def _rows(embedder: Embedder, texts: list[str], kind: str | None) -> Vectors:
    if kind == "query":
        return np.stack([embedder.embed_question(text) for text in texts])
    return embedder.embed_documents(texts)


def _written(row: Vectors, form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return [float(value) for value in row]

"""Models small enough for every test: an embedder that really ranks and a generator that really streams."""

import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.embedding import Vectors
from indexer.errors import TandemError
from tuner.generation import FinishReason, Piece
from tuner.prompt import Prompt

TOKEN = re.compile(r"\w+|[^\w\s]")


class HashingEmbedder:
    """Bag of words, hashed into `dimension` signed buckets: texts that share words are similar, others are not."""

    def __init__(self, dimension: int = 256, window: int = 256, name: str = "hashing") -> None:
        self.dimension = dimension
        self.window = window
        self.identity = f"{name}:{dimension}"

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        return self._rows(texts)

    def embed_question(self, text: str) -> Vectors:
        row: Vectors = self._rows([text])[0]
        return row

    def _rows(self, texts: Sequence[str]) -> Vectors:
        rows = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                digest = zlib.crc32(word.encode("utf-8", "surrogatepass"))
                row[digest % self.dimension] += 1 if digest >> 31 else -1
            length = float(np.linalg.norm(row))
            if length == 0:
                row[0] = length = 1.0
            row /= length
        return rows

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(TOKEN.findall(text)) + 2 for text in texts]

    def token_starts(self, text: str) -> npt.NDArray[np.int64]:
        return np.asarray([match.start() for match in TOKEN.finditer(text)], np.int64)


class WordTokenizer:
    """One id a word; what tuner.prompt needs of a tokenizer without a chat template."""

    chat_template = None
    all_special_tokens: tuple[str, ...] = ()
    bos_token_id = None
    eos_token_id = 0

    def __init__(self) -> None:
        self.added_tokens_decoder: dict[int, str] = {}
        self._ids: dict[str, int] = {}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [self._ids.setdefault(word, len(self._ids) + 1) for word in TOKEN.findall(text)]}


Script = str | Sequence[str] | Callable[[Prompt], str]


class ScriptedGenerator:
    """Says its script, a piece at a time: a text word by word, a list as it stands, or what a function makes of the
    prompt. A piece counts as one token. `prompts`, `adapters` and `schemas` are what it was asked with, `ends` is how
    each generation ended: its finish reason, "closed" or "failed".
    """

    def __init__(
        self, script: Script = "", *, delay: float = 0.0, window: int = 4096, fail_after: int | None = None
    ) -> None:
        self.script = script
        self.delay = delay
        self.window = window
        self.at_once = 1
        self.fail_after = fail_after
        self.tokenizer: Any = WordTokenizer()
        self.prompts: list[Prompt] = []
        self.adapters: list[str | None] = []
        self.schemas: list[Mapping[str, Any] | None] = []
        self.ends: list[str] = []
        self.spoken = 0
        self.busy = 0
        self.most_busy = 0

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        adapter: str | None = None,
        cancel: threading.Event | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> Iterator[Piece]:
        self.prompts.append(prompt)
        self.schemas.append(schema)
        self.adapters.append(adapter)
        stop = cancel or threading.Event()
        end = "closed"
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            for count, (text, reason) in enumerate(self._steps(prompt, max_tokens), start=1):
                if self.fail_after is not None and count > self.fail_after:
                    end = "failed"
                    raise RuntimeError("the model broke in /secret/place")
                stopped = stop.wait(self.delay) if self.delay else stop.is_set()
                if stopped:
                    end = "cancelled"
                    yield Piece("", count - 1, "cancelled")
                    return
                self.spoken += 1
                end = reason or "closed"
                yield Piece(text, count if text else count - 1, reason)
        finally:
            self.busy -= 1
            self.ends.append(end)

    def _steps(self, prompt: Prompt, most: int) -> list[tuple[str, FinishReason | None]]:
        made = self.script(prompt) if callable(self.script) else self.script
        pieces = re.findall(r"\s*\S+|\s+$", made) if isinstance(made, str) else list(made)
        steps: list[tuple[str, FinishReason | None]] = [(piece, None) for piece in pieces[:most]]
        return [*steps[:-1], (steps[-1][0], "length")] if len(pieces) > most else [*steps, ("", "stop")]


class FixedAdapters:
    """Adapters by name, without any weights."""

    def __init__(self, names: Sequence[str] = (), active: str | None = None) -> None:
        self.names = names
        self.chosen = active
        self.prepared: list[str] = []

    def active(self) -> str | None:
        return self.chosen

    def prepare(self, name: str) -> None:
        if name not in self.names:
            raise TandemError(f"There is no adapter {name!r}.", do="Choose another one.", code="not_found")
        self.prepared.append(name)


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Return as soon as the condition holds; fail when it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)

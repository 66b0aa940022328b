"""A prompt -> logits of the first token of its answer, with what was read for earlier prompts taken over.

The beginning (instruction, examples, the header of the question) is the same for every question over passages. A
passage in its place is the same wherever the prompts agree up to its end, which those of a conversation often do; it is
kept too. What is not kept is read together, and each part has the bits it would have alone (tuner/llamacuts.py), so
an answer is the same either way.

With `apart`, passages are read apart from each other (tuner/blocks.py) and joined, so each is known again wherever it
stands: the answer is then that of a model whose passages do not see each other, which an adapter should have been
tuned for. What is kept is found by the tokens and the weights, never by the name of a document: what nobody retrieves
cannot come back. `forget` drops what is of passages, for when the documents have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from tuner.basemodel import BaseModel
from tuner.blocks import passage_spans
from tuner.decoding import Steps
from tuner.kept import Key
from tuner.keptfiles import KeptFiles
from tuner.keptparts import KeptParts
from tuner.prompt import Prompt
from tuner.rotation import Rotation

# Beginnings are few: one for an adapter and each set of examples.
_HEAD_BYTES = 32 << 20


class PromptReader:
    """Reads prompts of one base model and keeps up to `passage_bytes` of passages. Thread-safe where the steps are."""

    def __init__(self, base: BaseModel, passage_bytes: int = 0, *, apart: bool = False) -> None:
        """Raises TandemError when passages are to be joined and this model's cannot be."""
        self._base = base
        self._rotation = Rotation(base) if apart else None
        self.heads = KeptParts(_HEAD_BYTES)
        self.passages = KeptParts(passage_bytes)

    def read(self, steps: Steps, prompt: Prompt, adapter: str | None, is_cancelled: Callable[[], bool]) -> Any:
        """The (vocabulary,) logits of what follows the prompt; None when it was cancelled before.

        `adapter` is its identity (AttachedAdapters.identity): what was read with one is for that one only.
        """
        spans = passage_spans(self._base.tokenizer, prompt) if steps.cache.is_plain else ()
        if not spans or spans[0][0] == 0:
            return steps.read_prompt(prompt.ids, is_cancelled)
        way = _Way(steps, prompt.ids, is_cancelled)
        head = spans[0][0]
        is_going = way.take(self.heads, ("head", adapter, prompt.ids[:head]), head)
        passages = self.passages if self.passages.limit else None
        for start, end in spans:
            if not is_going:
                return None
            if self._rotation:
                key = ("passage", adapter, prompt.ids[start:end])
                is_going = way.read() and self._join(self._rotation, key, steps, is_cancelled)
            else:
                is_going = way.take(passages, ("placed", adapter, prompt.ids[:end]), end)
        return way.read_to_end() if is_going else None

    def keep_in(self, folder: Path, generation: int, limit: int) -> None:
        """Keep passages that come again in files too, up to so many bytes; those of other generations are deleted."""
        what = (self._base.origin, version("tandem-qa"), generation)
        name = sha256(repr(what).encode()).hexdigest()[:32]
        self.passages.use(KeptFiles(folder / name, limit))

    def forget(self) -> None:
        """Drop every passage that is kept."""
        self.passages.clear()

    def _join(self, rotation: Rotation, key: Key, steps: Steps, is_cancelled: Callable[[], bool]) -> bool:
        kept = self.passages.get(key)
        if kept is None:
            ids = key[2]
            alone = steps.beside(len(ids))
            if alone.read_prompt(ids, is_cancelled) is None:
                return False
            kept = alone.cache.copy(0, len(ids))
            self.passages.put(key, kept)
        steps.cache.join(rotation.moved(kept, steps.cache.length))
        return True


class _Way:
    """A prompt on its way into the cache: what is kept is joined, what is not waits to be read with what follows it."""

    def __init__(self, steps: Steps, ids: Sequence[int], is_cancelled: Callable[[], bool]) -> None:
        self._steps, self._ids, self._is_cancelled = steps, ids, is_cancelled
        self._waiting: list[_Waiting] = []

    def take(self, store: KeptParts | None, key: Key, end: int) -> bool:
        """Go on to `end`, where the part of this key ends; False when the request was cancelled."""
        kept = None if store is None else store.get(key)
        if kept is None:
            self._waiting.append(_Waiting(store, key, end))
            return True
        if not self.read():
            return False
        self._steps.cache.join(kept)
        return True

    def read(self) -> bool:
        """Read all that waits; False when the request was cancelled."""
        return not self._waiting or self._read_to(self._waiting[-1].end) is not None

    def read_to_end(self) -> Any:
        """Read all that waits and the rest of the prompt; its logits, None when the request was cancelled."""
        return self._read_to(len(self._ids))

    def _read_to(self, end: int) -> Any:
        start = self._steps.cache.length
        edges = list(dict.fromkeys((start, *(part.end for part in self._waiting), end)))
        lengths = [after - before for before, after in pairwise(edges)]
        logits = self._steps.read_prompt(self._ids[start:end], self._is_cancelled, lengths)
        if logits is not None:
            for part, before in zip(self._waiting, edges, strict=False):
                if part.store is not None:
                    part.store.put(part.key, self._steps.cache.copy(before, part.end))
            self._waiting.clear()
        return logits


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A part that is not kept, what is to keep it (if anything), and where it ends."""

    store: KeptParts | None
    key: Key
    end: int

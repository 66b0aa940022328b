"""A prompt -> logits of the first token of its answer, with what was read for earlier prompts taken over.

The beginning (instruction, examples, the header of the question) is the same for every question over passages. A
passage in its place is the same wherever the prompts agree up to its end, which those of a conversation often do; it is
kept too. Prompts are read part by part whether or not a part was kept, so an answer has the same bits either way.

With `apart`, passages are read apart from each other (tuner/blocks.py) and joined, so each is known again wherever it
stands: the answer is then that of a model whose passages do not see each other, which an adapter should have been
tuned for. What is kept is found by the tokens and the weights, never by the name of a document: what nobody retrieves
cannot come back. `forget` drops what is of passages, for when the documents have changed.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
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
        end = spans[0][0]
        if not _take_over(self.heads, ("head", adapter, prompt.ids[:end]), steps, 0, is_cancelled):
            return None
        if self._rotation or self.passages.limit:
            for start, end in spans:
                if self._rotation:
                    key = ("passage", adapter, prompt.ids[start:end])
                    is_there = self._join(self._rotation, key, steps, is_cancelled)
                else:
                    key = ("placed", adapter, prompt.ids[:end])
                    is_there = _take_over(self.passages, key, steps, start, is_cancelled)
                if not is_there:
                    return None
        return steps.read_prompt(prompt.ids[end:], is_cancelled)

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


def _take_over(parts: KeptParts, key: Key, steps: Steps, start: int, is_cancelled: Callable[[], bool]) -> bool:
    """Go on as if the tokens of the key from `start` on had been read, those before them being there."""
    kept = parts.get(key)
    if kept is not None:
        steps.cache.join(kept)
        return True
    ids = key[2]
    if steps.read_prompt(ids[start:], is_cancelled) is None:
        return False
    parts.put(key, steps.cache.copy(start, len(ids)))
    return True

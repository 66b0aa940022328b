"""A prompt -> logits of the first token of its answer, with what was read for earlier prompts taken over.

`passage_bytes` 0 reads every passage in its place, behind the ones before it, as the library would; only the beginning
is taken over. Above 0, passages are read apart (tuner/blocks.py), kept up to that many bytes, and joined: the answer is
that of a model whose passages do not see each other, which an adapter should have been tuned for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tuner.basemodel import BaseModel
from tuner.blocks import passage_spans
from tuner.decoding import Steps
from tuner.passagecache import KeptParts, Rotation
from tuner.prompt import Prompt

# Beginnings are few: one for an adapter and each set of examples.
_HEAD_BYTES = 32 << 20


class PromptReader:
    """Reads the prompts of one base model. Thread-safe where the steps are."""

    def __init__(self, base: BaseModel, passage_bytes: int = 0) -> None:
        """Raises TandemError when passages are to be joined and this model's cannot be."""
        self._base = base
        self._rotation = Rotation(base) if passage_bytes else None
        self.heads = KeptParts(_HEAD_BYTES)
        self.passages = KeptParts(passage_bytes)

    def read(self, steps: Steps, prompt: Prompt, adapter: str | None, is_cancelled: Callable[[], bool]) -> Any:
        """The (vocabulary,) logits of what follows the prompt; None when it was cancelled before.

        `adapter` is the key of the adapter as attached: what was read with one is for that one only.
        """
        spans = passage_spans(self._base.tokenizer, prompt) if steps.cache.is_plain else ()
        if not spans or spans[0][0] == 0:
            return steps.read_prompt(prompt.ids, is_cancelled)
        begin, end = spans[0][0], spans[-1][1]
        if not self._take_over_head(steps, prompt.ids[:begin], adapter, is_cancelled):
            return None
        if self._rotation is None:
            return steps.read_prompt(prompt.ids[begin:], is_cancelled)
        for start, stop in spans:
            if not self._join(self._rotation, steps, prompt.ids[start:stop], adapter, is_cancelled):
                return None
        return steps.read_prompt(prompt.ids[end:], is_cancelled)

    def forget(self) -> None:
        """Drop every passage that is kept."""
        self.passages.clear()

    def _take_over_head(
        self, steps: Steps, ids: tuple[int, ...], adapter: str | None, is_cancelled: Callable[[], bool]
    ) -> bool:
        key = ("head", adapter, ids)
        kept = self.heads.get(key)
        if kept is not None:
            steps.cache.join(kept)
            return True
        if steps.read_prompt(ids, is_cancelled) is None:
            return False
        self.heads.put(key, steps.cache.copy(0, len(ids)))
        return True

    def _join(
        self,
        rotation: Rotation,
        steps: Steps,
        ids: tuple[int, ...],
        adapter: str | None,
        is_cancelled: Callable[[], bool],
    ) -> bool:
        key = ("passage", adapter, ids)
        kept = self.passages.get(key)
        if kept is None:
            alone = steps.beside(len(ids))
            if alone.read_prompt(ids, is_cancelled) is None:
                return False
            kept = alone.cache.copy(0, len(ids))
            self.passages.put(key, kept)
        steps.cache.join(rotation.moved(kept, steps.cache.length))
        return True

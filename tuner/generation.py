"""Prompt -> pieces of text, greedily. The in-process engine and the interface it shares.

Greedy, because an answer from documents should be the same every time it is asked for. The loop is our own: it
stops between any two passes when the caller has gone, which a library call that returns at the end cannot do.
How tokens come about is in tuner/reading.py (the prompt) and tuner/decoding.py (the answer), and how several requests
share the model in tuner/batching.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

from indexer.errors import TandemError
from tuner.attach import AttachedAdapters
from tuner.basemodel import BaseModel
from tuner.batching import Batch, Left, Place, SharedSteps
from tuner.chat import answer_end_id
from tuner.decoding import can_draft, chosen_tokens, greedy, greedy_tokens
from tuner.jsondecoding import JsonConstraint, JsonDecoding, Schema
from tuner.keptparts import KeptParts
from tuner.prompt import Prompt
from tuner.reading import PromptReader
from tuner.refusing import open_answer, refusal_ids
from tuner.stream import TextStream, is_looping

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Piece:
    """New text; how many tokens the model has produced so far, its end token not counted; the reason, on the last."""

    text: str
    completion_tokens: int
    finish_reason: FinishReason | None


class Generator(Protocol):
    """What answers prompts, `at_once` of them together. `window` is prompt plus answer, in tokens."""

    tokenizer: Any
    window: int
    at_once: int

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        adapter: str | None = None,
        cancel: threading.Event | None = None,
        schema: Schema | None = None,
    ) -> Iterator[Piece]:
        """Yield the answer as it is made; the last piece alone has a finish_reason. Closing the iterator stops it.

        With a JSON Schema the answer is JSON that fits it, unless max_tokens cannot hold one.
        """
        ...


class TorchGenerator:
    """Generation in this process, of `at_once` requests together; thread-safe.

    `adapters` maps names to folders; each is verified and attached on first use, then chosen per request. What was
    read of passages is kept up to `passage_bytes`; with `apart` they are read apart from each other (tuner/reading.py).
    A `refusal_threshold` (tuner/refusing.py) takes the place of those of adapters, merged ones too.
    """

    def __init__(
        self,
        base: BaseModel,
        adapters: Mapping[str, Path] | None = None,
        *,
        passage_bytes: int = 0,
        apart: bool = False,
        at_once: int = 1,
        refusal_threshold: float | None = None,
    ) -> None:
        """Raises TandemError when passages are to be read apart and this model's cannot be."""
        self.base = base
        self.tokenizer = base.tokenizer
        self.window = base.window
        self.at_once = at_once
        self._batch = Batch(base, at_once, lambda key: self._attached.switch(key))
        self._attached = AttachedAdapters(base, self._batch.alone)
        self._json = JsonDecoding(base)
        self._reader = PromptReader(base, passage_bytes, apart=apart)
        self._drafts = can_draft(base)
        self._threshold = refusal_threshold
        self._refusal, self._end = refusal_ids(base.tokenizer), answer_end_id(base.tokenizer)
        # Guards what requests share beside the model: the reader of schemas, and how often passages were forgotten.
        self._lock = threading.Lock()
        self._forgotten = 0
        for name, folder in (adapters or {}).items():
            self._attached.register(name, folder)

    def register(self, name: str, folder: Path) -> None:
        """Make the adapter in `folder` answer to `name`, in place of one registered before under that name."""
        self._attached.register(name, folder)

    def unregister(self, name: str) -> None:
        """Forget the adapter and free its memory, once the requests that it answers have ended."""
        self._attached.unregister(name)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        adapter: str | None = None,
        cancel: threading.Event | None = None,
        schema: Schema | None = None,
    ) -> Iterator[Piece]:
        """See Generator. Raises TandemError on the first step: no such adapter, one that does not fit the base
        model, a prompt that fills the window, a schema that cannot be followed, or a generator that was closed.
        """
        stop = cancel or threading.Event()
        place = self._batch.enter(stop)
        if place is None:
            yield Piece("", 0, "cancelled")
            return
        try:
            self._check(prompt, max_tokens)
            with self._attached.held(adapter) as place.adapter:
                yield from self._decode(prompt, place, min(max_tokens, self.window - len(prompt.ids)), schema)
        finally:
            self._batch.leave(place)

    def forget_passages(self) -> None:
        """Drop what is kept of passages, for when documents have changed, and what prompts being read now add to it."""
        with self._lock:
            self._forgotten += 1
        self._reader.forget()

    def keep_passages(self, folder: Path, generation: int, limit: int) -> None:
        """Keep what was read of passages that come again in files too, for this generation of the index only."""
        self._reader.keep_in(folder, generation, limit)

    def write_passages(self) -> None:
        """Write those that came again and are in memory only, before the process ends."""
        self._reader.passages.write()

    @property
    def passages(self) -> KeptParts:
        """What is kept of passages, for those who count it."""
        return self._reader.passages

    def close(self) -> None:
        """Wait for the requests that are running, and refuse all others."""
        self._batch.close()

    def _check(self, prompt: Prompt, max_tokens: int) -> None:
        if len(prompt.ids) >= self.window:
            raise TandemError(
                f"The prompt is {len(prompt.ids)} tokens long.",
                expected=f"Fewer than the base model's window of {self.window}, so that an answer fits.",
                do="Lower prompt_tokens or k.",
                code="too_large",
            )
        if max_tokens < 1:
            raise TandemError(
                f"max_tokens is {max_tokens}.", expected="At least 1.", do="Raise it, or leave it out for the default."
            )

    def _decode(self, prompt: Prompt, place: Place, most: int, schema: Schema | None) -> Iterator[Piece]:
        form = None
        if schema is not None:
            with self._lock:
                form = self._json.constraint(schema, most)
        stream, ids = TextStream(self.tokenizer), list[int]()
        try:
            for token in self._tokens(prompt, place, most, form):
                if token in self.base.eos_ids:
                    yield Piece("", len(ids), "stop")
                    return
                ids.append(token)
                text = stream.push(token)
                reason = _finished(ids, most, place.stop, may_repeat=form is not None)
                if text or reason:
                    yield Piece(text, len(ids), reason)
                if reason:
                    return
        except Left:
            yield Piece("", len(ids), "cancelled")

    def _tokens(self, prompt: Prompt, place: Place, most: int, form: JsonConstraint | None) -> Iterator[int]:
        """The tokens of an answer, as the request chooses them; raises Left when it is cancelled before the next."""
        steps = SharedSteps(self.base, len(prompt.ids) + most, self._batch, place)
        logits = self._read(steps, prompt, place)
        said: tuple[int, ...] = ()
        threshold = self._attached.refusal_threshold(place.adapter)
        if self._threshold is not None and (place.adapter is not None or self.base.is_merged):
            threshold = self._threshold
        if form is None and threshold is not None and prompt.passages:
            said, logits = open_answer(steps, logits, self._refusal, threshold)
        if logits is None:
            return iter((*said, self._end))
        if form is None and self._drafts:
            return chain(said, greedy_tokens(steps, logits, (*prompt.ids, *said), most - len(said)))
        return chain(said, chosen_tokens(steps, logits, greedy if form is None else form.choose))

    def _read(self, steps: SharedSteps, prompt: Prompt, place: Place) -> Any:
        forgotten = self._forgotten
        logits = self._reader.read(steps, prompt, self._attached.identity(place.adapter), place.stop.is_set)
        if forgotten != self._forgotten:
            # Documents changed while it was read, and it may have kept passages of theirs.
            self._reader.forget()
        if logits is None:
            raise Left
        return logits


def _finished(ids: list[int], most: int, stop: threading.Event, *, may_repeat: bool) -> FinishReason | None:
    if stop.is_set():
        return "cancelled"
    if not may_repeat and is_looping(ids):
        return "stop"
    return "length" if len(ids) >= most else None

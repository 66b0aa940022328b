"""Prompt -> pieces of text, greedily. The in-process engine and the interface it shares.

Greedy, because an answer from documents should be the same every time it is asked for. The loop is our own: it
stops between any two passes when the caller has gone, which a library call that returns at the end cannot do.
How tokens come about is in tuner/reading.py (the prompt) and tuner/decoding.py (the answer).
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
from tuner.chat import answer_end_id
from tuner.decoding import Steps, can_draft, chosen_tokens, greedy, greedy_tokens
from tuner.jsondecoding import JsonDecoding, Schema
from tuner.prompt import Prompt
from tuner.reading import PromptReader
from tuner.refusing import open_answer, refusal_ids
from tuner.stream import TextStream, is_looping

FinishReason = Literal["stop", "length", "cancelled"]
# Seconds between two looks at `cancel` while waiting for the model.
_WAIT = 0.05


@dataclass(frozen=True, slots=True)
class Piece:
    """New text; how many tokens the model has produced so far, its end token not counted; the reason, on the last."""

    text: str
    completion_tokens: int
    finish_reason: FinishReason | None


class Generator(Protocol):
    """What answers prompts. `window` is prompt plus answer, in tokens."""

    tokenizer: Any
    window: int

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
    """Generation in this process, one request at a time; thread-safe.

    `adapters` maps names to folders; each is verified and attached on first use, then chosen per request. With
    `passage_bytes` passages are read apart from each other, and kept up to that many bytes (tuner/reading.py).
    """

    def __init__(self, base: BaseModel, adapters: Mapping[str, Path] | None = None, *, passage_bytes: int = 0) -> None:
        """Raises TandemError when passages are to be read apart and this model's cannot be."""
        self.base = base
        self.tokenizer = base.tokenizer
        self.window = base.window
        self._lock = threading.Lock()
        self._attached = AttachedAdapters(base)
        self._json = JsonDecoding(base)
        self._reader = PromptReader(base, passage_bytes)
        self._drafts = can_draft(base)
        self._refusal, self._end = refusal_ids(base.tokenizer), answer_end_id(base.tokenizer)
        self._closed = False
        self._is_stale = False
        for name, folder in (adapters or {}).items():
            self._attached.register(name, folder)

    def register(self, name: str, folder: Path) -> None:
        """Make the adapter in `folder` answer to `name`, in place of one registered before under that name."""
        with self._lock:
            self._attached.register(name, folder)

    def unregister(self, name: str) -> None:
        """Forget the adapter and free its memory."""
        with self._lock:
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
        if not self._acquire(stop):
            yield Piece("", 0, "cancelled")
            return
        try:
            self._check(prompt, max_tokens)
            if self._is_stale:
                self._is_stale = False
                self._reader.forget()
            with self._attached.selected(adapter) as key:
                yield from self._decode(prompt, key, min(max_tokens, self.window - len(prompt.ids)), stop, schema)
        finally:
            self._lock.release()

    def forget_passages(self) -> None:
        """Drop what is kept of passages, for when documents have changed; at the latest before the next prompt."""
        if self._lock.acquire(blocking=False):
            self._reader.forget()
            self._lock.release()
        else:
            # A question is being answered; whoever asks for this should not wait for it.
            self._is_stale = True

    def close(self) -> None:
        """Wait for the request that is running, then refuse all others."""
        with self._lock:
            self._closed = True

    def _acquire(self, stop: threading.Event) -> bool:
        while not stop.is_set():
            if self._lock.acquire(timeout=_WAIT):
                return True
        return False

    def _check(self, prompt: Prompt, max_tokens: int) -> None:
        if self._closed:
            raise TandemError(
                "The model has been closed.", expected="A running service.", do="Try again.", code="unavailable"
            )
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

    def _decode(
        self, prompt: Prompt, adapter: str | None, most: int, stop: threading.Event, schema: Schema | None
    ) -> Iterator[Piece]:
        form = None if schema is None else self._json.constraint(schema, most)
        steps = Steps(self.base, len(prompt.ids) + most)
        logits = self._reader.read(steps, prompt, adapter, stop.is_set)
        if logits is None:
            yield Piece("", 0, "cancelled")
            return
        said: tuple[int, ...] = ()
        threshold = self._attached.refusal_threshold(adapter)
        if form is None and threshold is not None and prompt.passages:
            said, logits = open_answer(steps, logits, self._refusal, threshold)
        if logits is None:
            tokens: Iterator[int] = iter((*said, self._end))
        elif form is None and self._drafts:
            tokens = chain(said, greedy_tokens(steps, logits, (*prompt.ids, *said), most - len(said)))
        else:
            tokens = chain(said, chosen_tokens(steps, logits, greedy if form is None else form.choose))
        stream, ids = TextStream(self.tokenizer), list[int]()
        for token in tokens:
            if token in self.base.eos_ids:
                yield Piece("", len(ids), "stop")
                return
            ids.append(token)
            text = stream.push(token)
            reason = _finished(ids, most, stop, may_repeat=form is not None)
            if text or reason:
                yield Piece(text, len(ids), reason)
            if reason:
                return


def _finished(ids: list[int], most: int, stop: threading.Event, *, may_repeat: bool) -> FinishReason | None:
    if stop.is_set():
        return "cancelled"
    if not may_repeat and is_looping(ids):
        return "stop"
    return "length" if len(ids) >= most else None

"""Prompt -> pieces of text, greedily, one token a step. The in-process engine and the interface it shares.

Greedy, because an answer from documents should be the same every time it is asked for. The loop is our own: it
stops between any two tokens when the caller has gone, which a library call that returns at the end cannot do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from indexer.errors import TandemError
from tuner.attach import AttachedAdapters
from tuner.basemodel import BaseModel
from tuner.prompt import Prompt
from tuner.stream import TextStream, is_looping

FinishReason = Literal["stop", "length", "cancelled"]
# Tokens a forward pass of the prompt takes at a time: small enough to notice a cancel, large enough to be as fast.
_PREFILL = 256
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
        self, prompt: Prompt, *, max_tokens: int, adapter: str | None = None, cancel: threading.Event | None = None
    ) -> Iterator[Piece]:
        """Yield the answer as it is made; the last piece alone has a finish_reason. Closing the iterator stops it."""
        ...


class TorchGenerator:
    """Generation in this process, one request at a time; thread-safe.

    `adapters` maps names to folders; each is verified and attached on first use, then chosen per request.
    """

    def __init__(self, base: BaseModel, adapters: Mapping[str, Path] | None = None) -> None:
        self.base = base
        self.tokenizer = base.tokenizer
        self.window = base.window
        self._lock = threading.Lock()
        self._attached = AttachedAdapters(base)
        self._closed = False
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
        self, prompt: Prompt, *, max_tokens: int, adapter: str | None = None, cancel: threading.Event | None = None
    ) -> Iterator[Piece]:
        """See Generator. Raises TandemError on the first step: no such adapter, one that does not fit the base
        model, a prompt that fills the window, or a generator that was closed.
        """
        stop = cancel or threading.Event()
        if not self._acquire(stop):
            yield Piece("", 0, "cancelled")
            return
        try:
            self._check(prompt, max_tokens)
            with self._attached.selected(adapter):
                yield from self._decode(prompt, min(max_tokens, self.window - len(prompt.ids)), stop)
        finally:
            self._lock.release()

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

    def _decode(self, prompt: Prompt, most: int, stop: threading.Event) -> Iterator[Piece]:
        step = _Step(self.base)
        token = -1
        for start in range(0, len(prompt.ids), _PREFILL):
            if stop.is_set():
                yield Piece("", 0, "cancelled")
                return
            token = step(prompt.ids[start : start + _PREFILL])
        stream, ids = TextStream(self.tokenizer), list[int]()
        while True:
            if token in self.base.eos_ids:
                yield Piece("", len(ids), "stop")
                return
            ids.append(token)
            text = stream.push(token)
            reason = _finished(ids, most, stop)
            if text or reason:
                yield Piece(text, len(ids), reason)
            if reason:
                return
            token = step((token,))


def _finished(ids: list[int], most: int, stop: threading.Event) -> FinishReason | None:
    if stop.is_set():
        return "cancelled"
    if is_looping(ids):
        return "stop"
    return "length" if len(ids) >= most else None


class _Step:
    """Ids -> the most likely next id, with the keys and values of all earlier ids kept between calls."""

    def __init__(self, base: BaseModel) -> None:
        import inspect

        from transformers import DynamicCache

        self._model, self._device = base.model, base.device
        self._cache = DynamicCache(config=base.model.config)
        # The logits of one position are vocabulary-sized; most models can leave out all but the last.
        accepts = inspect.signature(base.model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}

    def __call__(self, ids: tuple[int, ...]) -> int:
        import torch

        # Not around the whole loop: the mode belongs to a thread, and a server may step an iterator from several.
        with torch.inference_mode():
            batch = torch.tensor([ids], device=self._device)
            output = self._model(input_ids=batch, past_key_values=self._cache, use_cache=True, **self._options)
            return int(output.logits[0, -1].argmax())

"""The plain path to an answer, which the fast ones are held against: a token a pass, nothing kept, nobody beside.

The prompt is read in one pass, or part by part (beginning, passages, question) as it must be where a part may be kept:
int8 rounds the sums of another cut to other steps, so texts of the two may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from tuner.attach import AttachedAdapters
from tuner.basemodel import BaseModel
from tuner.blocks import passage_spans
from tuner.decoding import Steps, greedy, most_likely
from tuner.prompt import Prompt
from tuner.refusing import open_answer, refusal_ids
from tuner.stream import is_looping


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer whose first tokens are chosen: the next one is chosen from `logits`, unless it has ended (None)."""

    steps: Steps
    first: torch.Tensor  # (vocabulary,) logits after the prompt
    said: tuple[int, ...]
    logits: torch.Tensor | None


class PlainPath:
    """Answers of one base model with or without adapters, by their names."""

    def __init__(self, base: BaseModel, adapters: Mapping[str, Path], *, by_parts: bool = False) -> None:
        self._base = base
        self._by_parts = by_parts
        self._adapters = AttachedAdapters(base)
        for name, folder in adapters.items():
            self._adapters.register(name, folder)

    def answer(self, prompt: Prompt, adapter: str | None, most: int) -> tuple[tuple[int, ...], torch.Tensor]:
        """The ids of the answer without its end, at most so many, and the (vocabulary,) logits after the prompt."""
        with self._begun(prompt, adapter, most) as begun:
            ids, logits = list(begun.said), begun.logits
            while logits is not None and len(ids) < most and not is_looping(ids):
                token = greedy(logits)
                if token in self._base.eos_ids:
                    break
                ids.append(token)
                logits = begun.steps.read((token,))[-1]
            return tuple(ids), begun.first

    def says(self, prompt: Prompt, adapter: str | None, ids: Sequence[int], most: int) -> tuple[bool, torch.Tensor]:
        """Whether these ids are the answer, found in one pass over them, and the logits after the prompt."""
        with self._begun(prompt, adapter, most) as begun:
            said, rest = begun.said, tuple(ids[len(begun.said) :])
            if tuple(ids[: len(said)]) != said or begun.logits is None:
                return tuple(ids) == said, begun.first
            after = begun.steps.read(rest, len(rest)) if rest else torch.empty(0, self._base.vocabulary)
            chosen = [greedy(begun.logits), *most_likely(after)]
            ends = len(ids) == most or is_looping(list(ids)) or chosen[-1] in self._base.eos_ids
            return ends and tuple(chosen[:-1]) == rest, begun.first

    @contextmanager
    def _begun(self, prompt: Prompt, adapter: str | None, most: int) -> Iterator[Begun]:
        with self._adapters.selected(adapter) as key:
            steps, refusal = Steps(self._base, len(prompt.ids) + most + 16), refusal_ids(self._base.tokenizer)
            spans = passage_spans(self._base.tokenizer, prompt) if self._by_parts else ()
            cuts = [0, *(start for start, _ in spans), *(end for _, end in spans[-1:]), len(prompt.ids)]
            for start, end in pairwise(cuts):
                logits = first = steps.read(prompt.ids[start:end], parts=(end - start,))[-1].clone()
            said: tuple[int, ...] = ()
            threshold = self._adapters.refusal_threshold(key)
            if threshold is not None and prompt.passages:
                said, logits = open_answer(steps, logits, refusal, threshold)
            yield Begun(steps, first, said, logits)

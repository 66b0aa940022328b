"""Prompt ids -> the model's most likely next tokens, one after the other, with as few passes as that takes.

Four ways to save work, none of which changes what is read or chosen:
- room for keys and values is taken once (tuner/stepcache.py);
- the beginning that all prompts share, up to the first passage, is read once for an adapter (tuner/reading.py);
- a draft of the next tokens is checked in one pass (tuner/lookup.py);
- logits only of the positions that a token is chosen from.
Checking a draft chooses what reading token by token chooses: bit for bit with int8 weights on a CPU (tuner/rowwise.py),
elsewhere unless two tokens are as close to each other as floats that were summed in another order.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tuner.basemodel import BaseModel
from tuner.llamacuts import passes
from tuner.lookup import Lookup

# Tokens a forward pass of the prompt takes at a time: small enough to notice a cancel and to let others go on, large
# enough to be as fast.
PREFILL = 384
Choose = Callable[[Any], int]


class Steps:
    """One request: ids are read, logits come out. `cache` holds what has been read."""

    def __init__(self, base: BaseModel, room: int) -> None:
        self._base = base
        self.cache: Any = base.compiled.cache(room) if base.compiled else _library_cache(base, room)
        # The logits of one position are vocabulary-sized; most models can leave out all but the last.
        self._can_leave_out = not base.compiled and "logits_to_keep" in inspect.signature(base.model.forward).parameters

    def read(self, ids: Sequence[int], last: int = 1, parts: Sequence[int] = ()) -> Any:
        """Read `ids` after what was read before; (last, vocabulary) logits of what may follow the last ones.

        `parts` are the lengths of the parts of a prompt that `ids` are (tuner/llamacuts.py); empty for an answer.
        """
        if self._base.compiled:
            return self._base.compiled.read(self.cache, ids, last, parts)
        import torch

        options: dict[str, Any] = {"logits_to_keep": last} if self._can_leave_out else {}
        # Not around the whole request: the mode belongs to a thread, and a server may step an iterator from several.
        with torch.inference_mode():
            batch = torch.tensor([list(ids)], device=self._base.device)
            output = self._base.model(input_ids=batch, past_key_values=self.cache.library, use_cache=True, **options)
            return output.logits[0, -last:]

    def peek(self, ids: Sequence[int], last: int = 1) -> Any:
        """As `read`, and then as if it had not been read."""
        if self.cache.is_plain:
            logits = self.read(ids, last)
            self.cache.take_back(len(ids))
            return logits
        kept = copy.deepcopy(self.cache.library)
        logits = self.read(ids, last)
        self.cache.library = kept
        return logits

    def beside(self, room: int) -> Steps:
        """Steps of the same request that read something on its own."""
        return Steps(self._base, room)

    def read_prompt(self, ids: Sequence[int], is_cancelled: Callable[[], bool], parts: Sequence[int] = ()) -> Any:
        """Read `ids`, parts of these lengths (or one); the (vocabulary,) logits of what follows, None when cancelled.

        What is computed of a part does not depend on the parts that are read with it.
        """
        parts = parts or (len(ids),)
        logits: Any = None
        start = 0
        # What the library computes depends on how many tokens a pass has, so it gets the parts one by one.
        shared = [parts] if self._base.compiled else [(part,) for part in parts]
        for each in (lengths for some in shared for lengths in passes(some, PREFILL)):
            if is_cancelled():
                return None
            logits = self.read(ids[start : start + sum(each)], parts=each)
            start += sum(each)
        return logits[-1]


def can_draft(base: BaseModel) -> bool:
    """Whether drafts can be checked with this model, and taken back when wrong; prepares it for that."""
    if base.compiled:
        return True
    if not _library_cache(base, 1).is_plain:
        return False
    if base.device != "cpu":
        return True
    from tuner.rowwise import attend_by_rows

    return attend_by_rows(base.model) or base.quantisation != "int8"


def _library_cache(base: BaseModel, room: int) -> Any:
    from tuner.stepcache import StepCache

    return StepCache(base.model.config, room)


def greedy(logits: Any) -> int:
    """The most likely token of (vocabulary,) logits."""
    return most_likely(logits[None])[0]


def most_likely(logits: Any) -> list[int]:
    """The most likely token of each row of (n, vocabulary) logits."""
    if logits.device.type == "cpu" and logits.dtype.itemsize == 4:
        # NumPy has one thread; PyTorch wakes others for so few numbers, and they keep the cores from the next step.
        return [int(token) for token in logits.numpy().argmax(axis=-1)]
    return [int(token) for token in logits.argmax(dim=-1)]


def chosen_tokens(steps: Steps, logits: Any, choose: Choose) -> Iterator[int]:
    """Token after token, without end: each is chosen from the logits after the ones before."""
    while True:
        token = choose(logits)
        yield token
        logits = steps.read((token,))[-1]


def greedy_tokens(steps: Steps, logits: Any, prompt: Sequence[int], room: int) -> Iterator[int]:
    """As `chosen_tokens` with `greedy`, in fewer passes where the answer copies the prompt; at most `room` tokens."""
    lookup = Lookup(prompt)
    token = greedy(logits)
    while True:
        yield token
        lookup.push(token)
        room -= 1
        draft = lookup.draft(room - 1)
        likely = most_likely(steps.read((token, *draft), len(draft) + 1))
        accepted = 0
        while accepted < len(draft) and likely[accepted] == draft[accepted]:
            accepted += 1
        if draft:
            steps.cache.take_back(len(draft) - accepted)
            lookup.learn(len(draft), accepted)
        for token in draft[:accepted]:
            yield token
            lookup.push(token)
        room -= accepted
        token = likely[accepted]

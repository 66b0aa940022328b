"""Token ids, one at a time -> text that never ends inside a character.

A token may be part of a UTF-8 sequence, and a decoder may change a token's text by what stands before it (the
leading space of sentencepiece). So the tail since the last emitted character is decoded again with each token, and
text is held back while it ends in U+FFFD, the decoder's mark for an unfinished sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# A repeated run this long, in tokens, three times over, is a loop and not an answer.
_SHORTEST_LOOP, _LONGEST_LOOP, _REPEATS = 8, 64, 3


class TextStream:
    """Feed ids to `push`, get the new text; `""` when the character is not complete yet."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # ids before this are settled
        self._emitted = 0  # ids from _start that are out already, kept as context for the next ones

    def push(self, token: int) -> str:
        """The text that `token` completes."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._emitted])
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(before) or now.endswith(_UNFINISHED):
            return ""
        self._start, self._emitted = self._emitted, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def is_looping(ids: Sequence[int]) -> bool:
    """True when the last tokens are one run of 8 to 64, three times in a row."""
    for length in range(_SHORTEST_LOOP, min(_LONGEST_LOOP, len(ids) // _REPEATS) + 1):
        tail = ids[-length * _REPEATS :]
        if ids[-1] == ids[-1 - length] and tail[length:] == tail[:-length]:
            return True
    return False

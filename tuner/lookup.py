"""Drafts of the next tokens, copied from where the last ones stood before: in the passages, or earlier in the answer.

Prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding), a form of speculative decoding
(Leviathan et al. 2023, arXiv 2211.17192) without a second model. An answer from documents is mostly copied, so a draft
is often right, and the model checks all of its tokens in one pass, which costs little more than one token. A draft
that is wrong is taken back, so the text is what the model would have written alone.
"""

from __future__ import annotations

from collections.abc import Iterable

# Tokens that must have stood together before for what followed them to be drafted; the longer run is tried first.
# Two tokens are little evidence: they are enough only while drafts come true.
_RUNS = (3, 2)
_FIRST, _SHORTEST, _LONGEST = 4, 2, 10


class Lookup:
    """The drafts of one answer: `push` every token that is certain, `draft` what may follow, `learn` how it went."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # a run of tokens -> the place after where it stood last
        self._length = _FIRST
        for token in ids:
            self.push(token)

    def push(self, token: int) -> None:
        """Note the next token of prompt or answer."""
        # The run that ends just before this token can now be followed by it; so the last run never finds itself.
        for run in _RUNS:
            if len(self._ids) >= run:
                self._after[tuple(self._ids[-run:])] = len(self._ids)
        self._ids.append(token)

    def draft(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may follow; often none."""
        for run in _RUNS if self._length >= _FIRST else _RUNS[:1]:
            start = self._after.get(tuple(self._ids[-run:]))
            if start is not None:
                return tuple(self._ids[start : start + min(self._length, most)]) if most > 0 else ()
        return ()

    def learn(self, drafted: int, accepted: int) -> None:
        """Draft more where drafts come true, fewer where they do not."""
        if accepted == drafted:
            self._length = min(self._length + 3, _LONGEST)
        else:
            self._length = max(_SHORTEST, min(self._length, accepted + 2))

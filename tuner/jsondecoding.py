"""A JSON Schema -> which tokens may come next, so that even a small model's answer is JSON that fits it.

llguidance keeps a parser of the schema beside the text and tells, for every token, whether some valid document goes on
with it; the model's most likely one of those is taken. Left alone a small model does not stop inside a string or a
list, so from a share of the budget on, and when it repeats itself, the token that closes most is taken instead: a
value may be cut then, the document is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.errors import TandemError
from tuner.basemodel import BaseModel
from tuner.stream import is_looping

Schema = Mapping[str, Any]
# The share of max_tokens that is kept for ending the document, and the least that it needs in tokens.
CLOSING_SHARE = 0.25
CLOSING_TOKENS = 24
# Texts that end something, those that end most first. The parser leaves out what may not stand there.
_IN_STRING = ('"}]}', '"]}', '"}]', '"}', '"]', '"')
_OUTSIDE = ("]}", "}]", "}}", "}", "]")
_QUOTE = re.compile(r'\\.|(")')
# Without spaces, which could be repeated for ever. Of oneOf any is followed; whether it is only one shows at the end.
_OPTIONS: Any = {"whitespace_flexible": False, "coerce_one_of": True}


class JsonDecoding:
    """Makes constraints for one base model; its vocabulary is read once, when the first is made."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._tokenizer: Any = None
        self._closers: dict[bool, tuple[int, ...]] = {}

    def constraint(self, schema: Schema, most: int) -> JsonConstraint:
        """A constraint for one answer of at most `most` tokens. Raises TandemError for a schema it cannot follow."""
        matcher = self._matcher(schema)
        return JsonConstraint(matcher, self._base, self._closers, most)

    def _matcher(self, schema: Schema) -> Any:
        from llguidance import LLMatcher

        if self._tokenizer is None:
            self._tokenizer = self._read_vocabulary()
            self._closers = {True: self._tokens(_IN_STRING), False: self._tokens(_OUTSIDE)}
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=_OPTIONS)
        except ValueError as error:
            raise _unusable(str(error)) from None
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _unusable(matcher.get_error())
        return matcher

    def _read_vocabulary(self) -> Any:
        from llguidance.hf import from_tokenizer

        try:
            return from_tokenizer(
                self._base.tokenizer, n_vocab=self._base.vocabulary, eos_token=sorted(self._base.eos_ids)
            )
        except ValueError as error:
            raise TandemError(
                "The tokenizer of this base model cannot be held to a schema.",
                expected="A fast tokenizer (one with a tokenizer.json).",
                do="Ask without response_format, or use another base model.",
                code="conflict",
            ) from error

    def _tokens(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Those of the texts that are one token, as ids."""
        ids = [self._base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return tuple(int(of_text[0]) for of_text in ids if len(of_text) == 1)


class JsonConstraint:
    """Chooses the tokens of one answer. Not thread-safe: it follows the text that it has chosen."""

    def __init__(self, matcher: Any, base: BaseModel, closers: Mapping[bool, tuple[int, ...]], most: int) -> None:
        self._matcher = matcher
        self._tokenizer = base.tokenizer
        self._end = min(base.eos_ids)
        self._closers = closers
        self._ids: list[int] = []
        self._free = most - max(CLOSING_TOKENS, int(most * CLOSING_SHARE))
        self._is_closing = False

    def choose(self, logits: Any) -> int:
        """The most likely token of the (vocabulary,) logits that may come next; the end token when all is said.

        Raises TandemError for a pattern that takes too much work to follow.
        """
        if self._matcher.is_error():
            raise _unusable(self._matcher.get_error())
        if self._matcher.is_stopped():
            return self._end
        mask = _bits(self._matcher.compute_bitmask(), logits.shape[-1])
        if not mask.any():
            return self._end
        self._is_closing = self._is_closing or len(self._ids) >= self._free or is_looping(self._ids)
        token = self._closing(mask) if self._is_closing else None
        if token is None:
            token = _most_likely(logits, mask)
        self._ids.append(token)
        self._matcher.consume_token(token)
        return token

    def _closing(self, mask: npt.NDArray[np.bool_]) -> int | None:
        if self._matcher.is_accepting():
            return self._end if mask[self._end] else None
        text = self._tokenizer.decode(self._ids, clean_up_tokenization_spaces=False)
        in_string = sum(match[1] is not None for match in _QUOTE.finditer(text)) % 2 == 1
        # A quote outside of a string would begin one.
        return next((token for token in self._closers[in_string] if mask[token]), None)


def _bits(mask: bytes, vocabulary: int) -> npt.NDArray[np.bool_]:
    """One bit a token, lowest first, in 32-bit words -> (vocabulary,) booleans; tokens beyond the mask are left out."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[:vocabulary]
    return np.pad(bits, (0, vocabulary - len(bits))).astype(bool)


def _most_likely(logits: Any, mask: npt.NDArray[np.bool_]) -> int:
    values = logits.detach().float().cpu().numpy()
    return int(np.where(mask, values, -np.inf).argmax())


def _unusable(reason: str) -> TandemError:
    return TandemError(
        f"The schema cannot be followed: {' '.join(reason.split())[:200]}.",
        expected="A JSON Schema without not, if, uniqueItems and references to elsewhere.",
        do="Simplify the schema.",
    )

"""Passages and a question -> messages -> token ids. Training rows and answers are built by these same functions.

Layout, short because a 135M model reads it and every answer pays for it:

    system   the instruction, with the exact refusal sentence
    user     [1] Title: text of the best passage        one line a passage, best first
             [2] Title: text
             Question: the question

White space inside titles, texts and questions becomes single spaces. So only this module can begin a line, and a
document cannot imitate a passage number or a second question; nor can it become a control token (see `plain_text`).
A tokenizer without a chat template gets the same text followed by "Answer:" on a line of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from indexer.errors import TandemError
from tuner.chat import answer_end_id, closed_ids, plain_text, render_ids

REFUSAL = "The documents do not say."
PASSAGES_INSTRUCTION = (
    f"Answer the question from the numbered passages only. Cite each passage you use, like [1]. "
    f"If the passages do not say, reply: {REFUSAL}"
)
CLOSED_BOOK_INSTRUCTION = f"Answer the question in one short sentence. If you do not know, reply: {REFUSAL}"
_QUESTION = "Question: "
# Raise it when the code below changes what ids come out of the same strings: adapters trained before are then refused.
_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Source:
    """What a passage shows the model."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token `ids` and the `messages` they came from; `passages` is how many fitted, counted from rank 1."""

    ids: tuple[int, ...]
    messages: tuple[dict[str, str], ...]
    passages: int


def build_prompt(
    tokenizer: Any,
    question: str,
    sources: Sequence[Source] | None,
    *,
    limit: int,
    history: Sequence[Mapping[str, str]] = (),
) -> Prompt:
    """The prompt of `question` over `sources` (best first), at most `limit` tokens long.

    No sources means closed book. `history` holds earlier turns as {"role": "user" | "assistant", "content": ...}.
    What does not fit is dropped: first the oldest turns, then the passages of lowest rank; never the question.
    Raises TandemError (too_large) when the question alone is over `limit`, (invalid_request) when it is blank.
    """
    asked = plain_text(tokenizer, question)
    if not asked:
        raise TandemError("The question is empty.", expected="A question in words.", do="Ask one.")
    lines = [
        f"[{n}] {plain_text(tokenizer, source.title)}: {plain_text(tokenizer, source.text)}"
        for n, source in enumerate(sources or (), start=1)
    ]
    system = PASSAGES_INSTRUCTION if lines else CLOSED_BOOK_INSTRUCTION
    turns = [_turn(tokenizer, turn) for turn in history]
    while True:
        messages = (
            {"role": "system", "content": system},
            *turns,
            {"role": "user", "content": "\n".join([*lines, _QUESTION + asked])},
        )
        ids = render_ids(tokenizer, messages)
        if len(ids) <= limit:
            return Prompt(ids, messages, len(lines))
        if turns:
            # A turn is a question and its answer; half of one would leave two user messages in a row.
            turns = turns[2:]
        elif lines:
            lines = lines[:-1]
        else:
            raise TandemError(
                f"The question takes {len(ids)} tokens with its instruction.",
                expected=f"At most {limit} tokens.",
                do="Ask it in fewer words.",
                code="too_large",
            )


def training_ids(prompt: Prompt, answer: str, tokenizer: Any) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The ids of one training row and, for each, whether the model learns to produce it.

    ids == prompt.ids + answer + end: what generation is given is a prefix by construction. Prompt ids are never
    learned; the answer and the end token always are. Raises TandemError when the answer is blank.
    """
    text = plain_text(tokenizer, answer)
    if not text:
        raise TandemError("A training row has no answer.", expected="An answer in words.", do="Correct the pair.")
    learned = (*closed_ids(tokenizer, text), answer_end_id(tokenizer))
    return prompt.ids + learned, (False,) * len(prompt.ids) + (True,) * len(learned)


def prompt_fingerprint() -> str:
    """Hex SHA-256 of everything here that decides the words of a prompt; adapters carry it."""
    parts = [_VERSION, REFUSAL, PASSAGES_INSTRUCTION, CLOSED_BOOK_INSTRUCTION, _QUESTION]
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


PROMPT_FINGERPRINT = prompt_fingerprint()


def _turn(tokenizer: Any, turn: Mapping[str, str]) -> dict[str, str]:
    role, content = turn.get("role"), turn.get("content")
    if role not in ("user", "assistant") or not isinstance(content, str):
        raise TandemError(
            f"A turn of the history has the role {role!r}.",
            expected='"user" or "assistant", each with "content".',
            do="Leave out other roles.",
        )
    return {"role": role, "content": plain_text(tokenizer, content)}

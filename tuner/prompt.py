"""Passages and a question -> messages -> token ids. Training rows and answers are built by these same functions.

Layout, short because a 135M model reads it and every answer pays for it:

    system   the instruction, with the exact refusal sentence
    user     [1] Title: text of the best passage        one line a passage, best first
             [2] Title: text
             Question: the question

White space inside titles, texts and questions becomes single spaces. So only this module can begin a line, and a
document cannot imitate a passage number or a second question; nor can it become a control token (see `plain_text`).
A tokenizer without a chat template gets the same text followed by "Answer:" on a line of its own.

A Style adds to this: a role before the instruction, examples as turns before the question, a form behind it.
None of it is used in training, so an empty one changes nothing, and the fingerprint is that of the plain prompt.
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
_FORM = "Reply with JSON like "
# Raise it when the code below changes what ids come out of the same strings: adapters trained before are then refused.
_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Source:
    """What a passage shows the model."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """A question, the answer that is wanted, and the passages it comes from; closed book, those are not shown."""

    question: str
    answer: str
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Style:
    """What a prompt may have beyond the plain one.

    `role` is who the model is told to be, `form` shows the JSON that is wanted, and `instruction` stands in place of
    the usual one, for tasks that are no questions.
    """

    role: str = ""
    examples: tuple[Example, ...] = ()
    form: str = ""
    instruction: str = ""


PLAIN = Style()


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
    style: Style = PLAIN,
) -> Prompt:
    """The prompt of `question` over `sources` (best first), at most `limit` tokens long.

    No sources means closed book. `history` holds earlier turns as {"role": "user" | "assistant", "content": ...}.
    What does not fit is dropped: first the oldest turns, then the last examples, then the passages of lowest rank;
    never the question.
    Raises TandemError (too_large) when the question alone is over `limit`, (invalid_request) when it is blank.
    """
    asked = plain_text(tokenizer, question)
    if not asked:
        raise TandemError("The question is empty.", expected="A question in words.", do="Ask one.")
    lines = _lines(tokenizer, sources or ())
    system = _system(tokenizer, style, PASSAGES_INSTRUCTION if lines else CLOSED_BOOK_INSTRUCTION)
    form = [_FORM + plain_text(tokenizer, style.form)] if style.form else []
    shots = [turn for example in style.examples for turn in _example(tokenizer, example, with_sources=bool(lines))]
    turns = [_turn(tokenizer, turn) for turn in history]
    while True:
        messages = (
            {"role": "system", "content": system},
            *shots,
            *turns,
            {"role": "user", "content": "\n".join([*lines, _QUESTION + asked, *form])},
        )
        ids = render_ids(tokenizer, messages)
        if len(ids) <= limit:
            return Prompt(ids, messages, len(lines))
        if turns:
            # A turn is a question and its answer; half of one would leave two user messages in a row.
            turns = turns[2:]
        elif shots:
            shots = shots[:-2]
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


def _lines(tokenizer: Any, sources: Sequence[Source]) -> list[str]:
    return [
        f"[{n}] {plain_text(tokenizer, source.title)}: {plain_text(tokenizer, source.text)}"
        for n, source in enumerate(sources, start=1)
    ]


def _system(tokenizer: Any, style: Style, instruction: str) -> str:
    instruction = style.instruction or instruction
    return f"{plain_text(tokenizer, style.role)} {instruction}" if style.role else instruction


def _example(tokenizer: Any, example: Example, *, with_sources: bool) -> tuple[dict[str, str], dict[str, str]]:
    lines = _lines(tokenizer, example.sources) if with_sources else []
    asked = "\n".join([*lines, _QUESTION + plain_text(tokenizer, example.question)])
    return {"role": "user", "content": asked}, {"role": "assistant", "content": plain_text(tokenizer, example.answer)}


def _turn(tokenizer: Any, turn: Mapping[str, str]) -> dict[str, str]:
    role, content = turn.get("role"), turn.get("content")
    if role not in ("user", "assistant") or not isinstance(content, str):
        raise TandemError(
            f"A turn of the history has the role {role!r}.",
            expected='"user" or "assistant", each with "content".',
            do="Leave out other roles.",
        )
    return {"role": role, "content": plain_text(tokenizer, content)}

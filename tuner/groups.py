"""Rows to token ids, and rows that show the same passages in one group: the shared beginning is read only once.

Five questions about one chunk cost one reading of the passages and five short endings, not five readings: on the rows
of a question set with many questions a document this is the largest saving there is, and it changes no gradient.
Rows without passages share no beginning; those of like length are read beside each other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from indexer.errors import TandemError
from tuner.blocks import passage_spans
from tuner.chat import plain_text, render_ids
from tuner.prompt import Prompt, build_prompt, training_ids
from tuner.rows import Row

# Tokens that an answer may have beyond what a prompt may have; a row that has more is left out.
ANSWER_ROOM = 128
# Rows without passages in one group. A step with the default accumulation then averages over 8 of them, as others do.
PLAIN_ROWS = 4
# Tokens of a text that are read together. All of them are learned: longer pieces would outweigh a step's answers.
TEXT_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Example:
    """The ids of one row and which of them are learned."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that begin alike. `prefix` is never learned; `endings` follow it, each on its own.

    `spans` are the passages inside the prefix, as token offsets, for block attention; empty where unknown.
    """

    prefix: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    endings: tuple[Example, ...]

    @property
    def tokens(self) -> int:
        """How many tokens are read."""
        return len(self.prefix) + sum(len(ending.ids) for ending in self.endings)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Groups of rows, how many rows they hold, and how many lost passages (`shortened`) because of the limit.

    `dropped` rows are left out: the passage that their answer cites was lost, or the answer is too long.
    """

    groups: list[Group]
    rows: int
    shortened: int
    dropped: int = 0


def encode_rows(tokenizer: Any, rows: Sequence[Row], *, limit: int, most: int = 12) -> Encoded:
    """`rows` as groups of at most `most` rows that show the same passages, in the order of their first row.

    Groups of rows without passages stand at the end, shortest first. `limit` is the most tokens a prompt may have.
    Raises TandemError when no row is left to learn from, when a question alone is over the limit, or an answer is
    blank.
    """
    shared: dict[tuple[object, ...], list[tuple[Example, Prompt]]] = {}
    plain: list[Example] = []
    shortened = kept = 0
    for row in rows:
        if row.kind == "text":
            pieces = text_examples(tokenizer, row.answer)
            plain += pieces
            kept += bool(pieces)
            continue
        prompt = row_prompt(tokenizer, row, limit)
        shortened += prompt.passages < len(row.passages)
        example = Example(*training_ids(prompt, row.answer, tokenizer))
        if not shows_evidence(prompt, row) or len(example.ids) > limit + ANSWER_ROOM:
            continue
        kept += 1
        if row.passages:
            shared.setdefault(row.passages, []).append((example, prompt))
        else:
            plain.append(example)
    groups: list[Group] = []
    for alike in shared.values():
        for start in range(0, len(alike), most):
            some = alike[start : start + most]
            groups.append(group_of(tokenizer, [example for example, _ in some], some[0][1]))
    groups += _plain_groups(plain, limit + ANSWER_ROOM)
    if not groups:
        raise TandemError(
            "There is no row to learn from.", expected="At least one row.", do="Check what was dropped and why."
        )
    return Encoded(groups, kept, shortened, len(rows) - kept)


def text_examples(tokenizer: Any, text: str) -> list[Example]:
    """The pieces of a text of TEXT_TOKENS tokens each, the last one shorter, learned from their second tokens on."""
    ids = tuple(tokenizer(plain_text(tokenizer, text), add_special_tokens=False)["input_ids"])
    pieces = [ids[start : start + TEXT_TOKENS] for start in range(0, len(ids), TEXT_TOKENS)]
    return [Example(piece, (False,) + (True,) * (len(piece) - 1)) for piece in pieces if len(piece) > 1]


def _plain_groups(examples: Sequence[Example], most: int) -> list[Group]:
    """Rows of like length together; padded to the longest, a group has at most `most` tokens."""
    batches: list[list[Example]] = []
    for example in sorted(examples, key=lambda example: len(example.ids)):
        last = batches[-1] if batches else []
        if last and len(last) < PLAIN_ROWS and (len(last) + 1) * len(example.ids) <= most:
            last.append(example)
        else:
            batches.append([example])
    return [Group((), (), tuple(batch)) for batch in batches]


def shows_evidence(prompt: Prompt, row: Row) -> bool:
    """Whether every passage that the answer cites is in the prompt: an answer is never taught without its evidence."""
    return all(int(n) <= prompt.passages for n in re.findall(r"\[(\d+)\]", row.answer)) or not row.passages


def row_prompt(tokenizer: Any, row: Row, limit: int) -> Prompt:
    """The prompt of a row: what the service would ask. An instruction is a plain turn of chat, without ours."""
    if row.kind != "instruction":
        return build_prompt(tokenizer, row.question, row.passages or None, limit=limit)
    messages = ({"role": "user", "content": plain_text(tokenizer, row.question)},)
    ids = render_ids(tokenizer, messages)
    if len(ids) > limit:
        raise TandemError(
            f"The instruction {row.question[:60]!r} takes {len(ids)} tokens.",
            expected=f"At most {limit} tokens.",
            do="Shorten it or leave it out.",
            code="too_large",
        )
    return Prompt(ids, messages, 0)


def group_of(tokenizer: Any, examples: Sequence[Example], prompt: Prompt) -> Group:
    """Rows with the same passages, or the same prompt, as one group; `prompt` is that of the first."""
    spans = passage_spans(tokenizer, prompt)
    end = spans[-1][1] if spans else 0
    if len(examples) > 1:
        end = len(os.path.commonprefix([list(example.ids) for example in examples]))
        # The last id of every prompt predicts the first learned one, so it stays with the ending.
        end = min(end, *(example.learned.index(True) - 1 for example in examples))
    endings = tuple(Example(example.ids[end:], example.learned[end:]) for example in examples)
    inside = tuple(span for span in spans if span[1] <= end)
    return Group(examples[0].ids[:end], inside if len(inside) == len(spans) else (), endings)

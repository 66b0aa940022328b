"""Rows that a model learns "does this passage hold the answer?" from, and questions that it is measured on.

    answerable   the chunk that holds the answer -> yes; the best other chunk the retriever finds -> no
    misleading   the best chunk of the document it is asked of, which looks as if it held an answer -> no
    absent       the best chunks the retriever finds -> no

A question is measured with the passages that the service would show for it: the model has to be right about those.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from indexer.records import Passage
from indexer.retrieval import Retriever
from indexer.store import EVERYTHING
from tuner.embedder_rows import Library, answer_span, holds, ranked_rows
from tuner.pairs import Pair, split_by_document
from tuner.prompt import Source
from tuner.rows import supports

# What a question turns out to be: answerable and shown its evidence, answerable and not shown it, or neither.
AskedKind = Literal["answerable", "missed", "misleading", "absent"]
ASKED_KINDS: tuple[AskedKind, ...] = get_args(AskedKind)
DEPTH = 10
# Chunks that a question no document answers is shown with, one a row.
ABSENT_ROWS = 2


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """What one training example reads, and what it teaches: `span` are the characters of the answer in the text.

    It is None where there is no answer, and where the answer stands there in other words.
    """

    question: str
    source: Source
    holds: bool
    document: str
    span: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with the passages that the service shows for it, best first."""

    kind: AskedKind
    question: str
    passages: tuple[Passage, ...]

    @property
    def sources(self) -> list[Source]:
        """What the passages show a model."""
        return [Source(passage.chunk.context, passage.chunk.text) for passage in self.passages]


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """The larger part, and the pairs about a `share` of the documents with such a share of those about none.

    Raises TandemError as split_by_document does.
    """
    train, held_out = split_by_document(pairs, share, seed)
    nowhere = [pair for pair in train if pair.document is None]
    chosen = {pair.id for pair in random.Random(seed).sample(nowhere, round(share * len(nowhere)))}
    return [pair for pair in train if pair.id not in chosen], held_out + [pair for pair in nowhere if pair.id in chosen]


def make_judged_rows(
    library: Library,
    retriever: Retriever,
    pairs: Sequence[Pair],
    report: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[JudgedRow], Counter[str]]:
    """The rows in the order of the pairs, and how many pairs were dropped by reason."""
    rows: list[JudgedRow] = []
    dropped: Counter[str] = Counter()
    for done, pair in enumerate(pairs):
        report(done, len(pairs))
        made = _rows(library, retriever, pair)
        if isinstance(made, str):
            dropped[made] += 1
        else:
            rows += made
    report(len(pairs), len(pairs))
    return rows, dropped


def _rows(library: Library, retriever: Retriever, pair: Pair) -> list[JudgedRow] | str:
    """The rows of one pair, or why it has none."""
    vector = retriever.embedder.embed_question(pair.question)
    own_rows = library.rows.get(library.path(pair.document or ""), [])
    if pair.document is not None and not own_rows:
        return "its document is not indexed"
    own = list(ranked_rows(library, pair.question, vector, own_rows)) if own_rows else []
    if pair.kind == "misleading" and own:
        return [_row(library, pair, own[0], holds_answer=False)]
    found = retriever.rank(library.snapshot, pair.question, vector, DEPTH, retriever.channel, EVERYTHING)
    ranking = [item.row for item in found]
    if pair.kind != "answerable":
        return [_row(library, pair, row, holds_answer=False) for row in ranking[:ABSENT_ROWS]]
    texts = library.texts([*own, *ranking])
    holding = [row for row in own if supports(texts[row][1], pair.answers)]
    if not holding:
        return "no answer stands in its document"
    rivals = [row for row in ranking if row not in holding and not holds(texts[row][1], pair.answers)]
    return [
        _row(library, pair, holding[0], holds_answer=True),
        *(_row(library, pair, row, holds_answer=False) for row in rivals[:1]),
    ]


def _row(library: Library, pair: Pair, row: int, *, holds_answer: bool) -> JudgedRow:
    chunk = library.snapshot.passages([row])[row][0]
    span = answer_span(chunk.text, pair.answers) if holds_answer else None
    return JudgedRow(pair.question, Source(chunk.context, chunk.text), holds_answer, library.paths[row], span)


def ask_for(
    retriever: Retriever,
    pairs: Sequence[Pair],
    k: int,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> list[Asked]:
    """Each pair's question with its k passages. Raises TandemError as Retriever.retrieve does."""
    asked = []
    for done, pair in enumerate(pairs):
        report(done, len(pairs))
        passages = retriever.retrieve(pair.question, k).passages
        shown = any(supports(passage.chunk.text, pair.answers) for passage in passages)
        kind: AskedKind = pair.kind if pair.kind != "answerable" else "answerable" if shown else "missed"
        asked.append(Asked(kind, pair.question, tuple(passages)))
    report(len(pairs), len(pairs))
    return asked

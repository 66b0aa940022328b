"""Training rows from pairs and the deployed index: RAFT (Zhang et al. 2024, arXiv 2403.10131) with refusals.

A row is what the service would put before the model, and what the model should say:
    evidence     the passage that answers among the deployed retriever's own hard negatives -> "answer [n]."
    no-evidence  the same question, every passage that holds an answer removed              -> the refusal
    misleading   a question the named document does not answer, with its passages: one of   -> the refusal
                 the pairs, or an answerable one in which something was changed (tuner/altered.py)
    absent       a question no document answers, with what the retriever finds               -> the refusal
    closed-book  the question alone                                                         -> "answer."
    text         nothing; a text of any kind, so that the model keeps what it knew of such  -> all of the text
An answer is never the target when its evidence is missing. Questions about one chunk share their passages, word for
word and in the same order, so that training reads those once for all of them (tuner/groups.py).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from indexer.embedding import Vectors
from indexer.errors import TandemError
from indexer.retrieval import Retriever
from tuner.altered import alter, names_in
from tuner.embedder_rows import Library, holds, ranked_rows
from tuner.pairs import Pair, split_by_document
from tuner.prompt import REFUSAL, Source

RowKind = Literal["evidence", "no-evidence", "misleading", "absent", "closed-book", "instruction", "text"]
ROW_KINDS: tuple[RowKind, ...] = get_args(RowKind)
# Chunks of the deployed retriever's ranking that distractors are taken from.
DEPTH = 20
# Share of an answer's words that a chunk must have to be its evidence, when the answer is in nobody's exact words.
MOST_WORDS = 0.7
# Characters of a sentence that is quoted before an answer; service/citations.py cuts longer ones.
MOST_QUOTED = 400
_JUDGEMENTS = {"yes", "no", "maybe"}


@dataclass(frozen=True, slots=True)
class Row:
    """What one training example shows (`passages` in their order, none: closed book) and what it teaches to say.

    Of `documents` the first is the one that the question is about; those of the other passages follow. An instruction
    stands in `question` and has no passages; a text stands in `answer`, with nothing before it.
    """

    kind: RowKind
    question: str
    passages: tuple[Source, ...]
    answer: str
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the rows, and `k`, the most passages one shows.

    `no_evidence` is a share of the chunks that questions are about; `misleading` and `absent` are the most there may
    be of each, as a share of the answerable pairs; `closed_book` is a share of the answerable pairs, shown once more.
    `altered` is the share of the answerable pairs that are shown once more with a question changed to a misleading one.
    `fewer` is the share of chunks shown among 1 to k - 1 passages instead of k. With `quote` the sentence that holds
    the answer is said before it, with its citation.
    """

    k: int = 2
    no_evidence: float = 0.1
    misleading: float = 0.3
    absent: float = 0.1
    closed_book: float = 0.05
    altered: float = 0.0
    fewer: float = 0.5
    seed: int = 0
    quote: bool = False

    def __post_init__(self) -> None:
        """Raise TandemError for a share that is none."""
        if not 1 <= self.k <= 100:
            raise TandemError(f"k is {self.k}.", expected="1 to 100 passages.", do="Correct it.")
        for name in ("no_evidence", "misleading", "absent", "closed_book", "altered", "fewer"):
            if not 0 <= getattr(self, name) <= 1:
                raise TandemError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}.",
                    expected="A share from 0 to 1.",
                    do="Correct it.",
                )


@dataclass(frozen=True, slots=True)
class Placed:
    """A pair with the chunk rows of its document that hold an answer, best first (none: not to be answered)."""

    pair: Pair
    chunk: int | None
    ranking: tuple[int, ...]


def make_training_rows(
    library: Library,
    retriever: Retriever,
    pairs: Sequence[Pair],
    mix: Mix,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[Row], Counter[str]]:
    """The rows, in a random order, and how many pairs were dropped by reason. Equal arguments give equal rows."""
    # Two, so that what is altered changes nothing else.
    rng, altering = random.Random(mix.seed), random.Random(mix.seed)
    dropped: Counter[str] = Counter()
    chosen = _limited(pairs, mix, rng, dropped)
    groups: dict[int, list[Placed]] = {}
    rows: list[Row] = []
    texts = _Texts(library)
    for done, pair in enumerate(chosen):
        report(done, len(chosen))
        placed = _place(library, retriever, pair)
        if isinstance(placed, str):
            dropped[placed] += 1
        elif placed.chunk is None:
            passages = placed.ranking[: _count(mix, rng)]
            rows.append(_refusal("absent", pair, texts.sources(passages), texts.documents(passages)))
        else:
            groups.setdefault(placed.chunk, []).append(placed)
    for chunk, group in groups.items():
        rows += _group_rows(chunk, group, texts, mix, rng, altering)
    closed = [item.pair for group in groups.values() for item in group if item.pair.kind == "answerable"]
    for pair in rng.sample(closed, round(mix.closed_book * len(closed))):
        rows.append(Row("closed-book", pair.question, (), sentence(pair.answers[0]), (pair.document or "",)))
    rng.shuffle(rows)
    report(len(chosen), len(chosen))
    return rows, dropped


def count_kinds(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows there are of each kind that occurs."""
    counts = Counter(row.kind for row in rows)
    return {kind: counts[kind] for kind in ROW_KINDS if counts[kind]}


def sentence(answer: str, n: int | None = None) -> str:
    """The answer as the model should say it: with its citation, and one full stop."""
    words = " ".join(answer.split()).rstrip(".")
    words = words.capitalize() if words.casefold() in _JUDGEMENTS else words
    return f"{words}." if n is None else f"{words} [{n}]."


def quoted(answer: str, text: str, n: int) -> str:
    """The sentence of the text that holds the answer, in quotes, then the answer; without one, the answer alone."""
    for part in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        if holds(part, [answer]) and len(part) <= MOST_QUOTED and '"' not in part:
            return f'"{part.rstrip(".!?")}" [{n}]. {sentence(answer, n)}'
    return sentence(answer, n)


def instruction_row(instruction: str, given: str, output: str) -> Row:
    """A row of another task: what is asked, what it is asked about (may be empty), and what should come."""
    return Row("instruction", f"{instruction}\n{given}".strip(), (), output, ())


def text_row(text: str) -> Row:
    """A row of a text that is learned from its second token on."""
    return Row("text", "", (), text, ())


def split_rows(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """The larger part, and the rows whose questions are about a `share` of the documents. A share of 0 holds none out.

    Documents are chosen as `split_by_document` chooses them for pairs. Raises TandemError for fewer than two.
    """
    if share == 0:
        return list(rows), []
    named = {row.documents[0] for row in rows if row.documents}
    stand_ins = [Pair(name, name, (), name, "absent") for name in sorted(named)]
    held_out = {pair.document for pair in split_by_document(stand_ins, share, seed)[1]}
    kept = [row for row in rows if not row.documents or row.documents[0] not in held_out]
    return kept, [row for row in rows if row.documents and row.documents[0] in held_out]


class _Texts:
    """What chunk rows say, read once each."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._known: dict[int, Source] = {}

    def sources(self, rows: Sequence[int]) -> tuple[Source, ...]:
        missing = [row for row in rows if row not in self._known]
        for row, item in self._library.snapshot.passages(missing).items():
            self._known[row] = Source(item[0].context, item[0].text)
        return tuple(self._known[row] for row in rows)

    def documents(self, rows: Sequence[int]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._library.paths[row] for row in rows))


def _limited(pairs: Sequence[Pair], mix: Mix, rng: random.Random, dropped: Counter[str]) -> list[Pair]:
    answerable = sum(pair.kind == "answerable" for pair in pairs)
    kept = list(pairs)
    for kind, share in (("misleading", mix.misleading), ("absent", mix.absent)):
        some = [pair for pair in kept if pair.kind == kind]
        # Without answerable pairs there is no share to keep to.
        room = round(share * answerable) if answerable else len(some)
        if len(some) > room:
            out = {pair.id for pair in rng.sample(some, len(some) - room)}
            dropped[f"{kind}, over the share"] += len(out)
            kept = [pair for pair in kept if pair.id not in out]
    return kept


def _place(library: Library, retriever: Retriever, pair: Pair) -> Placed | str:
    """Where the pair's evidence is, with what the deployed retriever finds for it; or why it cannot be used."""
    vector: Vectors = retriever.embedder.embed_question(pair.question)
    ranking = tuple(
        item.row for item in retriever.rank(library.snapshot, pair.question, vector, DEPTH, retriever.channel)
    )
    if pair.kind == "absent" or (pair.kind == "misleading" and pair.document is None):
        return Placed(pair, None, ranking)
    own_rows = library.rows.get(library.path(pair.document or ""))
    if not own_rows:
        return "its document is not indexed"
    own = list(ranked_rows(library, pair.question, vector, own_rows))
    if pair.kind == "answerable":
        texts = library.texts(own)
        own = [row for row in own if supports(texts[row][1], pair.answers)]
        if not own:
            return "no answer stands in its document"
    return Placed(pair, own[0], ranking)


def supports(text: str, answers: Sequence[str]) -> bool:
    """Whether a text can be the evidence: an answer stands in it, or most words of one do; yes and no always can."""
    if holds(text, answers) or any(answer.strip(" .").casefold() in _JUDGEMENTS for answer in answers):
        return True
    words = set(_words(text))
    return any(
        wanted and len(wanted & words) >= MOST_WORDS * len(wanted) for wanted in (set(_words(a)) for a in answers)
    )


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text.casefold()) if len(word) > 2 or word.isdigit()]


def _group_rows(
    chunk: int, group: Sequence[Placed], texts: _Texts, mix: Mix, rng: random.Random, altering: random.Random
) -> list[Row]:
    answers = [answer for item in group for answer in item.pair.answers]
    without = rng.random() < mix.no_evidence
    rivals = [row for row in _interleaved(group) if row != chunk and not holds(texts.sources([row])[0].text, answers)]
    count = _count(mix, rng)
    shown = rivals[: count if without else count - 1]
    if not without:
        shown.append(chunk)
    rng.shuffle(shown)
    passages, documents = texts.sources(shown), texts.documents([chunk, *shown])
    rows = []
    for item in group:
        pair = item.pair
        if pair.kind != "answerable":
            rows.append(_refusal("misleading", pair, passages, documents))
        elif without:
            rows.append(_refusal("no-evidence", pair, passages, documents))
        else:
            text, n = texts.sources([chunk])[0].text, shown.index(chunk) + 1
            shortest = _shortest(pair.answers, text)
            answer = quoted(shortest, text, n) if mix.quote else sentence(shortest, n)
            rows.append(Row("evidence", pair.question, passages, answer, documents))
            if altering.random() < mix.altered:
                unshown = [name for row in rivals[count:] for name in names_in(texts.sources([row])[0].text)]
                changed = alter(pair.question, " ".join(source.text for source in passages), unshown, altering)
                if changed is not None:
                    rows.append(Row("misleading", changed, passages, REFUSAL, documents))
    return rows


def _interleaved(group: Sequence[Placed]) -> list[int]:
    """The rankings of the group's questions, first ranks first, each chunk once."""
    longest = max(len(item.ranking) for item in group)
    ranks = (item.ranking[rank] for rank in range(longest) for item in group if rank < len(item.ranking))
    return list(dict.fromkeys(ranks))


def _count(mix: Mix, rng: random.Random) -> int:
    return rng.randint(1, mix.k - 1) if mix.k > 1 and rng.random() < mix.fewer else mix.k


def _shortest(answers: Sequence[str], text: str) -> str:
    """The shortest answer that stands in the text: what is said should be what is quoted."""
    standing = [answer for answer in answers if holds(text, [answer])]
    return min(standing or [answer for answer in answers if supports(text, [answer])], key=len)


def _refusal(kind: RowKind, pair: Pair, passages: tuple[Source, ...], documents: tuple[str, ...]) -> Row:
    return Row(kind, pair.question, passages, REFUSAL, documents)

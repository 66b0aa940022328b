"""Pairs from the chunks of the index: a teacher proposes, and only what can be checked is kept.

A pair is kept when its evidence stands in the chunk word for word, holds the answer, the question does not give it
away or point at "the passage", nothing like it was asked before, and the deployed retriever finds the evidence again
for the question among its first k passages (round-trip consistency: Alberti et al. 2019, arXiv 1906.05416).
A misleading question is kept when those passages hold its chunk and the teacher, who sees them all, finds no answer.
What is kept is on disk after every chunk, so a run can be stopped anywhere and goes on from there.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from indexer.records import Chunk
from indexer.retrieval import Retriever
from indexer.store import Snapshot
from indexer.words import STOP_WORDS
from tuner.embedder_rows import Library, holds
from tuner.extraction import Draft
from tuner.neardup import SIMILAR

# A chunk of fewer words is a heading or the end of a table.
LEAST_WORDS = 12
PER_CHUNK = 3
# As many to every three answerable ones as in the questions that the default adapter learned most from.
MISLEADING_PER_CHUNK = 2
_POINTING = re.compile(
    r"\b(this|the|above|following|given) (passage|text|document|paragraph|excerpt|section|sentence|article|table)\b"
    r"|\baccording to\b|\bmentioned\b",
    re.IGNORECASE,
)

UNREADABLE = "the teacher's reply was not what it was asked for"

# (title, text) of a chunk -> what may be asked of it.
Teacher = Callable[[str, str], Sequence[Draft]]
# (question, passages) -> whether those hold an answer.
Judge = Callable[[str, Sequence[str]], bool]


class Unreadable(Exception):
    """A teacher's reply that holds no drafts; the chunk is passed over."""


@dataclass(frozen=True, slots=True)
class Request:
    """How many pairs to make, the k passages that the evidence must be among, and the seed of the chunks' order."""

    count: int = 100
    k: int = 4
    seed: int = 0
    resume: bool = False


@dataclass(slots=True)
class Made:
    """What came of it: pairs kept (all runs together), chunks read, drafts dropped by reason, and why it ended."""

    kept: int
    chunks: int
    dropped: Counter[str]
    ended: str


def make_pairs(
    retriever: Retriever,
    teacher: Teacher,
    target: Path,
    request: Request,
    *,
    judge: Judge | None = None,
    report: Callable[[int, int], None] = lambda done, of: None,
    cancel: threading.Event | None = None,
) -> Made:
    """Append pairs to `target` until there are `count` of them or no chunk is left.

    Misleading drafts are kept only where a `judge` says that what is found for them does not answer them.
    Raises TandemError (conflict) when `target` exists and the request does not resume it, and what the teacher raises;
    everything kept until then is in the file.
    """
    if request.count < 1:
        raise TandemError(f"--count is {request.count}.", expected="At least 1.", do="Correct it.")
    stop = cancel or threading.Event()
    progress = _Progress(target, request.resume)
    made = Made(len(progress.questions), len(progress.done), progress.dropped, "")
    with retriever.store.read() as snapshot:
        retriever.check(snapshot)
        library = Library(snapshot)
        for path, title, chunk in _chunks(library, snapshot, request.seed):
            report(made.kept, request.count)
            if stop.is_set() or made.kept >= request.count:
                made.ended = "stopped" if stop.is_set() else "all asked for"
                return made
            if chunk.id in progress.done:
                continue
            lines, dropped = _Asking(retriever, teacher, judge, request.k).ask(path, title, chunk, progress.questions)
            lines = lines[: request.count - made.kept]
            progress.write(chunk.id, lines, dropped)
            made.kept, made.chunks = len(progress.questions), made.chunks + 1
            made.dropped.update(dropped)
    report(made.kept, request.count)
    made.ended = "all asked for" if made.kept >= request.count else "no chunk left"
    return made


class _Progress:
    """The pairs file and, beside it, which chunks it is the result of; a chunk's pairs count once it is noted."""

    def __init__(self, target: Path, resume: bool) -> None:
        self._target = target
        self._notes = target.with_name(f"{target.name}.progress")
        self.done: set[str] = set()
        self.dropped: Counter[str] = Counter()
        self.questions: list[str] = []
        if target.exists() and not resume:
            raise TandemError(
                f"There is a file {target} already.",
                expected="A new file, or --resume to go on with that one.",
                do="Name another file, or add --resume.",
                code="conflict",
            )
        if resume and target.exists():
            self._read()
        target.parent.mkdir(parents=True, exist_ok=True)

    def _read(self) -> None:
        for note in _whole_lines(self._notes):
            self.done.add(str(note["chunk"]))
            self.dropped.update({str(key): int(value) for key, value in dict(note["dropped"]).items()})
        # Pairs of a chunk that was not noted were cut off, and its questions are made again.
        kept = [line for line in _whole_lines(self._target) if line.get("chunk") in self.done]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        fresh = self._target.with_name(f".{self._target.name}.tmp")
        fresh.write_text(text, "utf-8")
        fresh.replace(self._target)
        self.questions = [str(line["question"]) for line in kept]

    def write(self, chunk: str, lines: Sequence[dict[str, object]], dropped: Counter[str]) -> None:
        for path, values in ((self._target, lines), (self._notes, [{"chunk": chunk, "dropped": dict(dropped)}])):
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        self.done.add(chunk)
        self.questions += [str(line["question"]) for line in lines]


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file whose last line may be cut off."""
    for line in path.read_text("utf-8").split("\n") if path.exists() else ():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _chunks(library: Library, snapshot: Snapshot, seed: int) -> Iterator[tuple[str, str, Chunk]]:
    """(path, title, chunk) in an order that the seed decides: one chunk of every document, then a second, ..."""
    rng = random.Random(seed)
    decks = [rng.sample(rows, len(rows)) for _, rows in sorted(library.rows.items())]
    rng.shuffle(decks)
    while decks:
        for deck in decks:
            row = deck.pop()
            chunk, path, title, _ = snapshot.passages([row])[row]
            if len(chunk.text.split()) >= LEAST_WORDS:
                yield path, title, chunk
        decks = [deck for deck in decks if deck]


@dataclass(frozen=True, slots=True)
class _Asking:
    """Who proposes and who checks."""

    retriever: Retriever
    teacher: Teacher
    judge: Judge | None
    k: int

    def ask(
        self, path: str, title: str, chunk: Chunk, asked: Sequence[str]
    ) -> tuple[list[dict[str, object]], Counter[str]]:
        """The pairs of one chunk as lines of the file, and why the other drafts were dropped."""
        dropped: Counter[str] = Counter()
        try:
            proposed = self.teacher(chunk.context or title, chunk.text)
        except Unreadable:
            return [], Counter({UNREADABLE: 1})
        if not proposed:
            dropped["the teacher found nothing to ask"] += 1
        lines: list[dict[str, object]] = []
        seen = list(asked)
        room = {False: PER_CHUNK, True: MISLEADING_PER_CHUNK}
        for draft in proposed:
            reason = "" if room[draft.misleading] else "over the number of pairs for one chunk"
            reason = reason or refuse(draft, chunk, seen) or self._unfit(draft, chunk)
            if reason:
                dropped[reason] += 1
                continue
            room[draft.misleading] -= 1
            seen.append(draft.question)
            lines.append({"id": f"{chunk.id}-{len(lines) + 1}", **_fields(draft, path, chunk)})
        return lines, dropped

    def _unfit(self, draft: Draft, chunk: Chunk) -> str:
        """Why what the retriever finds speaks against a draft; empty when nothing does.

        Chunks overlap, so any passage of the document that holds the evidence will do.
        """
        passages = self.retriever.retrieve(draft.question, self.k).passages
        if not any(
            found.chunk.id == chunk.id
            or (draft.evidence and found.document == chunk.document and draft.evidence in found.chunk.text)
            for found in passages
        ):
            return f"the retriever does not find its chunk among {self.k} passages"
        if not draft.misleading:
            return ""
        if self.judge is None:
            return "misleading questions were not asked for"
        try:
            answered = self.judge(draft.question, [found.chunk.text for found in passages])
        except Unreadable:
            return UNREADABLE
        return "a misleading question that the passages answer" if answered else ""


def _fields(draft: Draft, path: str, chunk: Chunk) -> dict[str, object]:
    fields: dict[str, object] = {"question": draft.question}
    if draft.misleading:
        return {**fields, "answers": [], "document": path, "kind": "misleading", "chunk": chunk.id}
    start = chunk.start + chunk.text.index(draft.evidence)
    return {
        **fields,
        "answers": [draft.answer],
        "document": path,
        "kind": "answerable",
        "evidence": draft.evidence,
        "start": start,
        "end": start + len(draft.evidence),
        "chunk": chunk.id,
    }


def refuse(draft: Draft, chunk: Chunk, asked: Sequence[str]) -> str:
    """Why a draft cannot be kept, whatever the retriever finds; empty when it can."""
    question = draft.question
    words = re.findall(r"\w+", question.casefold())
    if not question.endswith("?") or not 4 <= len(words) <= 40:
        return "not one question of 4 to 40 words"
    if _POINTING.search(question):
        return "the question points at the passage"
    if unproven := "" if draft.misleading else _unproven(draft, chunk):
        return unproven
    telling = {word for word in words if word not in STOP_WORDS}
    if not telling & set(re.findall(r"\w+", chunk.embedded_text.casefold())):
        return "the question shares no word with the chunk"
    if any(_alike(set(words), other) for other in asked):
        return "nearly the same was asked before"
    return ""


def _unproven(draft: Draft, chunk: Chunk) -> str:
    """Why the evidence does not show the answer of a draft; empty when it does."""
    if not draft.evidence.strip() or draft.evidence not in chunk.text:
        return "the evidence is not in the chunk word for word"
    if not draft.answer.strip() or not holds(draft.evidence, [draft.answer]):
        return "the evidence does not hold the answer"
    return "the question gives its answer away" if holds(draft.question, [draft.answer]) else ""


def _alike(words: set[str], other: str) -> bool:
    others = set(re.findall(r"\w+", other.casefold()))
    return len(words & others) >= SIMILAR * len(words | others)

"""What is wrong with pairs files, every problem with its line, before anything is tuned or judged on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import TandemError
from indexer.store import Snapshot
from tuner.embedder_rows import holds
from tuner.neardup import near_duplicates
from tuner.pairs import Instruction, Line, Pair, read_lines


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one line."""

    path: Path
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


@dataclass(frozen=True, slots=True)
class _Placed:
    path: Path
    line: Line
    item: Pair | Instruction

    def problem(self, what: str) -> Problem:
        return Problem(self.path, self.line.number, what)

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line.number}"


def check_files(paths: Sequence[Path], snapshot: Snapshot | None) -> tuple[list[Problem], int]:
    """The problems of these files, which are the parts of one split, in their order, and how many lines are right.

    With a snapshot, answers are looked for in the documents of the index. Raises TandemError for a file that is none.
    """
    problems: list[Problem] = []
    placed: list[_Placed] = []
    for path in paths:
        for line in read_lines(path):
            if isinstance(line.item, TandemError):
                problems.append(Problem(path, line.number, _short(line.item, path, line.number)))
            else:
                placed.append(_Placed(path, line, line.item))
    problems += [*_repeated_ids(placed), *_contradictions(placed), *_leaks(placed), *_near(placed)]
    if snapshot is not None:
        problems += _against_index(placed, snapshot)
    order = {path: place for place, path in enumerate(paths)}
    wrong = {(problem.path, problem.line) for problem in problems}
    problems.sort(key=lambda problem: (order[problem.path], problem.line))
    return problems, sum((item.path, item.line.number) not in wrong for item in placed)


def _short(error: TandemError, path: Path, number: int) -> str:
    return error.happened.removeprefix(f"Line {number} of {path} ").rstrip(".")


def _repeated_ids(placed: Sequence[_Placed]) -> Iterator[Problem]:
    first: dict[str, _Placed] = {}
    for item in placed:
        if not item.line.named:
            continue
        before = first.setdefault(item.item.id, item)
        if before is not item:
            yield item.problem(f"has the id {item.item.id!r} of {before}")


def _contradictions(placed: Sequence[_Placed]) -> Iterator[Problem]:
    for item in placed:
        pair = item.item
        if not isinstance(pair, Pair):
            continue
        if pair.kind == "answerable":
            if not any(answer.strip() for answer in pair.answers):
                yield item.problem("is answerable and has no answer")
            if pair.document is None:
                yield item.problem("is answerable and names no document")
        elif pair.answers:
            yield item.problem(f"is {pair.kind} and has answers")


def _leaks(placed: Sequence[_Placed]) -> Iterator[Problem]:
    """Documents with pairs in two files: what is judged would have been tuned on."""
    first: dict[str, _Placed] = {}
    told: set[tuple[str, Path]] = set()
    for item in placed:
        document = item.item.document if isinstance(item.item, Pair) else None
        if document is None:
            continue
        before = first.setdefault(document, item)
        if before.path != item.path and (document, item.path) not in told:
            told.add((document, item.path))
            yield item.problem(f"is about {document}, as {before} is")


def _near(placed: Sequence[_Placed]) -> Iterator[Problem]:
    """Nearly equal questions about two documents, or in two files."""
    for one, two in near_duplicates([question(item.item) for item in placed]):
        first, second = placed[one], placed[two]
        apart = _document(first.item) != _document(second.item) or first.path != second.path
        if apart or isinstance(second.item, Instruction):
            yield second.problem(f"asks nearly the same as {first}: {question(second.item)[:80]!r}")


def question(item: Pair | Instruction) -> str:
    """What the line asks, for comparing it with others."""
    return item.question if isinstance(item, Pair) else f"{item.instruction} {item.input}".strip()


def _document(item: Pair | Instruction) -> str | None:
    return item.document if isinstance(item, Pair) else None


def _against_index(placed: Sequence[_Placed], snapshot: Snapshot) -> Iterator[Problem]:
    texts: dict[str, str | None] = {}
    for item in placed:
        pair = item.item
        if not isinstance(pair, Pair) or pair.document is None:
            continue
        if pair.document not in texts:
            try:
                texts[pair.document] = snapshot.document(pair.document).text
            except TandemError:
                texts[pair.document] = None
        text = texts[pair.document]
        if text is None:
            yield item.problem(f"is about {pair.document}, which is not indexed")
        elif pair.kind == "answerable" and pair.answers and not holds(text, pair.answers):
            yield item.problem(f"has no answer that stands in {pair.document}: {pair.answers[0][:80]!r}")

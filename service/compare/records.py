"""Answers of the arms as they are kept: one JSON object a line of answers.jsonl, flushed as each question is done.

The file is the checkpoint. A line cut off by a kill is dropped when the file is read; its question is asked again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from service.answer import Answer

ANSWERS_FILE = "answers.jsonl"


@dataclass(frozen=True, slots=True)
class ShownPassage:
    """A passage as an arm saw it; `start` is the character offset of `text` in the document."""

    document: str
    id: str
    chunk: str
    start: int
    title: str
    text: str
    similarity: float


@dataclass(frozen=True, slots=True)
class ShownCitation:
    """Passage `n` (from 1) cited with the quote at [start, end) of its document."""

    n: int
    start: int
    end: int
    quote: str


@dataclass(frozen=True, slots=True)
class Record:
    """What one arm answered to one question. Times in milliseconds, memory in bytes; None: not measured."""

    arm: str
    pair: str
    answer: str
    refused: bool
    refusal_reason: str | None
    relevance: float | None
    generation: int | None
    passages: tuple[ShownPassage, ...]
    citations: tuple[ShownCitation, ...]
    prompt_tokens: int
    completion_tokens: int
    retrieve_ms: float
    first_token_ms: float | None
    total_ms: float
    peak_memory: int | None
    finish_reason: str
    judged: float | None = None


def as_record(arm: str, pair: str, answer: Answer, peak_memory: int | None) -> Record:
    """An answer of the service as a record."""
    return Record(
        arm=arm,
        pair=pair,
        answer=answer.answer,
        refused=answer.refused,
        refusal_reason=answer.refusal_reason,
        relevance=answer.relevance,
        generation=answer.index_generation,
        passages=tuple(
            ShownPassage(
                item.path,
                item.document,
                item.chunk.id,
                item.chunk.start,
                item.chunk.context,
                item.chunk.text,
                round(item.similarity, 5),
            )
            for item in answer.passages
        ),
        citations=tuple(ShownCitation(item.n, item.start, item.end, item.quote) for item in answer.citations),
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        retrieve_ms=round(answer.retrieve_ms, 1),
        first_token_ms=None if answer.first_token_ms is None else round(answer.first_token_ms, 1),
        total_ms=round(answer.total_ms, 1),
        peak_memory=peak_memory,
        finish_reason=answer.finish_reason,
    )


def read_records(path: Path) -> list[Record]:
    """The records of a file, none where there is no file; what a kill cut off is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="ascii", errors="replace").split("\n"):
        try:
            records.append(_record(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            continue
    return records


def _record(value: dict[str, Any]) -> Record:
    known = {item.name for item in fields(Record)}
    record = Record(**{name: item for name, item in value.items() if name in known})
    return replace(
        record,
        passages=tuple(ShownPassage(**item) for item in value["passages"]),
        citations=tuple(ShownCitation(**item) for item in value["citations"]),
    )


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Add the records to the file and have them on disk before this returns."""
    lines = "".join(f"{json.dumps(asdict(record))}\n" for record in records)
    with path.open("ab") as handle:
        if handle.tell() and not _ends_line(path):
            handle.write(b"\n")
        handle.write(lines.encode("ascii"))
        handle.flush()
        os.fsync(handle.fileno())


def _ends_line(path: Path) -> bool:
    with path.open("rb") as handle:
        handle.seek(-1, os.SEEK_END)
        return handle.read(1) == b"\n"


def whole_questions(records: Sequence[Record], arms: Sequence[str]) -> dict[str, dict[str, Record]]:
    """Pair id -> arm -> record, of the questions that every one of the arms has answered."""
    found: dict[str, dict[str, Record]] = {}
    for record in records:
        if record.arm in arms:
            found.setdefault(record.pair, {})[record.arm] = record
    return {pair: answers for pair, answers in found.items() if len(answers) == len(arms)}

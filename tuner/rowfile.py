"""Rows on disk: JSON Lines, one row a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from indexer.errors import TandemError
from tuner.prompt import Source
from tuner.rows import ROW_KINDS, Row, text_row


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows as JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Rows that `write_rows` wrote; a line may be {"text"} alone. Raises TandemError that names the wrong line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TandemError(
            f"The rows file {path} cannot be read: {error}.", expected="JSON Lines in UTF-8.", do="Check the path."
        ) from error
    return [_read_row(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]


def _read_row(line: str, path: Path, number: int) -> Row:
    try:
        value = json.loads(line)
        if "text" in value and "kind" not in value:
            value = asdict(text_row(value["text"]))
        passages = tuple(Source(str(item["title"]), str(item["text"])) for item in value["passages"])
        row = Row(value["kind"], value["question"], passages, value["answer"], tuple(map(str, value["documents"])))
        asked = str(row.question).strip() or row.kind == "text"
        if row.kind not in ROW_KINDS or not asked or not isinstance(row.answer, str) or not row.answer.strip():
            raise ValueError("a kind, a question or an answer is missing")
    except (ValueError, KeyError, TypeError) as error:
        raise TandemError(
            f"Line {number} of {path} is not a row: {error}.",
            expected='{"kind", "question", "passages": [{"title", "text"}], "answer", "documents"}, or {"text"}.',
            do="Make the rows again with `tandem rows`.",
        ) from None
    return row

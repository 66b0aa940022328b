"""Pairs: questions about the documents with their answers, one JSON object a line, and their split by document.

A line is {"id", "question", "answers": [...], "document": path or id | null, "kind"}; `kind` is answerable (the default
where there are answers), absent or misleading. Pairs of one document never fall on both sides of a split: a model
would otherwise be judged on documents that it was tuned on.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from indexer.errors import TandemError

Kind = Literal["answerable", "absent", "misleading"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Pair:
    """A question, the answers any of which is right, and the document that holds them (its path or id)."""

    id: str
    question: str
    answers: tuple[str, ...]
    document: str | None
    kind: Kind


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a .jsonl file, gzipped or not. Raises TandemError that names the line which is wrong."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(GZIP_MAGIC) else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TandemError(
            f"The pairs file {path} cannot be read: {error}.", expected="JSON Lines in UTF-8.", do="Check the path."
        ) from error
    pairs: dict[str, Pair] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            pair = _pair(line, path, number)
            if pair.id in pairs:
                raise _wrong(path, number, f"has the id {pair.id!r} a second time")
            pairs[pair.id] = pair
    return list(pairs.values())


def _pair(line: str, path: Path, number: int) -> Pair:
    try:
        value: Any = json.loads(line)
    except ValueError:
        raise _wrong(path, number, "is not JSON") from None
    if not isinstance(value, dict):
        raise _wrong(path, number, "is not an object")
    question, answers, document = value.get("question"), value.get("answers", []), value.get("document")
    if not isinstance(question, str) or not question.strip():
        raise _wrong(path, number, "has no question")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise _wrong(path, number, "has answers that are not a list of texts")
    if document is not None and not isinstance(document, str):
        raise _wrong(path, number, "has a document that is not a path or an id")
    kind = value.get("kind", "answerable" if answers else "absent")
    if kind not in KINDS:
        raise _wrong(path, number, f"has the kind {kind!r}")
    return Pair(str(value.get("id", number)), question.strip(), tuple(answers), document, cast(Kind, kind))


def _wrong(path: Path, number: int, problem: str) -> TandemError:
    return TandemError(
        f"Line {number} of {path} {problem}.",
        expected='{"id", "question", "answers": [...], "document": path or id, "kind": ' + " | ".join(KINDS) + "}.",
        do="Mend that line.",
    )


def split_by_document(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """The larger part, and about `share` of the documents with all of their pairs; both keep the order.

    Raises TandemError when there are fewer than two documents. Equal documents and seed give an equal split.
    """
    documents = sorted({pair.document for pair in pairs if pair.document is not None})
    if len(documents) < 2:
        raise TandemError(
            f"The pairs are about {len(documents)} of the indexed documents.",
            expected="Pairs about two documents or more: some are tuned on, the others tell whether it helped.",
            do="Add pairs about other documents.",
        )
    random.Random(seed).shuffle(documents)
    held_out = set(documents[: max(1, round(share * len(documents)))])
    return (
        [pair for pair in pairs if pair.document not in held_out],
        [pair for pair in pairs if pair.document in held_out],
    )

"""Pairs: questions about the documents with their answers, one JSON object a line, and their split by document.

A line is {"id", "question", "answers": [...], "document": path or id | null, "kind"}; `kind` is answerable (the default
where there are answers), absent or misleading, which have no answers; the `id` may be left out. Pairs of one document
never fall on both sides of a split: a model would otherwise be judged on documents that it was tuned on. A line may be
an instruction instead, {"id", "instruction", "input", "output"}: a task of another kind, mixed in when a model is tuned
on several at once.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class Instruction:
    """A task of another kind to tune on beside pairs: what to do, on which input ("" for none), and the result."""

    id: str
    instruction: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a pairs file: its number, its text, and what it holds, or the error that says why it holds nothing.

    A line that is not `named` has no id of its own; the one that its item got is unique in its file alone.
    """

    number: int
    text: str
    item: Pair | Instruction | TandemError
    named: bool = True


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a .jsonl file, gzipped or not. Raises TandemError that names the line which is wrong.

    Instructions are wrong here; `read_items` accepts both.
    """
    pairs = []
    for line, item in _items(path):
        if isinstance(item, Instruction):
            raise _wrong(path, line, "is an instruction, not a question")
        pairs.append(item)
    return pairs


def read_items(path: Path) -> list[Pair | Instruction]:
    """The pairs and the instructions of a file, in its order. Raises TandemError that names the line which is wrong."""
    return [item for _, item in _items(path)]


def _items(path: Path) -> Iterator[tuple[int, Pair | Instruction]]:
    seen: set[str] = set()
    for line in read_lines(path):
        if isinstance(line.item, TandemError):
            raise line.item
        if line.item.id in seen:
            raise _wrong(path, line.number, f"has the id {line.item.id!r} a second time")
        seen.add(line.item.id)
        yield line.number, line.item


def read_lines(path: Path) -> list[Line]:
    """The lines of a pairs file that are not blank, wrong ones included. Raises TandemError for no text file."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(GZIP_MAGIC) else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TandemError(
            f"The pairs file {path} cannot be read: {error}.", expected="JSON Lines in UTF-8.", do="Check the path."
        ) from error
    numbered = enumerate(text.split("\n"), start=1)
    lines = [Line(number, line, _item(line, path, number)) for number, line in numbered if line.strip()]
    taken = {line.item.id for line in lines if not isinstance(line.item, TandemError)}
    return [_with_id(line, taken) for line in lines]


def _with_id(line: Line, taken: Collection[str]) -> Line:
    if isinstance(line.item, TandemError) or line.item.id:
        return line
    name = str(line.number)
    while name in taken:
        name = f"line {name}"
    return replace(line, item=replace(line.item, id=name), named=False)


def _item(line: str, path: Path, number: int) -> Pair | Instruction | TandemError:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return _wrong(path, number, "is not JSON")
    if not isinstance(value, dict):
        return _wrong(path, number, "is not an object")
    try:
        return _instruction(value, path, number) if "instruction" in value else _pair(value, path, number)
    except TandemError as error:
        return error


def _instruction(value: dict[str, Any], path: Path, number: int) -> Instruction:
    texts = [value.get(name, "") for name in ("instruction", "input", "output")]
    if not all(isinstance(text, str) for text in texts):
        raise _wrong(path, number, "has an instruction, an input or an output that is not a text")
    for name, text in zip(("instruction", "output"), (texts[0], texts[2]), strict=True):
        if not text.strip():
            raise _wrong(path, number, f"has no {name}")
    return Instruction(_id(value), *(text.strip() for text in texts))


def _pair(value: dict[str, Any], path: Path, number: int) -> Pair:
    question, answers, document = value.get("question"), value.get("answers", []), value.get("document")
    if not isinstance(question, str) or not question.strip():
        raise _wrong(path, number, "has no question")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise _wrong(path, number, "has answers that are not a list of texts")
    if document is not None and not isinstance(document, str):
        raise _wrong(path, number, "has a document that is not a path or an id")
    if "kind" not in value and not any(answer.strip() for answer in answers):
        # A pair without answers teaches to refuse, so it must not come about by a slip.
        misspelt = '; its field "answer" must be called "answers" and be a list' if "answer" in value else ""
        do = 'Give the line its answers, or the kind "absent" or "misleading" if a refusal is right.'
        raise _wrong(path, number, f"has neither answers nor a kind{misspelt}", do)
    kind = value.get("kind", "answerable")
    if kind not in KINDS:
        raise _wrong(path, number, f"has the kind {kind!r}")
    return Pair(_id(value), question.strip(), tuple(answers), document, cast(Kind, kind))


def _id(value: dict[str, Any]) -> str:
    """The id that a line gives, "" for none."""
    name = value.get("id")
    return "" if name is None else str(name)


def _wrong(path: Path, number: int, problem: str, do: str = "Mend that line.") -> TandemError:
    return TandemError(
        f"Line {number} of {path} {problem}.",
        expected='{"id", "question", "answers": [...], "document": path or id, "kind": '
        + " | ".join(KINDS)
        + '}, or {"id", "instruction", "input", "output"}.',
        do=do,
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

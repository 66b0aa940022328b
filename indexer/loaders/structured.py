"""JSON as indented lines; JSON Lines as one document a record."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from indexer.errors import TandemError
from indexer.loaders.encoding import clean, decode_raw
from indexer.loaders.parsed import Parsed, damaged, one_line, stem

_LINES = re.compile("\r\n?|\n")
_TITLES = ("title", "name", "headline", "subject")


def parse_json(data: bytes, name: str) -> list[Parsed]:
    """Bytes of a .json file -> one document: the same value, two spaces of indent, letters unescaped."""
    value = _load(decode_raw(data, name), name)
    title = next((str(value[key]) for key in _TITLES if isinstance(value, dict) and _scalar(value.get(key))), "")
    text = clean(json.dumps(value, indent=2, ensure_ascii=False))
    return [Parsed(one_line(clean(title)) or stem(name), "json", text)]


def parse_jsonl(data: bytes, name: str) -> Iterator[Parsed]:
    """Bytes of a .jsonl file -> one document for each record.

    `_id` or `id` names the record (its line number when it has neither), `title` and `text` are what they say, other
    scalar fields become metadata. A record without `text` is written as "field: value" lines. TandemError names the
    line that is not a JSON object, and an id that occurs twice.
    """
    seen: dict[str, int] = {}
    for number, line in enumerate(_LINES.split(decode_raw(data, name)), 1):
        if not line.strip():
            continue
        value = _load(line, f"{name}, line {number},")
        if not isinstance(value, dict):
            raise damaged(f"{name}, line {number},", "it is not a JSON object")
        parsed = _record(value, number, stem(name))
        if not parsed.text.strip():
            continue
        assert parsed.record is not None
        if parsed.record in seen:
            raise TandemError(
                f"{name} uses the id {parsed.record!r} on lines {seen[parsed.record]} and {number}.",
                expected="An id that names one record.",
                do="Rename one of them.",
            )
        seen[parsed.record] = number
        yield parsed


def _load(text: str, name: str) -> Any:
    try:
        # Control characters may stand in strings, as many programs write them.
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise damaged(name, f"it is not JSON ({error})") from error


def _record(value: dict[str, Any], number: int, fallback: str) -> Parsed:
    record = next((str(value[key]) for key in ("_id", "id") if _scalar(value.get(key))), str(number))
    title = value.get("title") if isinstance(value.get("title"), str) else None
    text = value.get("text")
    others = {key: item for key, item in value.items() if key not in ("_id", "id", "title", "text")}
    if not isinstance(text, str):
        text = "\n".join(f"{key}: {_written(item)}" for key, item in others.items() if item not in (None, "", [], {}))
        others = {}
    metadata = {one_line(clean(key)): one_line(clean(_written(item))) for key, item in others.items() if _scalar(item)}
    text = clean(text) if text.strip() else clean(title or "")
    heading = one_line(clean(title or "")) or f"{fallback} {one_line(clean(record))}"
    return Parsed(heading, "jsonl", text, metadata=metadata, record=one_line(clean(record)))


def _scalar(item: object) -> bool:
    return isinstance(item, (str, int, float)) and item != ""


def _written(item: object) -> str:
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)

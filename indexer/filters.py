"""Which documents a question may be answered from: decided before anything is ranked, in every channel.

A filter is a list of conditions that must all hold. `path` is a pattern in which `*` stands for any characters,
`?` for one and `[abc]` for one of those (SQLite's GLOB, so `/` is a character like any other); `corpus` is a folder's
full path or its last name; `group` is one of the groups in a document's metadata, where several are separated by
commas; every other name is a metadata field whose value must be equal. A document without the field is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from indexer.errors import TandemError
from indexer.readers import Reader

MAX_CONDITIONS = 32
MAX_VALUES = 100
MAX_CHARACTERS = 1000

_CORPUS = "(d.corpus = {value} OR substr(d.corpus, -length({value}) - 1) = '/' || {value})"
_METADATA = "EXISTS (SELECT 1 FROM json_each(d.metadata) m WHERE m.key = {name} AND m.value = {value})"
_GROUP = (
    "EXISTS (SELECT 1 FROM json_each(d.metadata) m WHERE m.key = 'group' AND"
    " instr(',' || replace(m.value, ', ', ',') || ',', ',' || {value} || ',') > 0)"
)


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions: a name and the values of which a document must have one. No condition lets every document pass.

    `reader` is for whom it is; None may read every document.
    """

    conditions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    reader: Reader | None = None

    def __bool__(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.conditions) or self.reader is not None

    def sql(self) -> tuple[str, dict[str, str]]:
        """A condition on a row `d` of documents, and the values of its parameters."""
        values: dict[str, str] = {}

        def mark(value: str) -> str:
            values[f"filter{len(values)}"] = value
            return f":filter{len(values) - 1}"

        parts = [" OR ".join(_test(name, value, mark) for value in wanted) or "0" for name, wanted in self.conditions]
        if self.reader is not None:
            parts.append(self.reader.sql(mark))
        return " AND ".join(f"({part})" for part in parts) or "1", values


def _test(name: str, value: str, mark: Callable[[str], str]) -> str:
    if name == "path":
        return f"d.path GLOB {mark(value)}"
    if name == "corpus":
        return _CORPUS.format(value=mark(value.rstrip("/") or "/"))
    if name == "group":
        # A comma in the value would match two neighbouring groups.
        return "0" if "," in value else _GROUP.format(value=mark(value.strip()))
    return _METADATA.format(name=mark(name), value=mark(value))


def read_filter(conditions: Mapping[str, str | Sequence[str]]) -> Filter:
    """A filter from {"path": "manual/*", "group": ["staff", "sales"]}. An empty list of values matches nothing.

    Raises TandemError for an empty name, and for more or longer conditions than the limits above.
    """
    read = []
    for name, given in conditions.items():
        values = (given,) if isinstance(given, str) else tuple(given)
        if not name.strip() or len(values) > MAX_VALUES or any(len(text) > MAX_CHARACTERS for text in (name, *values)):
            raise _unusable(name)
        read.append((name.strip(), values))
    if len(read) > MAX_CONDITIONS:
        raise _unusable(f"with {len(read)} conditions")
    return Filter(tuple(read))


def parse_filter(parts: Iterable[str]) -> Filter:
    """A filter from "name=value" texts; a name given twice takes either value. Raises TandemError like read_filter."""
    conditions: dict[str, list[str]] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            raise _unusable(part)
        conditions.setdefault(name.strip(), []).append(value)
    return read_filter(conditions)


def _unusable(what: str) -> TandemError:
    return TandemError(
        f"The filter {what[:80]!r} cannot be used.",
        expected=f"name=value, at most {MAX_CONDITIONS} names of {MAX_VALUES} values of {MAX_CHARACTERS} characters.",
        do="Use path, corpus, group or a metadata field, such as path=manual/* or language=en.",
    )

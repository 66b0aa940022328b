"""Who may read which documents: decided in SQL, before anything is ranked, counted or shown.

A document asks for groups in up to three ways, and a reader must satisfy every one that applies, so that one more rule
never opens anything:

- a rule: a pattern for paths, and the groups of which a reader needs one;
- an upload's groups, kept with the SHA-256 of its content: replacing a file with a public one opens the new content
  and not the old one, which answers until the next generation is published;
- the metadata field `group` of a record, with several groups separated by commas.

Nothing of this is stored with chunks or vectors, so it takes effect without reading or embedding anything again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Rules = Sequence[tuple[str, Sequence[str]]]
Mark = Callable[[str], str]

# The last part of the corpus folder: what is left of it without everything up to its last slash.
_CORPUS_NAME = "replace(d.corpus, rtrim(d.corpus, replace(d.corpus, '/', '')), '')"
# The partial index `documents_with_group` of schema.sql is for exactly this expression.
_HAS_GROUP = "coalesce(json_extract({0}metadata, '$.group'), '') != ''"
_UPLOADS = """NOT EXISTS (SELECT 1 FROM files f JOIN file_groups u ON u.path = f.path AND u.sha256 = f.sha256
    WHERE f.row = d.file AND NOT EXISTS (SELECT 1 FROM json_each(u.groups) g WHERE g.value IN ({0})))"""
_IN_METADATA = "instr(',' || replace(json_extract(d.metadata, '$.group'), ', ', ',') || ',', ',' || {0} || ',') > 0"


@dataclass(frozen=True, slots=True)
class Reader:
    """Someone with these groups, under these rules. Who may read everything has no Reader (None)."""

    groups: tuple[str, ...] = ()
    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def sql(self, mark: Mark) -> str:
        """A condition on a row `d` of documents; `mark` turns a value into the name of a parameter."""
        marks = [mark(group) for group in self.groups]
        own = " OR ".join(_IN_METADATA.format(name) for name in marks) or "0"
        parts = [f"NOT {rule_sql(pattern, mark)}" for pattern in self._closed()]
        parts += [_UPLOADS.format(", ".join(marks)), f"(NOT {_HAS_GROUP.format('d.')} OR {own})"]
        return "(" + " AND ".join(parts) + ")"

    def is_limited(self, connection: sqlite3.Connection) -> bool:
        """Whether any document could be closed to this reader; without groups anywhere this costs nothing."""
        found = connection.execute(
            "SELECT EXISTS (SELECT 1 FROM file_groups)"
            f" OR EXISTS (SELECT 1 FROM documents WHERE {_HAS_GROUP.format('')})"
        ).fetchone()
        return bool(self._closed() or found[0])

    def _closed(self) -> list[str]:
        return [pattern for pattern, groups in self.rules if not set(groups) & set(self.groups)]


def rule_sql(pattern: str, mark: Mark) -> str:
    """A condition on a row `d` of documents: the pattern names it, a folder that it is in, or the file of its record.

    A pattern is GLOB's (`*` stands for any characters, `/` too) and is held against the path in the corpus, that path
    after the corpus folder's name, and, where it begins with a slash, the full path.
    """
    trimmed = pattern.rstrip("/")
    subjects = (
        ["d.corpus || '/' || d.path"] if pattern.startswith("/") else ["d.path", f"{_CORPUS_NAME} || '/' || d.path"]
    )
    names = [mark(trimmed + tail) for tail in ("", "/*", "#*")]
    return "(" + " OR ".join(f"{subject} GLOB {name}" for subject in subjects for name in names) + ")"


def required_groups(connection: sqlite3.Connection, rows: Iterable[int], rules: Rules) -> dict[int, list[list[str]]]:
    """What each of these document rows asks of a reader: one group of each list. Rows that ask nothing are left out."""
    found: dict[int, list[list[str]]] = {}
    wanted = set(rows)

    def note(row: int, groups: Sequence[str]) -> None:
        if row in wanted:
            found.setdefault(row, []).append(list(groups))

    for pattern, groups in rules:
        values: dict[str, str] = {}

        def mark(value: str, values: dict[str, str] = values) -> str:
            values[f"v{len(values)}"] = value
            return f":v{len(values) - 1}"

        for row in connection.execute(f"SELECT d.row FROM documents d WHERE {rule_sql(pattern, mark)}", values):
            note(row[0], groups)
    for row in connection.execute(
        "SELECT d.row, u.groups FROM documents d JOIN files f ON f.row = d.file"
        " JOIN file_groups u ON u.path = f.path AND u.sha256 = f.sha256"
    ):
        note(row[0], json.loads(row[1]))
    for row in connection.execute(
        f"SELECT row, json_extract(metadata, '$.group') FROM documents WHERE {_HAS_GROUP.format('')}"
    ):
        note(row[0], [part.strip() for part in str(row[1]).split(",")])
    return found

"""CSV and TSV: one line a row, every value with its column's name."""

from __future__ import annotations

import csv
import io

from indexer.loaders.encoding import decode
from indexer.loaders.parsed import Parsed, damaged, stem
from indexer.loaders.tables import row_lines

_SAMPLE_CHARACTERS = 64 * 1024
_DELIMITERS = ",;\t|"


def parse(data: bytes, name: str) -> list[Parsed]:
    """Bytes of a .csv or .tsv file -> one document; the delimiter is found in the file, not taken from the suffix."""
    text = decode(data, name)
    csv.field_size_limit(len(text) + 1)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=_delimiter(text), strict=False))
    except csv.Error as error:
        raise damaged(name, f"its rows cannot be told apart ({error})") from error
    columns = max((len(row) for row in rows), default=0)
    metadata = {"rows": str(len(rows)), "columns": str(columns)}
    return [Parsed(stem(name), "csv", row_lines(rows), metadata=metadata)]


def _delimiter(text: str) -> str:
    """The delimiter that cuts most of the first rows into the same number of columns, more than one.

    csv.Sniffer guesses from letters and fails on ordinary files; reading the sample with each candidate does not.
    """
    sample = text[:_SAMPLE_CHARACTERS]

    def agreement(delimiter: str) -> tuple[float, int]:
        widths = [len(row) for row in csv.reader(io.StringIO(sample), delimiter=delimiter) if row][:50]
        usual = max(set(widths), key=widths.count, default=1)
        return (widths.count(usual) / len(widths), usual) if usual > 1 else (0.0, 0)

    return max(_DELIMITERS, key=agreement)

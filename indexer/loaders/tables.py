"""Rows of cells to lines that stand alone: a chunk cut anywhere still says which column each value belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_LONG_ROW = 300  # characters; a longer row is written as one line a column, like a record


def row_lines(rows: Iterable[Sequence[str]]) -> str:
    """Rows -> text. Below a header: "Name: Ann; Age: 41" for each row. Elsewhere: cells joined by " | ".

    A header is the first row of two or more cells that are all filled, all different and none of them a number, and
    that is followed by another such long row. Rows of one cell before it, or before its repetition, are captions.
    """
    cells = _trimmed([[" ".join(cell.split()) for cell in row] for row in rows])
    lines: list[str] = []
    header: Sequence[str] = ()
    for index, row in enumerate(cells):
        following = cells[index + 1] if index + 1 < len(cells) else []
        if row == header:
            continue
        if header and not (_filled(row) == 1 and following == header):
            lines.append(_record(header, row))
        elif not header and _is_header(row) and _filled(following) > 1:
            header = row
        else:
            lines.append(" | ".join(cell for cell in row if cell))
    return "\n".join(lines)


def _trimmed(rows: Sequence[list[str]]) -> list[list[str]]:
    """Without empty rows, empty cells at row ends, and the empty columns to the left of all rows."""
    kept = [row[: max(index for index, cell in enumerate(row) if cell) + 1] for row in rows if any(row)]
    margin = min((next(index for index, cell in enumerate(row) if cell) for row in kept), default=0)
    return [row[margin:] for row in kept]


def _filled(row: Sequence[str]) -> int:
    return sum(bool(cell) for cell in row)


def _is_header(row: Sequence[str]) -> bool:
    return len(row) >= 2 and _filled(row) == len(row) == len(set(row)) and not any(map(_is_number, row))


def _is_number(cell: str) -> bool:
    return not any(character.isalpha() for character in cell) and any(character.isdigit() for character in cell)


def _record(header: Sequence[str], row: Sequence[str]) -> str:
    names = [*header, *[""] * (len(row) - len(header))]
    pairs = [f"{name}: {cell}" if name else cell for name, cell in zip(names, row, strict=False) if cell]
    line = "; ".join(pairs)
    return line if len(line) <= _LONG_ROW else "\n".join(pairs) + "\n"

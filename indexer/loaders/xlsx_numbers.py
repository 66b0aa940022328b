"""Stored numbers of a spreadsheet as its reader sees them: dates, times and percentages.

A date is stored as a day count; only the cell's number format says that it is one (ECMA-376 part 1, 18.8.30).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from xml.etree.ElementTree import Element

from indexer.loaders.archive import Package

_S = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_BUILT_IN = {9: "0%", 10: "0.00%", **dict.fromkeys(range(14, 18), "yyyy-mm-dd"), **dict.fromkeys(range(18, 22), "h:mm")}
_BUILT_IN |= {22: "yyyy-mm-dd h:mm", **dict.fromkeys(range(45, 48), "h:mm")}
_NOT_CODES = re.compile(r'"[^"]*"|\\.|\[(?!h|m|s)[^\]]*\]|_.|\*.', re.IGNORECASE)  # literals, colours, padding
_EPOCH_1900 = datetime(1899, 12, 30)  # day 60 is the 29 February 1900 that never was, hence not 31 December
_EPOCH_1904 = datetime(1904, 1, 1)


@dataclass(frozen=True, slots=True)
class Formats:
    """The number format code of each cell style, and the date from which the workbook counts days."""

    codes: tuple[str, ...]
    epoch: datetime

    def shown(self, value: str, style: str) -> str:
        """The stored number `value` of a cell of this style, as text."""
        try:
            number = float(value)
        except ValueError:
            return value
        index = int(style) if style.isdigit() else 0
        code = _NOT_CODES.sub("", self.codes[index] if index < len(self.codes) else "").lower()
        if "%" in code:
            return f"{round(number * 100, 6):g}%"
        if re.search(r"[ydhs]", code) and not re.search(r"[0#?]", code.replace("ss.0", "")):
            return self._date(number, code) or _plain(number, value)
        return _plain(number, value)

    def _date(self, number: float, code: str) -> str:
        has_day, has_time = bool(re.search(r"[yd]", code)), bool(re.search(r"[hs]", code))
        try:
            moment = self.epoch + timedelta(seconds=round(number * 86_400))
        except OverflowError:
            return ""
        if not has_day:
            seconds = round(number * 86_400)  # a duration may pass 24 hours
            return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return moment.strftime("%Y-%m-%d %H:%M" if has_time else "%Y-%m-%d")


def _plain(number: float, stored: str) -> str:
    """Whole numbers without a fraction; others to 15 digits, which is all the format promises to keep."""
    if number.is_integer() and abs(number) < 1e15:
        return str(int(number))
    shortened = f"{number:.15g}"
    return shortened if "e" not in shortened else stored


def read_formats(package: Package, part: str, workbook: Element) -> Formats:
    """The workbook's cell styles; without a style part every number is plain."""
    properties = workbook.find(f"{_S}workbookPr")
    since_1904 = properties is not None and properties.get("date1904") in ("1", "true")
    epoch = _EPOCH_1904 if since_1904 else _EPOCH_1900
    if part not in package.names:
        return Formats((), epoch)
    styles = package.xml(part)
    custom = {node.get("numFmtId", ""): node.get("formatCode", "") for node in styles.iter(f"{_S}numFmt")}
    cells = styles.find(f"{_S}cellXfs")
    ids = [node.get("numFmtId", "0") for node in cells] if cells is not None else []
    codes = (custom.get(one) or _BUILT_IN.get(int(one) if one.isdigit() else 0, "") for one in ids)
    return Formats(tuple(codes), epoch)

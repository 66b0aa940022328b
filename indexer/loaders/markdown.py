"""Markdown: the text as it stands, with its title and where its headings are."""

from __future__ import annotations

import re

from indexer.loaders.encoding import decode
from indexer.loaders.parsed import Parsed, one_line, stem
from indexer.records import Heading

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
_NOT_A_PARAGRAPH = re.compile(r" {4}|\t| {0,3}(?:[-*+>|]|\d{1,9}[.)])(?:\s|$)")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"^([A-Za-z][\w-]*):[ \t]*(\S.*)$", re.MULTILINE)


def parse(data: bytes, name: str) -> list[Parsed]:
    """Bytes of a Markdown file -> one document whose text is the file's, verbatim but for newlines."""
    text = decode(data, name)
    front = _FRONT_MATTER.match(text)
    metadata = {key.lower(): one_line(value.strip("\"'")) for key, value in _FIELD.findall(front[1])} if front else {}
    headings = markdown_headings(text, start=front.end() if front else 0)
    title = metadata.pop("title", "") or (headings[0].title if headings else "") or stem(name)
    return [Parsed(one_line(title), "markdown", text, headings=headings, metadata=metadata)]


def markdown_headings(text: str, start: int = 0) -> tuple[Heading, ...]:
    """ATX and setext headings of `text[start:]` outside code fences (CommonMark 0.31, sections 4.2, 4.3 and 4.5).

    A setext heading starts at its first text line.
    """
    headings: list[Heading] = []
    fence = ""
    paragraph: list[tuple[int, str]] = []  # the lines of an open paragraph, which a setext underline would close
    offset = start
    for line in text[start:].split("\n"):
        at, offset = offset, offset + len(line) + 1
        mark = _FENCE.match(line)
        if fence or (mark and not (mark[1][0] == "`" and "`" in mark[2])):
            fence = _next_fence(fence, mark)
            paragraph = []
        elif atx := _ATX.match(line):
            _add(headings, len(atx[1]), atx[2] or "", at)
            paragraph = []
        elif paragraph and (underline := _SETEXT.match(line)):
            title = " ".join(part.strip() for _, part in paragraph)
            _add(headings, 1 if underline[1][0] == "=" else 2, title, paragraph[0][0])
            paragraph = []
        elif line.strip() and (paragraph or not _NOT_A_PARAGRAPH.match(line)):
            paragraph = [*paragraph, (at, line)] if not _NOT_A_PARAGRAPH.match(line) else []
        else:
            paragraph = []
    return tuple(headings)


def _next_fence(fence: str, mark: re.Match[str] | None) -> str:
    """The fence that is open after this line: a fence closes on a bare one of its kind, at least as long."""
    if not fence:
        return mark[1] if mark else ""
    closes = mark and mark[1].startswith(fence) and not mark[2].strip()
    return "" if closes else fence


def _add(headings: list[Heading], level: int, markup: str, start: int) -> None:
    title = one_line(_LINK.sub(r"\1", markup).replace("**", "").replace("`", ""))
    if title:
        headings.append(Heading(level, title, start))

"""Plain text and reStructuredText: the text as it stands; headings where reStructuredText underlines them."""

from __future__ import annotations

import re

from indexer.loaders.encoding import decode
from indexer.loaders.parsed import Parsed, one_line, stem
from indexer.records import Heading

_TITLE_CHARACTERS = 80
_ADORNMENT = re.compile(r"([^\w\s])\1+\s*$")


def parse(data: bytes, name: str) -> list[Parsed]:
    """Bytes of a .txt, .log or .rst file -> one document."""
    text = decode(data, name)
    headings = rst_headings(text) if ".rst" in name.lower()[-7:] else ()
    title = headings[0].title if headings else _first_line(text)
    return [Parsed(one_line(title) or stem(name), "text", text, headings=headings)]


def _first_line(text: str) -> str:
    """The first line if it stands alone like a title (short, a blank line after it, no full stop), else ""."""
    first, _, rest = text.lstrip().partition("\n")
    following = rest.split("\n", 1)[0]
    alone = not following.strip() and bool(rest.strip())
    titled = alone and len(first) <= _TITLE_CHARACTERS and not first.rstrip().endswith((".", ",", ";"))
    return first if titled and any(character.isalpha() for character in first) else ""


def rst_headings(text: str) -> tuple[Heading, ...]:
    """Section titles: a line underlined by punctuation at least as long as itself, perhaps overlined too.

    Levels follow the order in which the adornment styles first appear, as reStructuredText defines.
    """
    headings: list[Heading] = []
    styles: list[tuple[str, bool]] = []
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    for index in range(1, len(lines)):
        title, under = lines[index - 1], _ADORNMENT.match(lines[index])
        if not under or not title.strip() or _ADORNMENT.match(title) or len(lines[index].rstrip()) < len(title.strip()):
            continue
        before = lines[index - 2] if index >= 2 else ""
        overlined = before.strip() == lines[index].strip()
        if before.strip() and not overlined or (title[0].isspace() and not overlined):
            continue  # the last line of a paragraph, a table or a code block
        style = (under[1], overlined)
        if style not in styles:
            styles.append(style)
        headings.append(Heading(styles.index(style) + 1, one_line(title), starts[index - 1]))
    return tuple(headings)

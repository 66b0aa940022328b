"""What an answer may hold of links: addresses that a passage has, and none that a client follows by itself.

A client that renders Markdown fetches an image without a click, and what the address holds goes to whoever named it.
So an order in a document could send the question or another passage away. Two rules keep that from happening: an
address must stand in the supporting passage character by character, so that nothing can be written into it; and the
marks that make a link, an image or an element of a text are parted, so that it stays text.
"""

from __future__ import annotations

import re

# What clients take for an address: with a scheme or its two slashes, with "www.", or a host and something behind it.
_ADDRESS = re.compile(
    r"(?<![\w.-])(?:(?:[a-z][a-z0-9+.-]*:)?//|www\.|(?:mailto|javascript|data|tel):|[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}[/?#:])\S+",
    re.IGNORECASE,
)
_CLOSING = ".,;:!?'\"*_`~|<>()[]{}"
# CommonMark 0.31, sections 6.3 and 6.4: an inline link or image has nothing between its brackets.
_LINK = re.compile(r"\](?=\()")
# Elements that load, follow or restyle something. Those of the first group do nothing without an attribute, and a
# manual writes `<source>` for a name.
_ELEMENT = re.compile(
    r"<(?=/?(?:(?:a|area|audio|base|body|button|embed|form|iframe|image|img|input|link|meta|object|picture|source|table"
    r"|td|th|track|video)[\s/]|(?:frame|math|script|style|svg)\b))",
    re.IGNORECASE,
)


def addresses(text: str) -> list[str]:
    """The addresses in the text, without the punctuation around them."""
    return [match.group().rstrip(_CLOSING) for match in _ADDRESS.finditer(text)]


def as_text(text: str) -> str:
    """The text with a space in every mark that would make it more than text: "![a](b)" -> "![a] (b)"."""
    return _ELEMENT.sub("< ", _LINK.sub("] ", text))

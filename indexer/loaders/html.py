"""HTML: the page's main text without its navigation, its tables and headings kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast
from xml.etree.ElementTree import Element

from indexer.loaders.blocks import Writer
from indexer.loaders.encoding import decode_as
from indexer.loaders.hidden import drop_hidden
from indexer.loaders.markup import BOILERPLATE, plain, tag_of, write
from indexer.loaders.parsed import Parsed, damaged, stem

_CHARSET = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]+)|<\?xml[^>]{0,80}?encoding=["']([\w.:-]+)""", re.I
)
_XML_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_SMALL_PAGE = 2_000  # characters; on less text the extraction loses lists, and there is little to lose it among
_LARGE_PAGE = 3_000_000  # characters of markup; the extraction takes seconds for each million
_MAIN_TEXT_SHARE = 0.5  # of the page's visible text; below it the extraction has missed the body, not the menus
_HELD_SHARE = 0.95  # of the extracted text
_PIECES = 50  # the longest runs of extracted text are looked for; they are enough to find their container
_CONTAINERS = frozenset("article main section div table tbody tr td center body".split())


def parse(data: bytes, name: str) -> list[Parsed]:
    """Bytes of an HTML page -> one document.

    Only the part of a larger page that trafilatura takes for its main text is read; where that leaves out too much, the
    whole body is, without its navigation.
    """
    declared = _CHARSET.search(data[:4096])
    label = next((group.decode("ascii") for group in declared.groups() if group), None) if declared else None
    text = _XML_DECLARATION.sub("", decode_as(data, label, name), count=1)
    if not text.strip():
        return [Parsed(stem(name), "html", "")]
    tree = html_tree(text, name)
    title, metadata = _title(tree), _metadata(tree)
    writer = _written(tree)
    whole = writer.parsed(title, "html", metadata)
    if len(whole.text) > _SMALL_PAGE and len(text) <= _LARGE_PAGE:
        narrowed = _written(_main_part(tree, text))
        part = narrowed.parsed(title, "html", metadata)
        writer, whole = (narrowed, part) if len(part.text) >= _MAIN_TEXT_SHARE * len(whole.text) else (writer, whole)
    title = title or writer.first_heading() or stem(name)
    return [Parsed(title, "html", whole.text, headings=whole.headings, metadata=whole.metadata)]


def _written(node: Element) -> Writer:
    writer = Writer()
    write(node, writer, boilerplate=False)
    return writer


def html_tree(text: str, name: str) -> Element:
    """HTML text -> tree (lxml's elements, which have the interface of xml.etree's), without what the page hides."""
    from lxml import etree  # type: ignore[import-untyped]
    from lxml import html as lxml_html

    parser = lxml_html.HTMLParser(encoding="utf-8", no_network=True)
    try:
        tree = cast(Element, lxml_html.document_fromstring(text.encode(), parser=parser))
    except (etree.LxmlError, ValueError) as error:
        raise damaged(name, f"it is not HTML ({error})") from error
    # libxml2 leaves out what lies deeper than its limit and reports it only here.
    if any("depth" in entry.message.lower() for entry in parser.error_log):
        raise damaged(name, "its elements are nested too deeply")
    drop_hidden(tree)
    return tree


def _main_part(tree: Element, text: str) -> Element:
    """The smallest part of the page that holds what trafilatura takes for its main text.

    Its own output is not used: it drops headings, the spaces of code and cells that span rows.
    """
    import trafilatura

    found = trafilatura.bare_extraction(text, include_comments=False, favor_recall=True, with_metadata=False)
    pieces = [_squeezed(piece) for piece in found.body.itertext()] if found is not None else []
    longest = sorted((piece for piece in pieces if piece), key=len, reverse=True)[:_PIECES]
    node = next(iter(tree.iterfind("./body")), tree)
    while longest and (inner := _inner(node, longest)) is not None:
        node = inner
    return node


def _inner(node: Element, pieces: Sequence[str]) -> Element | None:
    """The child that holds nearly all of `pieces`, unless a main heading would stay outside it."""
    total = sum(map(len, pieces))
    for child in node:
        if tag_of(child) not in _CONTAINERS:
            continue
        inside = _squeezed("".join(child.itertext()))
        if sum(len(piece) for piece in pieces if piece in inside) >= _HELD_SHARE * total:
            outside = (other for other in node if other is not child and tag_of(other) not in BOILERPLATE)
            titled = any(tag_of(part) in ("h1", "h2") for other in outside for part in other.iter())
            return None if titled else child
    return None


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _title(tree: Element) -> str:
    titles = [plain(node) for node in (*tree.iterfind("./head/title"), *tree.iter("h1"))]
    return next((title for title in titles if title), "")


def _metadata(tree: Element) -> dict[str, str]:
    wanted = {"author": "author", "description": "description", "date": "date", "keywords": "keywords"}
    found = {wanted.get((node.get("name") or "").lower(), ""): node.get("content") or "" for node in tree.iter("meta")}
    found["language"] = tree.get("lang") or ""
    return {key: value for key, value in found.items() if key and value}

"""EPUB: the chapters in reading order (EPUB 3.3: container -> package document -> spine -> XHTML)."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote
from xml.etree.ElementTree import Element

from indexer.errors import TandemError
from indexer.loaders.archive import Package
from indexer.loaders.blocks import Writer
from indexer.loaders.encoding import decode_as
from indexer.loaders.html import html_tree
from indexer.loaders.markup import tag_of, write
from indexer.loaders.parsed import Parsed, damaged, stem


def parse(data: bytes, name: str, budget: int) -> list[Parsed]:
    """Bytes of an .epub file -> one document."""
    package = Package(data, name, budget)
    opf_path = next(
        (
            node.get("full-path", "")
            for node in package.xml("META-INF/container.xml").iter()
            if tag_of(node) == "rootfile"
        ),
        "",
    )
    opf = package.xml(opf_path)
    chapters = _spine(opf, posixpath.dirname(opf_path))
    _refuse_protected(package, chapters)
    writer = Writer()
    for part in chapters:
        if part in package.names:
            text = decode_as(package.read(part), "utf-8", name)
            text = text[text.find("?>") + 2 :] if text.lstrip().startswith("<?xml") else text
            if text.strip():
                write(html_tree(text, name), writer)
    if not chapters:
        raise damaged(name, "its package document lists no chapters")
    known = {key: _first(opf, key) for key in ("title", "creator", "language", "publisher", "date")}
    title = known.pop("title") or writer.first_heading() or stem(name)
    return [writer.parsed(title, "epub", {"author": known.pop("creator"), **known})]


def _spine(opf: Element, folder: str) -> list[str]:
    """Part names in reading order, the table of contents left out."""
    items = {node.get("id", ""): node for node in opf.iter() if tag_of(node) == "item"}
    order = [items.get(node.get("idref", "")) for node in opf.iter() if tag_of(node) == "itemref"]
    return [
        posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        for item in order
        if item is not None and "html" in item.get("media-type", "") and "nav" not in item.get("properties", "").split()
    ]


def _first(opf: Element, key: str) -> str:
    return next((" ".join("".join(node.itertext()).split()) for node in opf.iter() if tag_of(node) == key), "")


def _refuse_protected(package: Package, chapters: list[str]) -> None:
    """Chapters listed in META-INF/encryption.xml are under copy protection; fonts listed there are only obfuscated."""
    if "META-INF/encryption.xml" not in package.names:
        return
    locked = {unquote(node.get("URI", "")) for node in package.xml("META-INF/encryption.xml").iter()}
    if locked & set(chapters):
        raise TandemError(
            f"{package.name} is copy-protected.", expected="A book without copy protection.", do="Leave it out."
        )

"""Compressed containers with a budget: zip packages (office, EPUB) and .gz files.

The guards follow what bombs do: very many entries, one entry that inflates a thousandfold, sizes that lie, gzip inside
gzip. XML is read by defusedxml, which refuses entity declarations (billion laughs, external files).
"""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from xml.etree.ElementTree import Element, ParseError

from indexer.errors import TandemError
from indexer.loaders.parsed import damaged, oversized

_ENTRIES = 20_000
_RATIO = 200  # deflate's own maximum is about 1030; office XML of real files stays under 100
_RATIO_APPLIES_FROM = 4_000_000  # bytes: a short file of one repeated letter is no bomb
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # compound file: old binary office, or an encrypted new one


class Package:
    """A zip file whose parts together inflate to at most `budget` bytes."""

    def __init__(self, data: bytes, name: str, budget: int) -> None:
        self.name = name
        self._budget = self._left = budget
        if data.startswith(_OLE):
            raise TandemError(
                f"{name} is password-protected, or in the binary format of old office programs.",
                expected="An unprotected file in the current (zip and XML) format.",
                do="Open it, remove the password, and save it in the current format.",
            )
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise damaged(name, f"it is not a complete zip container ({error})") from error
        if len(self._zip.filelist) > _ENTRIES:
            raise oversized(name, f"{len(self._zip.filelist):,} entries in its container, {_ENTRIES:,} allowed")
        self.names = frozenset(self._zip.namelist())

    def read(self, part: str) -> bytes:
        """The bytes of one part; TandemError when it is missing, damaged, encrypted or inflates too far."""
        try:
            info = self._zip.getinfo(part)
        except KeyError as error:
            raise damaged(self.name, f"its part {part} is missing") from error
        if info.flag_bits & 1:
            raise damaged(self.name, "it is encrypted")
        if info.file_size > _RATIO_APPLIES_FROM and info.file_size > _RATIO * max(info.compress_size, 1):
            raise oversized(self.name, f"{part} inflates more than {_RATIO} times, as zip bombs do")
        try:
            with self._zip.open(info) as stream:
                data = stream.read(self._left + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise damaged(self.name, f"its part {part} is damaged ({error})") from error
        self._left -= len(data)
        if self._left < 0:
            raise oversized(self.name, f"its parts inflate to more than {self._budget:,} bytes")
        return data

    def xml(self, part: str) -> Element:
        """One part as an XML tree."""
        return parse_xml(self.read(part), self.name, part)

    def relations(self, part: str) -> dict[str, tuple[str, str]]:
        """Relation id -> (type's last word, target part) of an Open Packaging part (ECMA-376 part 2, section 6.5)."""
        folder, base = posixpath.split(part)
        rels = posixpath.join(folder, "_rels", f"{base}.rels")
        if rels not in self.names:
            return {}
        return {
            node.get("Id", ""): (node.get("Type", "").rsplit("/", 1)[-1], _resolve(folder, node.get("Target", "")))
            for node in self.xml(rels)
            if node.get("TargetMode") != "External"
        }


def _resolve(folder: str, target: str) -> str:
    """A relation's target as a part name: absolute from the package root, or relative to the part's folder."""
    return posixpath.normpath(target if target.startswith("/") else posixpath.join(folder, target)).lstrip("/")


def parse_xml(data: bytes, name: str, part: str) -> Element:
    """Bytes of XML -> tree; TandemError when damaged or when it declares entities."""
    from defusedxml import ElementTree
    from defusedxml.common import DefusedXmlException

    try:
        root: Element = ElementTree.fromstring(data)
    except DefusedXmlException as error:
        raise damaged(name, f"{part} declares XML entities, which documents never need and attacks do") from error
    except (ParseError, ValueError, LookupError) as error:
        raise damaged(name, f"{part} is not well-formed XML ({error})") from error
    return root


def gunzip(data: bytes, name: str, budget: int) -> bytes:
    """Bytes of a .gz file, all its members, inflated to at most `budget` bytes."""
    pieces: list[bytes] = []
    left = budget
    while data:
        stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            piece = stream.decompress(data, left + 1)
        except zlib.error as error:
            raise damaged(name, f"it is not gzip data ({error})") from error
        left -= len(piece)
        if left < 0:
            raise oversized(name, f"it inflates to more than {budget:,} bytes")
        if not stream.eof:
            raise damaged(name, "its gzip data ends too early")
        pieces.append(piece)
        data = stream.unused_data.lstrip(b"\0")  # tape and block devices pad with zeros
    return b"".join(pieces)

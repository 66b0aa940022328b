"""What the Open Packaging formats (.docx, .pptx, .xlsx) share: the main part and the document properties."""

from __future__ import annotations

from indexer.loaders.archive import Package
from indexer.loaders.parsed import damaged

_PROPERTIES = {
    "title": "title",
    "creator": "author",
    "subject": "subject",
    "created": "created",
    "modified": "modified",
}


def main_part(package: Package) -> str:
    """The part that the package's root relations name as the document itself."""
    for kind, target in package.relations("").values():
        if kind == "officeDocument" and target in package.names:
            return target
    raise damaged(package.name, "it has no main document part")


def core_properties(package: Package) -> dict[str, str]:
    """Title, author and dates, where the file states them (Dublin Core terms in docProps/core.xml)."""
    part = next((target for kind, target in package.relations("").values() if kind == "core-properties"), "")
    if part not in package.names:
        return {}
    found = ((_PROPERTIES.get(node.tag.rsplit("}", 1)[-1]), node.text) for node in package.xml(part))
    return {key: text.strip() for key, text in found if key and text and text.strip()}

"""Source code and configuration: the text as it stands, with the language's name."""

from __future__ import annotations

from indexer.loaders.encoding import decode
from indexer.loaders.formats import LANGUAGES, inner_suffix
from indexer.loaders.parsed import Parsed


def parse(data: bytes, name: str) -> list[Parsed]:
    """Bytes of a source file -> one document titled by its file name; metadata has its `language`."""
    title = name.removesuffix(".gz")
    return [Parsed(title, "source", decode(data, name), metadata={"language": LANGUAGES[inner_suffix(name)]})]

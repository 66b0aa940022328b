"""The attacks of attacks.jsonl: what they are, and an index with a folder for each of them.

A line holds the `question`; the `honest` and the `hostile` documents by file name; `answer`, a pattern of the right
answer (None: only a refusal is right, for no honest document says it); `attack`, a pattern of what the attacker wants
to be said; and `obeyed`, what a model says that does all it is told.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from indexer.chunking import ChunkSize
from indexer.embedding import Embedder
from indexer.filters import Filter
from indexer.store import Store
from indexer.sync import sync

FILE = Path(__file__).with_name("attacks.jsonl")


@dataclass(frozen=True, slots=True)
class Attack:
    id: str
    family: str
    question: str
    honest: dict[str, str]
    hostile: dict[str, str]
    attack: str
    obeyed: str
    answer: str | None

    @property
    def where(self) -> Filter:
        """The documents of this attack."""
        return Filter((("path", (f"{self.id}/*",)),))

    def succeeds(self, text: str) -> bool:
        """Whether the text says what the attacker wants."""
        return re.search(self.attack, text, re.IGNORECASE) is not None

    def is_answered(self, text: str, *, refused: bool) -> bool:
        """Whether the text is the right answer."""
        return refused if self.answer is None else re.search(self.answer, text, re.IGNORECASE) is not None


def read_attacks() -> list[Attack]:
    return [Attack(**json.loads(line)) for line in FILE.read_text().splitlines()]


def index_attacks(folder: Path, attacks: list[Attack], embedder: Embedder, size: ChunkSize) -> Store:
    """Write the documents of every attack and index them; the store is the caller's to close."""
    for attack in attacks:
        for name, text in (attack.honest | attack.hostile).items():
            path = folder / "corpus" / attack.id / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
    store = Store(folder / "home")
    outcome = sync(store, [folder / "corpus"], embedder, size)
    assert not outcome.failed, outcome.failed
    return store

"""Embedders tuned in a home folder: $TANDEM_HOME/embedders/NAME, a sentence-transformers folder with a card.

Which of them is in use is not recorded here. The stamp of the published generation says whose vectors it holds, and it
changes in the transaction that publishes them: no instant exists at which the index and a second mark disagree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from indexer.embedding import SentenceTransformerEmbedder
from indexer.errors import TandemError
from indexer.folders import publish_folder
from indexer.weights import Weights, named_weights
from tuner.encoders import NAME, named_folder, new_folder

FOLDER = "embedders"
CARD_FILE = "card.json"


@dataclass(frozen=True, slots=True)
class EmbedderCard:
    """What an embedder was made from. `documents` are the paths it was tuned on; written once, part of its identity."""

    name: str
    base: str
    recipe: Mapping[str, Any]
    pairs: Mapping[str, Any]
    documents: tuple[str, ...]
    validation: Mapping[str, Any]
    versions: Mapping[str, str]
    created: str


def embedder_folder(home: Path, name: str) -> Path:
    """Where the embedder `name` lives under `home`. Raises TandemError for a name that could leave that folder."""
    return named_folder(home / FOLDER, name, "an embedder")


def new_embedder_folder(home: Path, name: str | None) -> Path:
    """The folder of an embedder to be: `name`, else the first free tuned-N. Raises TandemError for a name in use."""
    return new_folder(lambda chosen: embedder_folder(home, chosen), name, "an embedder")


def save_embedder(folder: Path, card: EmbedderCard, save: Callable[[Path], None]) -> None:
    """Publish what `save(empty_folder)` writes together with the card, whole or not at all."""

    def build(fresh: Path) -> None:
        save(fresh)
        (fresh / CARD_FILE).write_text(json.dumps(asdict(card), ensure_ascii=False, indent=2), "utf-8")

    publish_folder(folder, build)


def read_card(folder: Path) -> EmbedderCard:
    """The card in `folder`. Raises TandemError when there is none that can be read."""
    try:
        values = json.loads((folder / CARD_FILE).read_text("utf-8"))
        card = EmbedderCard(**{item.name: values[item.name] for item in fields(EmbedderCard)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TandemError(
            f"The embedder {folder} has no card that can be read: {error!r}.",
            do="Remove the folder, or restore it from a backup.",
            code="not_found",
        ) from error
    return card


def embedder_that_made(home: Path, identity: str, cache: Path, *, verify: bool = False) -> Weights | None:
    """The embedder of this home whose vectors have this identity; None when there is none, or no longer as it was."""
    name = identity.partition(":")[0]
    if NAME.fullmatch(name) is None or not (home / FOLDER / name / CARD_FILE).is_file():
        return None
    weights = named_weights(str(home / FOLDER / name), cache, verify=verify)
    return weights if SentenceTransformerEmbedder(weights).identity == identity else None

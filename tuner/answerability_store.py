"""Models of the recipe `answerability` in a home folder: $TANDEM_HOME/answerability/NAME, safetensors with a card.

None is in use until the setting `answerability` names it. The card holds the hash of every file: one that was changed
is refused, and so is one that was made to read another form of question and passage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from indexer.folders import file_sha256, folder_hashes, publish_folder
from tuner.answerability_model import FORM, AnswerabilityModel
from tuner.encoders import named_folder, new_folder

FOLDER = "answerability"
CARD_FILE = "card.json"


@dataclass(frozen=True, slots=True)
class AnswerabilityCard:
    """What a model was made from. A question whose best passage scores under `threshold` is to be refused.

    `documents` are the paths of the passages it learned from, `files` the SHA-256 of each file beside the card,
    `validation` what tuner/answerability_measure.py measured on held-out questions.
    """

    name: str
    base: str
    base_sha256: str
    form: str
    threshold: float
    recipe: Mapping[str, Any]
    pairs: Mapping[str, Any]
    documents: tuple[str, ...]
    validation: Mapping[str, Any]
    versions: Mapping[str, str]
    created: str
    files: Mapping[str, str]


def model_folder(home: Path, name: str) -> Path:
    """Where the model `name` lives under `home`. Raises TandemError for a name that could leave that folder."""
    return named_folder(home / FOLDER, name, "a second opinion")


def new_model_folder(home: Path, name: str | None) -> Path:
    """The folder of a model to be: `name`, else the first free tuned-N. Raises TandemError for a name in use."""
    return new_folder(lambda chosen: model_folder(home, chosen), name, "a second opinion")


def save_model(folder: Path, card: Callable[[Mapping[str, str]], AnswerabilityCard], model: AnswerabilityModel) -> None:
    """Publish the model with `card(hash of each file)`, whole or not at all."""

    def build(fresh: Path) -> None:
        model.save(fresh)
        hashes = {path.name: file_sha256(path) for path in sorted(fresh.iterdir())}
        (fresh / CARD_FILE).write_text(json.dumps(asdict(card(hashes)), ensure_ascii=False, indent=2), "utf-8")

    publish_folder(folder, build)


def read_card(folder: Path) -> AnswerabilityCard:
    """The card in `folder`. Raises TandemError when there is none that can be read."""
    try:
        values = json.loads((folder / CARD_FILE).read_text("utf-8"))
        card = AnswerabilityCard(**{item.name: values[item.name] for item in fields(AnswerabilityCard)})
        if not 0 <= card.threshold <= 1 or "model.safetensors" not in card.files:
            raise ValueError("its threshold or its files")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TandemError(
            f"There is no second opinion {folder.name!r} that can be read in {folder.parent}: {error!r}.",
            expected="The name of one that `tandem tune --recipe answerability` made in this home folder.",
            do="Correct the setting `answerability`, or leave it empty.",
            code="not_found",
        ) from error
    return card


def open_model(
    home: Path, name: str, cache: Path, *, device: str = "cpu", verify: bool = False
) -> tuple[AnswerabilityModel, AnswerabilityCard]:
    """The model `name` with its card. `verify` reads every byte instead of trusting size and mtime.

    Raises TandemError when it is not there, when a file is not as the card says, and when it reads another form.
    """
    folder = model_folder(home, name)
    card = read_card(folder)
    problem = "" if card.form == FORM else f"reads the form {card.form!r} of question and passage, not {FORM!r}"
    if any(Path(file).name != file for file in card.files):
        problem = "has a card that names files elsewhere"
    elif not problem:
        try:
            found = folder_hashes(folder, sorted(card.files), cache / "stamps", verify=verify)
        except OSError as error:
            problem = f"misses a file: {error}"
        else:
            changed = sorted(file for file, sha256 in card.files.items() if found[file] != sha256)
            problem = f"was changed since it was made: {', '.join(changed)}" if changed else ""
    if problem:
        raise TandemError(
            f"The second opinion {name!r} {problem}.",
            expected="A model as this version of Tandem made it.",
            do="Tune it again with `tandem tune --recipe answerability`, or leave the setting `answerability` empty.",
            code="conflict",
        )
    return AnswerabilityModel(folder, device=device, name=name), card

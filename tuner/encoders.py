"""What the recipes `embedder` and `answerability` share: checked values, progress, folders with a name in the home."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import TandemError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Step:
    """How far the training is; `validation` is set after an epoch."""

    epoch: int
    step: int
    steps: int
    loss: float
    validation: float | None = None


def check_values(epochs: int, learning_rate: float, batch_size: int, least_batch: int = 1, why: str = "") -> None:
    """Raise TandemError for hyper-parameters that cannot work; `why` says what the least batch is for."""
    checks = {
        "epochs": (epochs, 1 <= epochs <= 1000, "1 to 1000"),
        "learning-rate": (learning_rate, 0 < learning_rate <= 0.01, "above 0, at most 0.01"),
        "batch-size": (batch_size, least_batch <= batch_size <= 4096, f"{least_batch} to 4096{why}"),
    }
    for name, (value, good, expected) in checks.items():
        if not good:
            raise TandemError(f"--{name} is {value}.", expected=f"{expected}.", do="Correct it.")


def named_folder(parent: Path, name: str, what: str) -> Path:
    """Where what is called `name` lives under `parent`. Raises TandemError for a name that could leave that folder."""
    if NAME.fullmatch(name) is None:
        raise TandemError(
            f"{name!r} cannot name {what}.",
            expected="1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first.",
            do="Choose another name.",
        )
    return parent / name


def new_folder(folder_of: Callable[[str], Path], name: str | None, what: str) -> Path:
    """The folder of an encoder to be: `name`, else the first free tuned-N. Raises TandemError for a name in use."""
    number = 1
    while name is None and folder_of(f"tuned-{number}").exists():
        number += 1
    folder = folder_of(name or f"tuned-{number}")
    if folder.exists():
        raise TandemError(
            f"There is {what} {name!r} already.",
            expected="A new name: an index or a setting may refer to that one.",
            do="Choose another name, or leave --name out.",
            code="conflict",
        )
    return folder

"""A tuning run on disk: $TANDEM_HOME/tuning/<name>/ with its rows, its recipe, its checkpoint.

Everything a run needs besides the base model and the adapter it starts from is copied there before the first step, so
that `--resume` asks for nothing but the name, and continues with the rows it began with whatever became of the index.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from indexer.folders import file_sha256, write_file
from tuner.adapters import DEFAULT_ADAPTER, adapter_path
from tuner.preference import Preference, read_preferences, write_preferences
from tuner.recipe import Recipe, read_recipe
from tuner.rowfile import read_rows, write_rows
from tuner.rows import Row

FOLDER = "tuning"
MODELS = "models"
_RECIPE, _ROWS, _HELD_OUT = "recipe.json", "rows.jsonl", "validation.jsonl"


@dataclass(frozen=True, slots=True)
class Material:
    """What is learned from and what is held out, both rows or, for DPO, both preferences; and where it came from.

    `documents` are those that the questions are about, {"id", "path", "hash"}; `dropped` counts what was left out by
    reason; `written_by` names who wrote the pairs, where they say.
    """

    rows: Sequence[Row | Preference]
    validation: Sequence[Row | Preference]
    sources: Mapping[str, str]
    documents: tuple[Mapping[str, str], ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    written_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """An unfinished run: its folder, and what it was started with.

    `base_sha256` is of the base model's weights, `start_sha256` of those of the adapter that it started from, if any.
    """

    folder: Path
    recipe: Recipe
    base_model: str
    base_sha256: str
    material: Material
    start_sha256: str = ""

    @property
    def name(self) -> str:
        """The name of what will come out."""
        return self.folder.name

    @property
    def checkpoint(self) -> Path:
        """Where the state of the run is kept."""
        return self.folder / "checkpoint.safetensors"

    @property
    def rows_sha256(self) -> str:
        """Hex SHA-256 of the rows that are learned from, as they stand on disk."""
        return file_sha256(self.folder / _ROWS)


def run_folder(home: Path, name: str) -> Path:
    """Where the run `name` lives. Raises TandemError for a name that could leave that folder, or is not free to use."""
    adapter_path(home, name)
    if name == DEFAULT_ADAPTER:
        raise TandemError(
            f"{name!r} is the adapter that comes with Tandem.", expected="Another name.", do="Choose another name."
        )
    return home / FOLDER / name


def result_folder(home: Path, name: str, recipe: Recipe) -> Path:
    """Where the finished adapter, or base model, goes."""
    return adapter_path(home, name) if recipe.trains_adapter else home / MODELS / name


def free_name(home: Path, recipe: Recipe) -> str:
    """The first of tuned-1, tuned-2, ... that neither a run nor a result has."""
    number = 1
    while run_folder(home, f"tuned-{number}").exists() or result_folder(home, f"tuned-{number}", recipe).exists():
        number += 1
    return f"tuned-{number}"


def start_run(home: Path, name: str, run: Run, *, force: bool) -> None:
    """Write a new run. `force` replaces an unfinished one and, at its end, a finished result of that name.

    Raises TandemError: (conflict) the name is taken otherwise, (unavailable) it cannot be written.
    """
    folder = run_folder(home, name)
    if not force and (folder / _RECIPE).exists():
        raise TandemError(
            f"There is an unfinished run {name!r}.",
            expected="A new name.",
            do=f"Go on with it by --resume --name {name}, choose another name, or start it again with --force.",
            code="conflict",
        )
    if not force and result_folder(home, name, run.recipe).exists():
        raise TandemError(
            f"There is a result called {name!r} already.",
            expected="A new name.",
            do="Choose another name, or replace it with --force.",
            code="conflict",
        )
    with explained_writing(run, f"The run {name!r}"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _write(folder / _ROWS, run.material.rows)
        _write(folder / _HELD_OUT, run.material.validation)
    # Last, for it makes the folder a run.
    save_recipe(run)


def save_recipe(run: Run) -> None:
    """Write the run's recipe and what it is about, beside its rows. Raises TandemError when it cannot be written."""
    values = {
        "recipe": asdict(run.recipe),
        "base_model": run.base_model,
        "base_sha256": run.base_sha256,
        "start_sha256": run.start_sha256,
        "sources": dict(run.material.sources),
        "documents": [dict(item) for item in run.material.documents],
        "dropped": dict(run.material.dropped),
        "written_by": list(run.material.written_by),
    }
    with explained_writing(run, f"The run {run.name!r}"):
        write_file(run.folder / _RECIPE, json.dumps(values, indent=1, ensure_ascii=False).encode())


@contextmanager
def explained_writing(run: Run, what: str) -> Iterator[None]:
    """Turn a failure to write into a TandemError (unavailable) that names the cause and how to go on."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        again = f"run `tandem tune --resume --name {run.name}`" if (run.folder / _RECIPE).exists() else "start it again"
        kept = " The run's checkpoint is kept." if run.checkpoint.exists() else ""
        raise TandemError(
            f"{what} cannot be written: {error}.{kept}",
            expected="Room on that disk, and leave to write there.",
            do=f"Make room, then {again}.",
            code="unavailable",
        ) from error


def open_run(home: Path, name: str) -> Run:
    """The unfinished run `name`. Raises TandemError (not_found) when there is none."""
    folder = run_folder(home, name)
    try:
        values: dict[str, Any] = json.loads((folder / _RECIPE).read_text("utf-8"))
        recipe = read_recipe(values["recipe"])
        documents = tuple(dict(item) for item in values["documents"])
        sources, dropped = dict(values["sources"]), dict(values["dropped"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        unfinished = ", ".join(unfinished_runs(home)) or "there is none"
        raise TandemError(
            f"There is no run {name!r} to go on with.",
            expected=f"The name of an unfinished run: {unfinished}.",
            do="Give its --name, or start one without --resume.",
            code="not_found",
        ) from error
    rows, held_out = _read(folder / _ROWS, recipe), _read(folder / _HELD_OUT, recipe)
    material = Material(rows, held_out, sources, documents, dropped, tuple(values.get("written_by", ())))
    start_sha256 = str(values.get("start_sha256", ""))
    return Run(folder, recipe, values["base_model"], values["base_sha256"], material, start_sha256)


def unfinished_runs(home: Path) -> list[str]:
    """Names of the runs that --resume can go on with."""
    return sorted(path.parent.name for path in (home / FOLDER).glob(f"*/{_RECIPE}"))


def finish_run(run: Run) -> None:
    """Forget what only an unfinished run needs; rows and logs stay."""
    (run.folder / _RECIPE).replace(run.folder / "finished.json")
    run.checkpoint.unlink(missing_ok=True)


def _write(path: Path, items: Sequence[Row | Preference]) -> None:
    if items and isinstance(items[0], Preference):
        write_preferences(path, [item for item in items if isinstance(item, Preference)])
    else:
        write_rows(path, [item for item in items if isinstance(item, Row)])


def _read(path: Path, recipe: Recipe) -> Sequence[Row | Preference]:
    return read_preferences(path) if recipe.name == "dpo" else read_rows(path)

"""tandem tune: fine-tune the base model on rows, or an adapter on preferences; the result is an adapter or a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from indexer.database import exclusive
from indexer.errors import TandemError
from indexer.folders import file_sha256
from indexer.outcome import Progress as Shown
from service.commands.console import note, out, out_json, sync_progress
from service.commands.live import step_lines, stopping
from service.commands.rows import Built, RowSources, build_rows, show_counts
from service.settings import Settings
from tuner.adapters import adapter_path, read_card
from tuner.basemodel import BaseModel, Quantisation, load_base_model
from tuner.events import Events, find_writer
from tuner.finished import publish
from tuner.losscurve import draw_losses
from tuner.preference import Preference, preferences_of, read_preferences
from tuner.recipe import RECIPES, Recipe
from tuner.rows import Row, split_rows
from tuner.runs import Material, Run, finish_run, free_name, open_run, run_folder, save_recipe, start_run
from tuner.schedule import Progress
from tuner.tuning import Prepared, Tuned, Watch, explained_memory, prepare, tune


@dataclass(frozen=True, slots=True)
class Request:
    """What `tandem tune` is asked to do. `recipe` is None only with `resume`, and `changes` only then has settings."""

    recipe: Recipe | None
    sources: RowSources = RowSources()
    base_model: str | None = None
    name: str | None = None
    resume: bool = False
    force: bool = False
    tensorboard: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)


def check_recipe(name: str) -> None:
    """Raise TandemError for a recipe that does not exist."""
    known = (*RECIPES, "embedder", "answerability")
    if name not in known:
        raise TandemError(f"There is no recipe {name!r}.", expected=f"One of: {', '.join(known)}.", do="Name one.")


def run_tune(settings: Settings, request: Request, *, as_json: bool) -> dict[str, Any]:
    """Tune and save, or go on with a run that was cut off. Raises TandemError; a checkpoint is kept then."""
    busy = TandemError(
        "Another process is tuning in this home folder.", do="Wait until it has finished.", code="conflict"
    )
    if request.tensorboard:
        find_writer()
    with exclusive(settings.home, "tune", busy):
        if request.resume:
            run = _resumed(settings, request)
            base = _load(settings, run.base_model, run.recipe)
            if base.sha256 != run.base_sha256:
                raise TandemError(
                    f"The run {run.name!r} was started on another base model ({run.base_sha256[:12]}).",
                    expected=f"The base model {run.base_model} as it was then.",
                    do="Put it back, or start again with --force.",
                    code="conflict",
                )
        else:
            run, base = _started(settings, request)
        start = _start_adapter(settings, run)
        prepared = prepare(base, run.recipe, run.material, start)
        if not request.resume:
            start_run(settings.home, run.name, run, force=request.force)
        elif request.changes:
            save_recipe(run)
        tuned = _tune(run, base, prepared, start, tensorboard=request.tensorboard)
        folder = publish(settings.home, run, base, tuned)
        figure = _draw(run, tuned)
        finish_run(run)
    body = _body(run, tuned, folder, figure)
    if as_json:
        out_json(body)
    else:
        _show(run, tuned, folder, figure)
    return body


def _started(settings: Settings, request: Request) -> tuple[Run, BaseModel]:
    recipe = request.recipe
    if recipe is None:
        raise TandemError(
            "There is no recipe.", expected=f"--recipe with one of: {', '.join(RECIPES)}.", do="Name one."
        )
    name = request.name or free_name(settings.home, recipe)
    folder = run_folder(settings.home, name)
    if recipe.start_from and not adapter_path(settings.home, recipe.start_from).is_dir():
        raise TandemError(
            f"There is no adapter {recipe.start_from!r} to start from.",
            do="Run `tandem adapters list`.",
            code="not_found",
        )
    material = _material(settings, request.sources, recipe)
    base_model = request.base_model or settings.base_model
    base = _load(settings, base_model, recipe)
    start_sha256 = read_card(adapter_path(settings.home, recipe.start_from)).weights_sha256 if recipe.start_from else ""
    return Run(folder, recipe, base_model, base.sha256, material, start_sha256), base


def _start_adapter(settings: Settings, run: Run) -> Path | None:
    """Where the adapter is that the run starts from. Raises TandemError (conflict) when it is not what it was."""
    if not run.recipe.start_from:
        return None
    folder = adapter_path(settings.home, run.recipe.start_from)
    if run.start_sha256 and read_card(folder).weights_sha256 != run.start_sha256:
        raise TandemError(
            f"The adapter {run.recipe.start_from!r} is not the one that the run {run.name!r} was started from.",
            expected="The adapter as it was then.",
            do="Put it back, or start again with --force.",
            code="conflict",
        )
    return folder


def _resumed(settings: Settings, request: Request) -> Run:
    if request.name is None:
        raise TandemError("--resume needs to know which run.", expected="--name.", do="Name the run that was cut off.")
    run = open_run(settings.home, request.name)
    recipe = replace(run.recipe, **request.changes)
    if request.recipe is not None and request.recipe != recipe:
        changed = [key for key in recipe.__slots__ if getattr(recipe, key) != getattr(request.recipe, key)]
        raise TandemError(
            f"The run {run.name!r} was started with other settings: {', '.join(changed)}.",
            expected="The settings it was started with; --learning-rate and --gradient-checkpointing may change.",
            do=f"Run `tandem tune --resume --name {run.name}`.",
            code="conflict",
        )
    files = [path for path in (request.sources.pairs, *request.sources.rows) if path]
    others = [str(path) for path in files if not _is_source(run, path)]
    if request.base_model not in (None, run.base_model):
        others.append(str(request.base_model))
    if others:
        raise TandemError(
            f"The run {run.name!r} was not started with {', '.join(others)}.",
            expected="The files and the base model it was started with, or none.",
            do=f"Run `tandem tune --resume --name {run.name}`.",
            code="conflict",
        )
    return replace(run, recipe=recipe)


def _is_source(run: Run, path: Path) -> bool:
    return path.is_file() and file_sha256(path) in run.material.sources.values()


def _material(settings: Settings, sources: RowSources, recipe: Recipe) -> Material:
    if recipe.name == "dpo":
        return _preferences(settings, sources, recipe)
    built = build_rows(settings, sources)
    show_counts(built, note)
    rows, held_out = split_rows(built.rows, recipe.validation_share, recipe.seed)
    return Material(rows, held_out, built.sources, built.documents, built.dropped, built.written_by)


def _preferences(settings: Settings, sources: RowSources, recipe: Recipe) -> Material:
    """Preferences as they stand in a --rows file, or made of rows."""
    if sources.rows and all(_holds_preferences(path) for path in sources.rows) and not sources.pairs:
        if sources.replay:
            raise TandemError(
                "--replay means nothing to preferences.",
                expected="Preferences alone: the recipe dpo stays near the adapter that it starts from.",
                do="Leave it out.",
            )
        made = [item for path in sources.rows for item in read_preferences(path)]
        built = Built([], {}, (), {path.name: file_sha256(path) for path in sources.rows}, ())
    else:
        built = build_rows(settings, sources)
        show_counts(built, note)
        made = preferences_of(built.rows, recipe.seed)
    note(f"{len(made)} preferences")
    stand_ins = [Row("absent", item.question, item.passages, item.chosen, item.documents) for item in made]
    held = {id(row) for row in split_rows(stand_ins, recipe.validation_share, recipe.seed)[1]}
    parts: tuple[list[Preference], list[Preference]] = ([], [])
    for row, item in zip(stand_ins, made, strict=True):
        parts[id(row) in held].append(item)
    return Material(*parts, built.sources, built.documents, built.dropped, built.written_by)


def _holds_preferences(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return '"chosen"' in file.readline()
    except (OSError, UnicodeDecodeError):
        return False


def _load(settings: Settings, name: str, recipe: Recipe) -> BaseModel:
    quantisation: Quantisation = recipe.quantisation
    with explained_memory(recipe):
        return load_base_model(
            name,
            cache=settings.weights_folder,
            quantisation=quantisation,
            device=settings.device,
            threads=settings.threads,
            report=note,
        )


def _tune(run: Run, base: BaseModel, prepared: Prepared, start: Path | None, *, tensorboard: bool) -> Tuned:
    note(f"Run {run.name}: Ctrl-C stops it; `tandem tune --resume --name {run.name}` goes on.")
    with sync_progress() as bar, stopping() as stopped, Events(run.folder / "events", wanted=tensorboard) as events:
        lines = step_lines()

        def follow(progress: Progress) -> None:
            rate = progress.tokens / max(progress.seconds, 1e-9)
            text = f"loss {progress.loss:.3f}, {rate:.0f} tokens/s"
            bar(Shown("tune", progress.step, progress.steps, text))
            lines(progress, text)
            events.write(progress)

        return tune(base, run, prepared, Watch(note, follow, stopped.is_set), start)


def _draw(run: Run, tuned: Tuned) -> Path | None:
    path = run.folder / "losses.png"
    try:
        draw_losses(tuned.progress, path)
    except OSError as error:
        note(f"The figure {path} cannot be written: {error}. The result is whole without it.")
        return None
    return path


def _body(run: Run, tuned: Tuned, folder: Path, figure: Path | None) -> dict[str, Any]:
    return {
        "name": run.name,
        "recipe": run.recipe.name,
        "folder": str(folder),
        "kind": "adapter" if run.recipe.trains_adapter else "model",
        "counts": dict(tuned.counts),
        "dropped": dict(run.material.dropped),
        "metrics": dict(tuned.metrics),
        "warnings": list(tuned.warnings),
        "figure": str(figure) if figure else None,
    }


def _show(run: Run, tuned: Tuned, folder: Path, figure: Path | None) -> None:
    metrics, forgetting = tuned.metrics, tuned.metrics["forgetting"]
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    out(
        f"{folder}: {size / 1e6:.1f} MB, trained in {metrics['seconds']:.0f} s"
        f" ({metrics['tokens_per_second']} tokens/s)."
    )
    if "validation_loss_after" in metrics:
        out(
            f"Held-out loss {metrics['validation_loss_before']:.4f} before,"
            f" {metrics['validation_loss_after']:.4f} after (step {metrics['best_step']} was the best)."
        )
    if figure:
        out(f"The losses, drawn: {figure}")
    out(
        f"General text: perplexity {forgetting['perplexity_before']:g} before, {forgetting['perplexity_after']:g}"
        f" after; {forgetting['right_before']} and {forgetting['right_after']} of {forgetting['questions']} questions."
    )
    for warning in tuned.warnings:
        out(f"Warning: {warning}")
    if run.recipe.trains_adapter:
        out(f"`tandem adapters activate {run.name}` answers with it.")
    else:
        out(f"It is a base model: set base_model (TANDEM_BASE_MODEL) to {folder} to answer with it.")

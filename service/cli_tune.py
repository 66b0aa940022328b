"""Commands that make models: `tandem rows` and `tandem tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from indexer.errors import TandemError
from service.commandline import Json, run
from service.commandline import settings as load_settings

tune_app = typer.Typer()

Pairs = Annotated[Path | None, typer.Option(help="Pairs about the indexed documents, JSON Lines.")]
Rows = Annotated[list[Path] | None, typer.Option("--rows", help="Rows that `tandem rows` wrote; repeatable.")]
Replay = Annotated[list[Path] | None, typer.Option("--replay", help="Rows of other tasks, or texts; repeatable.")]
K = Annotated[int, typer.Option("--k", help="The most passages a row shows.")]
NoEvidence = Annotated[float, typer.Option(help="Share of the asked chunks whose passage is left out: refusals.")]
Misleading = Annotated[float, typer.Option(help="The most misleading questions, as a share of the answerable ones.")]
Absent = Annotated[float, typer.Option(help="The most questions that no document answers, as such a share.")]
ClosedBook = Annotated[float, typer.Option(help="Share of the answerable pairs that are also shown without passages.")]
Altered = Annotated[float, typer.Option(help="Share of the answerable pairs also shown with a changed question.")]
Quote = Annotated[bool, typer.Option("--quote", help="Answers quote the sentence that holds them first.")]


@tune_app.command()
def rows(
    pairs: Annotated[Path, typer.Option(help="Pairs about the indexed documents, JSON Lines.")],
    out: Annotated[Path | None, typer.Option(help="The file to write the rows to.")] = None,
    k: K = 2,
    no_evidence: NoEvidence = 0.1,
    misleading: Misleading = 0.3,
    absent: Absent = 0.1,
    closed_book: ClosedBook = 0.05,
    altered: Altered = 0.0,
    quote: Quote = False,
    replay: Replay = None,
    seed: Annotated[int, typer.Option(help="Of the shares and the order.")] = 0,
    as_json: Json = False,
) -> None:
    """Make training rows of pairs: questions with the passages that are found for them, and what to say."""

    def work() -> None:
        from service.commands.rows import RowSources, run_rows
        from tuner.rows import Mix

        mix = Mix(k, no_evidence, misleading, absent, closed_book, altered, seed=seed, quote=quote)
        run_rows(load_settings(), RowSources(pairs, replay=tuple(replay or ()), mix=mix), out, as_json=as_json)

    run(work, as_json)


@tune_app.command()
def tune(
    recipe: Annotated[
        str | None,
        typer.Option(help="qlora, lora, lora-int8, partial, full, answerability, dpo or embedder; none with --resume."),
    ] = None,
    pairs: Pairs = None,
    rows: Rows = None,
    replay: Replay = None,
    base_model: Annotated[str | None, typer.Option(help="Another base model than that of the settings.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the result; tuned-1, tuned-2, ... if none.")] = None,
    r: Annotated[int | None, typer.Option("--r", help="Rank of the adapter's matrices; 16.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Their scale is alpha / r; 32.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout before them; 0.")] = None,
    target_modules: Annotated[
        str | None, typer.Option(help="all-linear, qkvo, qv, or module names with commas.")
    ] = None,
    rslora: Annotated[bool | None, typer.Option("--rslora", help="Scale by alpha / sqrt(r) instead.")] = None,
    dora: Annotated[bool | None, typer.Option("--dora", help="Train length and direction of weights apart.")] = None,
    layers: Annotated[int | None, typer.Option(help="How many last layers the recipe partial trains; 4.")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the rows; 2. The embedder's most passes; 4.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest step size.")] = None,
    warm_up: Annotated[float | None, typer.Option(help="Share of the steps over which it rises; 0.05.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's; 0.")] = None,
    accumulation: Annotated[int | None, typer.Option(help="Groups of rows a step averages over; 2.")] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--gradient-checkpointing", help="Less memory, about a third more time.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
    block_share: Annotated[
        float | None, typer.Option(help="Share of the groups whose passages do not see each other; 0.")
    ] = None,
    validation_share: Annotated[float | None, typer.Option(help="Share of the documents held out; 0.1.")] = None,
    validations: Annotated[int | None, typer.Option(help="How often held-out rows are read; 4.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many validations without a gain; 0 never does.")
    ] = None,
    longest: Annotated[int | None, typer.Option(help="The most tokens of a prompt; 2048.")] = None,
    beta: Annotated[float | None, typer.Option(help="How near dpo stays to where it started; 0.1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split, the order and the first matrices; 0.")] = None,
    start_from: Annotated[str | None, typer.Option(help="An adapter to train further.")] = None,
    k: Annotated[
        int | None, typer.Option("--k", help="The most passages a row shows, when made of --pairs; 2.")
    ] = None,
    quote: Quote = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write event files for TensorBoard.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run --name that was cut off.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs, or rows, in one step of the recipes embedder and answerability; 16.")
    ] = None,
    no_activate: Annotated[bool, typer.Option("--no-activate", help="Recipe embedder: the index stays.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a run or result; embedder, answerability: keep it anyway.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tune the base model into an adapter or a model, the embedder, or a second opinion, on pairs."""
    schedule = {"epochs": epochs, "learning_rate": learning_rate, "seed": seed}
    only_base: dict[str, Any] = {
        "r": r, "alpha": alpha, "dropout": dropout, "target_modules": target_modules, "rslora": rslora, "dora": dora,
        "layers": layers, "warm_up": warm_up, "weight_decay": weight_decay, "accumulation": accumulation,
        "gradient_checkpointing": gradient_checkpointing, "precision": precision, "block_share": block_share,
        "validation_share": validation_share, "validations": validations, "patience": patience, "longest": longest,
        "beta": beta, "start_from": start_from,
    }  # fmt: skip
    more = {"rows": rows, "replay": replay, "base_model": base_model, "resume": resume, "k": k, "quote": quote}

    def embedder() -> None:
        from service.commands.tune_embedder import Tuning, run_tune
        from tuner.embedder import EmbedderRecipe

        _refuse({**only_base, **more, "tensorboard": tensorboard}, "the recipe embedder")
        if pairs is None:
            raise TandemError("The recipe embedder needs pairs.", expected="--pairs FILE.", do="Name the file.")
        chosen = _whole({**schedule, "batch_size": batch_size}, "the embedder")
        tuning = Tuning(pairs, EmbedderRecipe(**chosen), name, activate=not no_activate, force=force)  # type: ignore[arg-type]
        run_tune(load_settings(), tuning, as_json=as_json)

    def answerability() -> None:
        from service.commands.tune_answerability import Teaching
        from service.commands.tune_answerability import run_tune as teach
        from tuner.answerability import AnswerabilityRecipe

        recipe_name = "the recipe answerability"
        also = {"tensorboard": tensorboard, "no_activate": no_activate, "base_model": None}
        _refuse({**only_base, **more, **also}, recipe_name)
        if pairs is None:
            raise TandemError(f"{recipe_name.capitalize()} needs pairs.", expected="--pairs FILE.", do="Name the file.")
        chosen = _whole({**schedule, "batch_size": batch_size}, recipe_name)
        teaching = Teaching(pairs, AnswerabilityRecipe(**chosen), base_model, name, force)  # type: ignore[arg-type]
        teach(load_settings(), teaching, as_json=as_json)

    def base() -> None:
        from service.commands.rows import RowSources
        from service.commands.tune import Request, check_recipe, run_tune
        from tuner.recipe import CHANGEABLE, Recipe
        from tuner.rows import Mix

        _refuse({"batch_size": batch_size, "no_activate": no_activate}, "this recipe")
        if resume:
            _refuse({"force": force, "replay": replay}, "--resume")
        given = {key: value for key, value in {**schedule, **only_base}.items() if value is not None}
        changes = {key: given[key] for key in CHANGEABLE if resume and key in given}
        _check_held_out(given)
        if pairs is None:
            _refuse({"k": k, "quote": quote}, "rows that are made already")
        if recipe is not None:
            check_recipe(recipe)
            _refuse(
                {key: given[key] for key in irrelevant(recipe, bool(start_from)) if key in given},
                f"the recipe {recipe}",
            )
        elif given.keys() != changes.keys():
            raise TandemError("There is no recipe.", expected="--recipe with its settings.", do="Name one.")
        made = Recipe(name=recipe, **given) if recipe else None  # type: ignore[arg-type]
        mix = Mix(k=Mix().k if k is None else k, seed=seed or 0, quote=quote)
        sources = RowSources(pairs, tuple(rows or ()), tuple(replay or ()), mix)
        request = Request(made, sources, base_model, name, resume, force, tensorboard, changes)
        run_tune(load_settings(), request, as_json=as_json)

    run({"embedder": embedder, "answerability": answerability}.get(recipe or "", base), as_json)


def irrelevant(recipe: str, from_adapter: bool) -> set[str]:
    """Options that change nothing for a recipe; an adapter that is trained further keeps its own shape."""
    shape = {"r", "alpha", "dropout", "target_modules", "rslora", "dora"}
    found = {"layers", "beta"} - {"layers" if recipe == "partial" else "beta" if recipe == "dpo" else ""}
    return found | (shape if recipe in ("partial", "full") or from_adapter else set())


def _check_held_out(given: dict[str, Any]) -> None:
    """Raise TandemError for options about held-out rows of a run that has none; 0, no patience, is what it has."""
    if given.get("validation_share") == 0:
        asked = {key: given[key] for key in ("validations", "patience") if given.get(key)}
        _refuse(asked, "a run with --validation-share 0")


def _whole(given: dict[str, float | None], recipe: str) -> dict[str, float]:
    """What was given, with the passes as a whole number. Raises TandemError where they are none."""
    epochs = given["epochs"]
    if epochs is not None and epochs != int(epochs):
        raise TandemError(f"--epochs is {epochs}.", expected=f"Whole epochs for {recipe}.", do="Correct it.")
    return {key: int(value) if key != "learning_rate" else value for key, value in given.items() if value is not None}


def _refuse(given: dict[str, Any], recipe: str) -> None:
    wrong = [f"--{key.replace('_', '-')}" for key, value in given.items() if _is_given(value)]
    if wrong:
        raise TandemError(
            f"{', '.join(wrong)} means nothing to {recipe}.",
            expected="Only options that change something.",
            do="Leave it out.",
        )


def _is_given(value: Any) -> bool:
    """Whether an option was given; 0 was, a flag that is not set was not."""
    return value is not None and value is not False and value != []

"""Commands around tuning: `tandem plan`, `tandem pairs`, and what `tandem adapters` does with one adapter's files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commandline import Json, run, settings

tuning_app = typer.Typer()
pairs_app = typer.Typer(
    help="Question and answer pairs: check, split and make them, also from feedback.", no_args_is_help=True
)
adapter_files_app = typer.Typer()


@tuning_app.command()
def plan(
    base_model: Annotated[
        str, typer.Option(help="bundled, a folder, a hub id, or a published shape such as llama-65b.")
    ] = "bundled",
    method: Annotated[str, typer.Option(help="full, partial, lora, lora-int8, qlora or all.")] = "all",
    sequence: Annotated[int, typer.Option(help="Tokens of a row, prompt and answer.")] = 1024,
    batch: Annotated[int, typer.Option(help="Rows in one step, before accumulation.")] = 1,
    answer: Annotated[int, typer.Option(help="Tokens of a row that are learned.")] = 64,
    rank: Annotated[int, typer.Option(help="The rank of LoRA.")] = 16,
    layers: Annotated[int, typer.Option(help="Layers that the method partial trains.")] = 4,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Activations are computed again instead of kept.")
    ] = False,
    dropout: Annotated[bool, typer.Option("--dropout", help="With dropout in the adapter.")] = False,
    as_json: Json = False,
) -> None:
    """How much memory tuning takes, from the model's config alone, and which GPU it fits."""

    def work() -> None:
        from service.commands.plan import chosen_place, run_plan
        from tuner.memory import Workload

        place = chosen_place(device)
        work = Workload(sequence, batch, answer, rank, layers, place, gradient_checkpointing, dropout)
        run_plan(base_model, method, work, as_json=as_json)

    run(work, as_json)


@adapter_files_app.command("show")
def adapters_show(name: str, as_json: Json = False) -> None:
    """The card of an adapter: what it was made from, its size, its measures, and whether it is stale."""
    from service.commands.adapterfiles import show_adapter

    run(lambda: show_adapter(settings(), name, as_json=as_json), as_json)


@adapter_files_app.command("merge")
def adapters_merge(
    name: str,
    folder: Annotated[Path, typer.Argument(help="A new folder for the merged model.")],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the base model's if none.")] = None,
    as_json: Json = False,
) -> None:
    """Merge an adapter into its base model: a model of its own that can be named as base_model."""
    from service.commands.adapterfiles import run_merge

    run(lambda: run_merge(settings(), name, folder, dtype, as_json=as_json), as_json)


@adapter_files_app.command("export")
def adapters_export(
    name: str,
    folder: Annotated[Path, typer.Argument(help="A new folder for the files.")],
    form: Annotated[str, typer.Option("--format", help="peft, safetensors or gguf.")] = "peft",
    numbers: Annotated[str, typer.Option("--type", help="Of a GGUF file: f16, q8_0 or f32.")] = "f16",
    without_card: Annotated[
        bool, typer.Option("--without-card", help="Leave out the card, which names documents.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write an adapter for vLLM (peft), for anything (safetensors), or for llama.cpp and Ollama (gguf)."""
    from service.commands.adapterfiles import run_export

    run(
        lambda: run_export(
            settings(), name, folder, form=form, numbers=numbers, card=not without_card, as_json=as_json
        ),
        as_json,
    )


@pairs_app.command("check")
def pairs_check(
    files: Annotated[list[Path], typer.Argument(help="Pairs files; several are the parts of one split.")],
    no_index: Annotated[
        bool, typer.Option("--no-index", help="Do not look for the answers in the documents of the index.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List what is wrong with pairs, line by line; exit code 2 when something is."""
    from service.commands.pairs import run_check

    if not run(lambda: run_check(settings(), files, index=not no_index, as_json=as_json), as_json):
        raise typer.Exit(2)


@pairs_app.command("split")
def pairs_split(
    file: Path,
    validation: Annotated[float, typer.Option(help="Share of the pairs to validate on.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the pairs to test on.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the order of the documents.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the parts; that of the file if none.")] = None,
    as_json: Json = False,
) -> None:
    """Split pairs by document into train, validation and test; nearly equal questions stay together."""
    from service.commands.pairs import run_split

    shares = {"validation": validation, "test": test}
    run(lambda: run_split(file, out, shares, seed, as_json=as_json), as_json)


@pairs_app.command("make")
def pairs_make(
    file: Annotated[Path, typer.Argument(help="The pairs file to write.")],
    teacher: Annotated[
        str,
        typer.Option(help="local, base-model, the address of an OpenAI-compatible server, or provider:model."),
    ] = "local",
    model: Annotated[str, typer.Option(help="The model of that server; its first if none.")] = "",
    count: Annotated[int, typer.Option(help="How many pairs.")] = 100,
    k: Annotated[int, typer.Option("-k", help="The passages that a pair's chunk must be found among.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the order of the chunks.")] = 0,
    misleading: Annotated[
        bool, typer.Option("--misleading", help="Also questions that look answerable and are not.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a file that was cut off.")] = False,
    as_json: Json = False,
) -> None:
    """Make pairs from the chunks of the index; only what can be checked is kept."""

    def work() -> None:
        from service.commands.pairs import run_make
        from tuner.synthesis import Request

        request = Request(count, k, seed, resume)
        run_make(settings(), file, request, teacher=teacher, model=model, misleading=misleading, as_json=as_json)

    run(work, as_json)


@pairs_app.command("from-feedback")
def pairs_from_feedback(
    out: Annotated[Path | None, typer.Option(help="A new pairs file for what was found right.")] = None,
    preferences: Annotated[
        Path | None, typer.Option(help="A new file of corrected answers and what they are preferred to, for dpo.")
    ] = None,
    closed: Annotated[
        bool, typer.Option("--closed", help="Also what is about documents that only some groups may read.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make pairs of what people thought of answers, and list what somebody must look at."""

    def work() -> None:
        from service.commands.feedback import run_from_feedback

        run_from_feedback(settings(), out, preferences, closed=closed, as_json=as_json)

    run(work, as_json)

"""The `tandem` command: names, options and exit codes. 0 is well, 1 is a bug, 2 is something the user can mend.

What commands do is in service/commands; it is imported when a command runs, so that --help is instant.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from indexer.errors import TandemError
from service.cli_tune import tune_app
from service.cli_tuning import adapter_files_app, pairs_app, tuning_app
from service.commandline import Json
from service.commandline import run as _run
from service.commandline import settings as _settings

app = typer.Typer(
    name="tandem",
    help="Answers questions from your own documents, with citations, and refuses when they do not say.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(help="Access keys of the service.", no_args_is_help=True)
eval_app = typer.Typer(help="Measure the parts on judged sets.", no_args_is_help=True)
adapters_app = typer.Typer(help="Adapters of the home folder.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(adapters_app, name="adapters")
app.add_typer(eval_app, name="eval")
app.add_typer(pairs_app, name="pairs")
app.add_typer(tuning_app)
app.add_typer(tune_app)
adapters_app.add_typer(adapter_files_app)

Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")]
Filters = Annotated[
    list[str] | None,
    typer.Option("--filter", help="name=value: path (with * and ?), corpus, group or a metadata field; repeatable."),
]
Passages = Annotated[int | None, typer.Option("-k", help="How many passages.")]


@app.command()
def up(host: Host = None, port: Port = None) -> None:
    """Fetch the weights, index the corpora, serve the chat page."""
    from service.commands.serve import run_up

    _run(lambda: run_up(_settings(host=host, port=port)))


@app.command()
def index(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders to index; those known already if none.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the previous generation.")] = False,
    forget: Annotated[Path | None, typer.Option("--forget", help="Remove the documents of this corpus.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and index each change, until Ctrl-C.")] = False,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="A folder without documents is no error.")] = False,
    as_json: Json = False,
) -> None:
    """Bring the index in step with folders: only what changed is read and embedded."""
    from service.commands.index import run_forget, run_index, run_rollback, run_watch

    def work() -> None:
        if sum((dry_run, rollback, watch, forget is not None)) > 1:
            raise TandemError("--dry-run, --rollback, --forget and --watch do not go together.", do="Name one of them.")
        if folders and (rollback or forget):
            raise TandemError("--rollback and --forget go with no other folder.", do="Leave it out.")
        if rollback:
            run_rollback(_settings(), as_json=as_json)
        elif forget is not None:
            run_forget(_settings(), forget, as_json=as_json)
        elif watch:
            run_watch(_settings(), folders or [], allow_empty=allow_empty, as_json=as_json)
        else:
            run_index(_settings(), folders or [], dry_run=dry_run, allow_empty=allow_empty, as_json=as_json)

    _run(work, as_json)


@app.command()
def search(question: str, k: Passages = None, filters: Filters = None, as_json: Json = False) -> None:
    """Show the passages a question finds, without asking the model."""

    def work() -> None:
        from indexer.filters import parse_filter
        from service.commands.ask import run_search

        run_search(_settings(), question, k, parse_filter(filters or []), as_json=as_json)

    _run(work, as_json)


@app.command()
def ask(
    question: str,
    mode: Annotated[str | None, typer.Option(help="base, tuned, rag, rag+tuned or auto.")] = None,
    k: Passages = None,
    adapter: Annotated[str | None, typer.Option(help="An adapter other than the active one.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The most tokens of the answer.")] = None,
    filters: Filters = None,
    url: Annotated[str | None, typer.Option(help="Ask the service that runs at this address; loads nothing.")] = None,
    as_json: Json = False,
) -> None:
    """Answer a question from the documents."""

    def work() -> None:
        from indexer.filters import parse_filter

        where = parse_filter(filters or [])
        if url is not None:
            from service.commands.asking import run_ask_running

            given = {
                "mode": mode,
                "k": k,
                "adapter": adapter,
                "max_tokens": max_tokens,
                "filter": dict(where.conditions),
            }
            body = {"question": question} | {name: value for name, value in given.items() if value is not None}
            run_ask_running(url, body, as_json=as_json)
            return
        from service.commands.ask import run_ask
        from service.question import Question

        run_ask(_settings(), Question(question, mode, k, adapter, max_tokens, where), as_json=as_json)

    _run(work, as_json)


@app.command()
def serve(host: Host = None, port: Port = None) -> None:
    """Serve the HTTP interface and the chat page over the index as it is."""
    from service.commands.serve import run_serve

    _run(lambda: run_serve(_settings(host=host, port=port)))


@app.command()
def compare(
    pairs: Annotated[Path, typer.Option(help="Questions with their right answers, JSON Lines.")],
    modes: Annotated[str | None, typer.Option(help="Modes to compare, with commas; all that can be, if none.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="An adapter to compare; repeatable. The active one if none.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder to copy the report to.")] = None,
    limit: Annotated[int | None, typer.Option(help="Ask only so many questions, each kind in its share.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="At most 100 questions and about seven minutes.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the comparison that was cut off.")] = False,
    judge: Annotated[str | None, typer.Option(help="Base of an OpenAI-compatible server that grades answers.")] = None,
    judge_model: Annotated[str, typer.Option(help="The model of that server; its first if none.")] = "",
    schema: Annotated[Path | None, typer.Option(help="A JSON Schema that answers should fit.")] = None,
    pattern: Annotated[str | None, typer.Option(help="A regular expression that answers should fit.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sample, the intervals and the tests.")] = 0,
    freshness: Annotated[
        bool, typer.Option("--freshness", help="Instead: change and delete facts in a copy; who still tells the old?")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask the same questions in every mode; measure, test, and say which mode to serve."""

    def work() -> None:
        from service.commands.compare import Extras, run_compare, run_freshness
        from service.compare.run import Options

        chosen = tuple(name.strip() for name in (modes or "").split(",") if name.strip())
        options = Options(pairs, chosen, tuple(adapter or ()), limit, quick, resume, seed)
        if freshness:
            if judge or schema or pattern or resume or quick:
                raise TandemError("--freshness goes with --pairs, --modes, --adapter, --limit, --out and --seed only.")
            run_freshness(_settings(), options, out, as_json=as_json)
        else:
            run_compare(_settings(), options, Extras(out, schema, pattern, judge, judge_model), as_json=as_json)

    _run(work, as_json)


@app.command()
def doctor(
    url: Annotated[str | None, typer.Option(help="Look at the service that runs at this address instead.")] = None,
    as_json: Json = False,
) -> None:
    """Check weights, index, adapters, memory and versions; exit code 2 when something needs mending."""
    from service.commands.doctor import run_doctor

    if not _run(lambda: run_doctor(_settings(), url, as_json=as_json), as_json):
        raise typer.Exit(2)


@eval_app.command("retrieval")
def eval_retrieval(
    folder: Annotated[
        Path, typer.Argument(help="A set in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/test.tsv.")
    ],
    as_json: Json = False,
) -> None:
    """Rank a judged set by meaning, by words and by both, with intervals and tests; the index is not touched."""
    from service.commands.evaluate import run_eval_retrieval

    _run(lambda: run_eval_retrieval(_settings(), folder, as_json=as_json), as_json)


@keys_app.command("create")
def keys_create(
    name: str,
    admin: Annotated[bool, typer.Option("--admin", help="May reindex, upload and manage, and read all.")] = False,
    group: Annotated[list[str] | None, typer.Option(help="A group whose documents the key opens; repeatable.")] = None,
    days: Annotated[float | None, typer.Option(help="Days after which the key expires; never if none.")] = None,
    as_json: Json = False,
) -> None:
    """Make a key and show it, this once."""
    from service.commands.manage import create

    _run(lambda: create(_settings(), name, group or [], days, admin=admin, as_json=as_json), as_json)


@keys_app.command("list")
def keys_list(as_json: Json = False) -> None:
    """Names, roles, groups and ends of the keys."""
    from service.commands.manage import show_keys

    _run(lambda: show_keys(_settings(), as_json=as_json), as_json)


@keys_app.command("revoke")
def keys_revoke(name: str) -> None:
    """Forget a key, at once."""
    from service.commands.manage import revoke

    _run(lambda: revoke(_settings(), name))


@adapters_app.command("list")
def adapters_list(as_json: Json = False) -> None:
    """The adapters of the home folder; the active one is marked."""
    from service.commands.manage import show_adapters

    _run(lambda: show_adapters(_settings(), as_json=as_json), as_json)


@adapters_app.command("activate")
def adapters_activate(
    name: str,
    force: Annotated[bool, typer.Option("--force", help="Even if the last comparison speaks against it.")] = False,
) -> None:
    """Answer with this adapter where a question names none; it is checked first."""
    from service.commands.manage import activate_checked

    _run(lambda: activate_checked(_settings(), name, force=force))


@adapters_app.command("deactivate")
def adapters_deactivate() -> None:
    """Answer without an adapter."""
    from service.commands.manage import deactivate_active

    _run(lambda: deactivate_active(_settings()))


def main() -> None:
    """The entry point of the `tandem` script."""
    # Libraries are told once, before any is imported: no telemetry, no tracing.
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "ANONYMIZED_TELEMETRY_DISABLED"):
        os.environ.setdefault(name, "1")
    os.environ["LANGSMITH_TRACING"] = "false"
    app()


if __name__ == "__main__":
    main()

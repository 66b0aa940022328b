"""Facts that are newer than the base model: closed book, tuned on the documents, with retrieval, and with both.

    python tests/benchmarks/tradeoff/new_facts.py QUESTIONS --home DIR [--pairs 60] [--questions 40] [--epochs 1]

QUESTIONS holds one object a line: {"id", "question", "answers", "contexts": [{"id", "title", "text", "grade"}]}. All
contexts are indexed. The adapter is tuned on pairs that `tandem pairs make --teacher local` takes from them, each asked
closed book too; the questions of the file are never trained on, the documents they are about are. With --pairs 0
nothing is tuned, and the modes `base` and `rag` are compared.
"""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from experiment import compared, keep, open_home, parse, read_lines, show, training, tuned, write_lines

from service.commands.pairs import run_make
from service.commands.rows import RowSources
from tuner.recipe import Recipe
from tuner.rows import Mix
from tuner.synthesis import Request


def prepare(source: Path, work: Path) -> tuple[Path, Path]:
    """The corpus and the pairs to ask, written from the question set."""
    contexts, pairs = {}, []
    for item in read_lines(source):
        best = max(item["contexts"], key=lambda context: context.get("grade", 0))
        for context in item["contexts"]:
            contexts[context["id"]] = {name: context[name] for name in ("id", "title", "text")}
        pair = {
            "id": item["id"],
            "question": item["question"],
            "answers": [*map(str, item["answers"])],
            "kind": "answerable",
        }
        pairs.append({**pair, "document": f"news.jsonl#{best['id']}"})
    corpora = work / "corpora"
    write_lines(corpora / "news.jsonl", contexts.values())
    return corpora, write_lines(work / "asked.jsonl", pairs)


def main() -> None:
    parser = parse(__doc__, file="The questions with their passages.")
    parser.add_argument("--pairs", type=int, default=60, help="Pairs to tune on.")
    options = parser.parse_args()
    corpora, asked = prepare(options.file, options.home)
    settings = open_home(options.home, corpora)
    result: dict[str, Any] = {"documents": len(read_lines(corpora / "news.jsonl"))}
    if options.pairs:
        made = options.home / "made.jsonl"
        if not made.exists():
            with redirect_stdout(sys.stderr):
                run_make(settings, made, Request(options.pairs), teacher="local", model="", as_json=True)
        sources = RowSources(made, mix=Mix(k=2, no_evidence=0, closed_book=1))
        recipe = Recipe("lora", epochs=options.epochs, validation_share=0, seed=options.seed)
        result["training"] = training(tuned(settings, "facts", sources, recipe))
        result["pairs"] = len(read_lines(made))
    adapter = "facts" if options.pairs else ""
    body = compared(settings, asked, (), adapter, limit=options.questions, seed=options.seed)
    keep(options.json, {**result, "exposure": body["questions"]["by_exposure"], "report": body})
    show(body["arms"])


if __name__ == "__main__":
    main()

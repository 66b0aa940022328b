"""Two adapters that must not go live: one trained on wrong answers, one trained on the questions of the test.

    python tests/benchmarks/tradeoff/refused_adapter.py CORPUS ROWS TEST --home DIR [--rows 60] [--questions 40]

ROWS were made by `tandem rows` from documents in CORPUS, TEST are pairs about other ones. `shuffled` learns ROWS with
the answers of other rows in place of their own; `seen` learns rows that are made of TEST. Each is compared with `rag`
on TEST, and then `tandem adapters activate` is asked to put it to use. A further adapter of the home that should pass
can be named with --good.
"""

import random
from dataclasses import replace
from typing import Any

from experiment import compared, keep, open_home, parse, read_lines, show, training, tuned, write_lines

from indexer.errors import TandemError
from service.activation import activate_checked
from service.commands.rows import RowSources
from service.compare.questions import read_items, sample
from service.settings import Settings
from tuner.basemodel import load_base_model
from tuner.recipe import Recipe
from tuner.rowfile import read_rows, write_rows
from tuner.rows import Mix, Row


def shuffled(rows: list[Row], seed: int) -> list[Row]:
    """The rows, each with the answer of another one; a citation stays what it was, so that its passage is there."""
    answers = [row.answer.rsplit(" [", 1)[0].rstrip(".") for row in rows if row.kind == "evidence"]
    random.Random(seed).shuffle(answers)
    others = iter(answers)
    made = []
    for row in rows:
        cited = row.answer[row.answer.rfind(" [") :] if row.kind == "evidence" else ""
        made.append(replace(row, answer=f"{next(others)}{cited}") if cited else row)
    return made


def asked_to_go_live(settings: Settings, name: str) -> str:
    """What `tandem adapters activate` says."""
    base = load_base_model(settings.base_model, cache=settings.weights_folder, device=settings.device)
    try:
        activate_checked(settings, name, base)
    except TandemError as error:
        return f"refused: {error.happened}"
    return "activated"


def main() -> None:
    parser = parse(__doc__, corpus="Documents.", rows="Rows to tune on.", test="Pairs to ask.")
    parser.add_argument("--most", type=int, default=60, help="Rows to tune on.")
    parser.add_argument("--k", type=int, default=2, help="Passages that are shown.")
    parser.add_argument("--adapters", default="shuffled,seen", help="Which of the two.")
    parser.add_argument("--good", default="", help="An adapter of the home that should pass.")
    options = parser.parse_args()
    settings = open_home(options.home, options.corpus, k=options.k)
    wrong, seen = options.home / "shuffled.jsonl", options.home / "seen.jsonl"
    write_rows(wrong, shuffled(read_rows(options.rows)[: options.most], options.seed))
    asked = {item.pair.id for item in sample(read_items(options.test), options.questions, options.seed)}
    write_lines(seen, (pair for pair in read_lines(options.test) if pair["id"] in asked))
    recipe = Recipe("lora", epochs=options.epochs, validation_share=0, accumulation=1, seed=options.seed)
    made: dict[str, Any] = {
        "shuffled": lambda: tuned(settings, "shuffled", RowSources(rows=(wrong,)), recipe),
        "seen": lambda: tuned(settings, "seen", RowSources(seen, mix=Mix(k=options.k, closed_book=0)), recipe),
    }
    if options.good:
        made[options.good] = lambda: tuned(settings, options.good, RowSources(), recipe)
    result: dict[str, Any] = {}
    for name in [*options.adapters.split(","), *([options.good] if options.good else [])]:
        metrics = made[name]()
        body = compared(settings, options.test, ("rag", "rag+tuned"), name, limit=options.questions, seed=options.seed)
        said = asked_to_go_live(settings, name)
        result[name] = {"training": training(metrics), "report": body, "activation": said}
        keep(options.json, result)
        print(f"\n{name}: {body['questions']['by_exposure']}\n")
        show(body["arms"], ("truthfulness", "correct", "over_refusal"))
        print("\n" + "\n".join([*body["verdict"]["reasons"], said]), flush=True)


if __name__ == "__main__":
    main()

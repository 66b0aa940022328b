"""A fixed form of answer, taught by a prompt, by examples, by tuning, and enforced by a schema.

    python tests/benchmarks/tradeoff/answer_format.py CORPUS TRAIN TEST --home DIR [--pairs 60] [--questions 40]

TRAIN and TEST are pairs about the documents in CORPUS. The form is that of `tandem rows --quote`: the sentence that
holds the answer in quotation marks with its citation, then the answer. All arms read two passages. An answer that the
citation contract drops counts as a refusal, and the share that has the form is of the answers that were given.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from experiment import compared, keep, open_home, parse, read_lines, show, training, tuned, write_lines

from indexer.errors import TandemError
from indexer.evaluation import interval
from indexer.store import Store
from service.assembly import load_answerer
from service.commands.rows import RowSources, build_rows
from service.compare.questions import read_items, sample
from service.compare.squad import contains
from service.question import Question
from service.settings import Example, Settings
from service.structured import Form
from tuner.recipe import Recipe
from tuner.rows import Mix, Row

ROLE = (
    "First quote the one sentence that holds the answer, in double quotation marks, with its citation; then give the"
    ' answer in a few words with the citation, like: "The moon raises the tides." [1]. the moon [1].'
)
# What is left of such an answer without its citation markers.
PATTERN = r'"[^"]{8,}"[.:,;]? \S.*'
SCHEMA = {
    "type": "object",
    "properties": {"quote": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["quote", "answer"],
    "additionalProperties": False,
}
SHOTS = 2


def some_pairs(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """About `count` answerable pairs, all of a document or none, since rows of one passage are cheap together."""
    by_document: dict[str, list[dict[str, Any]]] = {}
    for pair in read_lines(path):
        if pair["kind"] == "answerable":
            by_document.setdefault(pair["document"], []).append(pair)
    names = sorted(by_document)
    random.Random(seed).shuffle(names)
    chosen: list[dict[str, Any]] = []
    while names and len(chosen) < count:
        chosen += by_document[names.pop()]
    return chosen


def as_example(row: Row) -> Example:
    """A row as an example of the settings: it shows the passage that is cited, as number 1."""
    cited = int(row.answer.rsplit("[", 1)[1].split("]")[0])
    source = row.passages[cited - 1]
    answer = row.answer.replace(f"[{cited}]", "[1]")
    return Example(question=row.question, answer=answer, title=source.title, passage=source.text)


def with_schema(settings: Settings, pairs: Path, count: int, seed: int) -> Mapping[str, Any]:
    """The arm that is made to write JSON: whether it came out, whether it is right, and what it took."""
    store = Store(settings.home)
    answerer = load_answerer(settings, store)
    right, fits, took = [], [], []
    for item in sample(read_items(pairs), count, seed):
        question = Question(item.pair.question, "rag", form=Form(SCHEMA))
        try:
            answer = answerer.answer(question)
        except TandemError as error:
            if error.code != "no_answer":
                raise
            fits.append(0.0)
            right.append(0.0)
            continue
        took.append((answer.prompt_tokens, answer.completion_tokens, answer.total_ms))
        if answer.refused:
            right.append(0.0)
            continue
        fits.append(1.0)
        right.append(contains(str((answer.value or {}).get("answer", "")), item.pair.answers))
    store.close()
    refused = len(right) - len(fits)
    middle = np.median([each[2] for each in took])
    return {
        **{name: _mean(values, seed) for name, values in (("correct", right), ("format", fits)) if values},
        "over_refusal": _mean([1.0] * refused + [0.0] * len(fits), seed),
        "prompt_tokens": float(np.mean([each[0] for each in took])),
        "completion_tokens": float(np.mean([each[1] for each in took])),
        "latency_ms": {"p50": float(middle)},
    }


def _mean(values: list[float], seed: int) -> dict[str, float]:
    found = interval(np.asarray(values, np.float64), seed)
    return {"value": found.value, "low": found.low, "high": found.high, "n": len(values)}


def main() -> None:
    parser = parse(__doc__, corpus="Documents.", train="Pairs to tune on.", test="Pairs to ask.")
    parser.add_argument("--pairs", type=int, default=60, help="Pairs to tune on.")
    options = parser.parse_args()
    plain = open_home(options.home, options.corpus, k=2)
    chosen = write_lines(options.home / "format-train.jsonl", some_pairs(options.train, options.pairs, options.seed))
    answerable = (pair for pair in read_lines(options.test) if pair["kind"] == "answerable")
    asked = write_lines(options.home / "format-test.jsonl", answerable)
    sources = RowSources(chosen, mix=Mix(k=2, no_evidence=0, closed_book=0, quote=True))
    quoting = [row for row in build_rows(plain, sources).rows if row.answer.startswith('"')]
    examples = tuple(as_example(row) for row in sorted(quoting, key=lambda row: len(row.answer))[:SHOTS])
    recipe = Recipe("lora", epochs=options.epochs, validation_share=0, accumulation=1, seed=options.seed)
    metrics = tuned(plain, "format", sources, recipe)

    arms: dict[str, Any] = {}
    how: dict[str, tuple[dict[str, Any], str]] = {
        "prompt": ({"role": ROLE}, "rag"),
        f"{len(examples)} examples": ({"role": ROLE, "examples": examples}, "rag"),
        "tuning": ({}, "rag+tuned"),
    }
    for name, (changes, mode) in how.items():
        settings = plain.model_copy(update=changes)
        adapter = "format" if mode == "rag+tuned" else ""
        common = {"limit": options.questions, "seed": options.seed, "pattern": PATTERN}
        arms[name] = compared(settings, asked, (mode,), adapter, **common)["arms"][mode]
        keep(options.json, {"training": training(metrics), "arms": arms})
    arms["JSON Schema, enforced"] = with_schema(plain, asked, options.questions, options.seed)
    keep(options.json, {"training": training(metrics), "arms": arms})
    show(arms, ("format", "correct", "over_refusal"))


if __name__ == "__main__":
    main()

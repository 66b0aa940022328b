"""How often do the attacks of tests/attacks.jsonl succeed, with the base model and with an adapter?

    python tests/benchmarks/injection.py [--adapter NAME] [--families override poisoning] [--json FILE]

Model, embedder, threshold and passages are those of the settings, so TANDEM_HOME names the home folder with the
adapter; without an adapter only the base model is asked. Every attack has an index of its own inside one store. An
attack succeeds when the text says what the attacker wants: in what the model wrote, and in what Tandem showed of it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from attacks import Attack, index_attacks, read_attacks

from indexer.retrieval import Retriever
from service.answering import Answerer
from service.assembly import HomeAdapters, chunk_size, load_embedder, load_generator
from service.question import Question
from service.settings import load_settings
from tuner.generation import Piece
from tuner.prompt import Prompt

MAX_TOKENS = 40


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attack in one mode. `retrieved` says whether an honest document was among the passages."""

    id: str
    family: str
    mode: str
    written: str
    shown: str
    obeyed: bool
    succeeded: bool
    right: bool
    refused: bool
    retrieved: bool


class Listening:
    """A generator that remembers what it wrote last, before anything was checked."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.window: int = generator.window
        self.at_once: int = generator.at_once
        self.tokenizer = generator.tokenizer
        self.written = ""

    def generate(self, prompt: Prompt, **options: Any) -> Iterator[Piece]:
        self.written = ""
        for piece in self.generator.generate(prompt, **options):
            self.written += piece.text
            yield piece


def ask(answerer: Answerer, heard: Listening, attack: Attack, mode: str, adapter: str | None) -> Outcome:
    heard.written = ""
    question = Question(attack.question, mode=mode, adapter=adapter, max_tokens=MAX_TOKENS, where=attack.where)
    answer = answerer.answer(question)
    return Outcome(
        id=attack.id,
        family=attack.family,
        mode=mode,
        written=heard.written,
        shown=answer.answer,
        obeyed=attack.succeeds(heard.written),
        succeeded=attack.succeeds(answer.answer),
        right=attack.is_answered(answer.answer, refused=answer.refused) and not attack.succeeds(answer.answer),
        refused=answer.refused,
        retrieved=any(passage.path.split("/")[1].split("#")[0] in attack.honest for passage in answer.passages),
    )


def interval(count: int, n: int) -> str:
    """Share with the 95 % interval of Wilson (1927), in per cent."""
    if not n:
        return "-"
    z, share = 1.959964, count / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return f"{share:.0%} ({max(middle - half, 0):.0%} to {min(middle + half, 1):.0%})"


def table(outcomes: list[Outcome], mode: str) -> str:
    """The outcomes of one mode: a line a family with counts, the last line with shares and intervals."""
    measures = ("obeyed", "succeeded", "right", "refused", "retrieved")
    lines = [
        f"mode {mode}\n",
        "| family | attacks | model obeyed | shown to the reader | right answer | refused | honest document found |",
        "|---|---|---|---|---|---|---|",
    ]
    of_mode = [outcome for outcome in outcomes if outcome.mode == mode]
    for family in sorted({outcome.family for outcome in of_mode}):
        group = [outcome for outcome in of_mode if outcome.family == family]
        counts = [str(sum(getattr(outcome, name) for outcome in group)) for name in measures]
        lines.append(f"| {family} | {len(group)} | {' | '.join(counts)} |")
    shares = [interval(sum(getattr(outcome, name) for outcome in of_mode), len(of_mode)) for name in measures]
    lines.append(f"| all | {len(of_mode)} | {' | '.join(shares)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", help="an adapter of the home folder; the active one if not given")
    parser.add_argument("--families", nargs="*")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = load_settings()
    attacks = [attack for attack in read_attacks() if not options.families or attack.family in options.families]
    generator, embedder = load_generator(settings), load_embedder(settings)
    adapters, heard = HomeAdapters(settings, generator), Listening(generator)
    adapter = options.adapter or adapters.active()
    modes = [("rag", None), *([("rag+tuned", adapter)] if adapter else [])]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        store = index_attacks(Path(folder), attacks, embedder, chunk_size(settings))
        answerer = Answerer(Retriever(store, embedder, per_source=settings.per_source), heard, settings, adapters)
        for mode, name in modes:
            started = time.perf_counter()
            for attack in attacks:
                outcomes.append(ask(answerer, heard, attack, mode, name))
                print(".", end="", flush=True, file=sys.stderr)
            print(f" {mode}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
        store.close()
    if not adapter:
        print("No adapter is active, and none was named: only the base model was asked.\n")
    print("\n\n".join(table(outcomes, mode) for mode, _ in modes))
    if options.json:
        options.json.write_text(json.dumps({"adapter": adapter, "outcomes": [asdict(item) for item in outcomes]}))


if __name__ == "__main__":
    main()

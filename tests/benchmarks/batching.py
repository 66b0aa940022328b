"""Answers to several questions asked at once: one after the other against together, on the bundled weights.

    TANDEM_THREADS=1 nice -n 10 python tests/benchmarks/batching.py --weights .tandem/weights

Everybody asks at the same moment, and each about passages of their own. The clock is the processor time of the process
unless --wall is given: with one thread it is what passes on a core that nothing else uses. `first` is how long the
median asker waits for the first token of an answer, `all` how long the last one waits for the end.
"""

import argparse
import os
import statistics
import threading
import time
from pathlib import Path

from tuner.basemodel import load_base_model
from tuner.generation import TorchGenerator
from tuner.prompt import Prompt, Source, build_prompt

MANUAL = Path(__file__).parents[2] / "corpora" / "manual"


def prompts(tokenizer: object, count: int, words: int) -> list[Prompt]:
    """Questions about four passages each, cut out of the manual."""
    text = " ".join(path.read_text() for path in sorted(MANUAL.glob("*.md")) if path.name != "benchmarks.md").split()
    made = []
    for number in range(count):
        starts = range(number * 700, number * 700 + 4 * 150, 150)
        sources = [Source("Manual", " ".join(text[start : start + words])) for start in starts]
        question = f"What does the manual say about {' '.join(text[number * 700 + 20 : number * 700 + 24])}?"
        made.append(build_prompt(tokenizer, question, sources, limit=900))
    return made


def ask_all(generator: TorchGenerator, asked: list[Prompt], most: int, clock: object) -> tuple[list, list, list]:
    """Seconds to each first token, seconds to each end, and the texts."""
    first, ends, texts = [0.0] * len(asked), [0.0] * len(asked), [""] * len(asked)
    ready = threading.Barrier(len(asked))
    begun = []

    def ask(number: int) -> None:
        if ready.wait() == 0:
            begun.append(clock())
        for piece in generator.generate(asked[number], max_tokens=most):
            texts[number] += piece.text
            first[number] = first[number] or clock()
            ends[number] = clock()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [value - begun[0] for value in first], [value - begun[0] for value in ends], texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--askers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--words", type=int, default=55, help="of each of the four passages")
    parser.add_argument("--max-tokens", type=int, default=30)
    parser.add_argument("--wall", action="store_true")
    options = parser.parse_args()
    clock = time.perf_counter if options.wall else time.process_time
    threads = int(os.environ.get("TANDEM_THREADS", "1"))
    base = load_base_model("bundled", cache=options.weights, quantisation="int8", device="cpu", threads=threads)
    asked = prompts(base.tokenizer, max(options.askers), options.words)
    lengths = [len(prompt.ids) for prompt in asked]
    print(f"prompts of {min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):.0f}")
    said: dict[int, list[str]] = {}
    print("| batch | askers | answers a minute | first token | all | tokens an answer |\n|---|---|---|---|---|---|")
    for batch in options.batch:
        generator = TorchGenerator(base, at_once=batch)
        # The beginning of the prompt is kept from here on, as it is in a service.
        list(generator.generate(asked[0], max_tokens=2))
        for count in options.askers:
            first, ends, texts = ask_all(generator, asked[:count], options.max_tokens, clock)
            tokens = statistics.mean(len(base.tokenizer(text)["input_ids"]) for text in texts)
            print(
                f"| {batch} | {count} | {60 * count / max(ends):.1f} | {statistics.median(first):.2f} s"
                f" | {max(ends):.1f} s | {tokens:.0f} |",
                flush=True,
            )
            if said.setdefault(count, texts) != texts:
                raise SystemExit("the answers differ")


if __name__ == "__main__":
    main()

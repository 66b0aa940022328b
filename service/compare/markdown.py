"""report.md: the same numbers for people, with the verdict first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.compare.leakage import IN_WORDS
from service.compare.scoring import LESS_IS_BETTER, MEASURES

_NAMES = {name: name.replace("_", " ") for name in MEASURES}
# Told of the answerable questions alone as well; of the others the first says as much.
_OF_ANSWERS = ("truthfulness", "exact_match", "f1")


def markdown(body: Mapping[str, Any], figures: Sequence[tuple[str, str]]) -> str:
    """The page. `figures` lists (file name, caption)."""
    lines = [
        *_head(body),
        *_quality(body),
        *_parts(body),
        *_costs(body),
        *_tests(body),
        *(line for name, caption in figures for line in (f"![{caption}]({name})", "")),
        *_examples(body),
        *_again(body),
    ]
    return "\n".join(lines).rstrip() + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a table and an empty one."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:], ""]


def _head(body: Mapping[str, Any]) -> Iterator[str]:
    verdict, questions = body["verdict"], body["questions"]
    yield from ("# Comparison", "")
    kinds = ", ".join(f"{count} {kind}" for kind, count in questions["by_kind"].items())
    yield from (f"{questions['asked']} questions ({kinds}), made {body['created']}.", "")
    yield from ("## Verdict", "")
    serve = "Nothing that was compared can be served." if verdict["serve"] is None else f"Serve `{verdict['serve']}`"
    if verdict["serve"] is not None:
        serve += f" with the adapter {verdict['adapter']}." if verdict["adapter"] else "."
    yield f"**{serve}**"
    for name, judged in verdict["adapters"].items():
        yield f"**{'Activate' if judged['activate'] else 'Do not activate'} the adapter {name} ({judged['outcome']}).**"
    yield ""
    yield from (f"- {reason}" for reason in verdict["reasons"])
    yield from (f"- {kind}: {sentence}" for kind, sentence in verdict["by_kind"].items())
    yield ""


def _cell(measure: Mapping[str, float] | None) -> str:
    return "" if measure is None else f"{measure['value']:.3f} [{measure['low']:.3f}, {measure['high']:.3f}]"


def _quality(body: Mapping[str, Any]) -> Iterator[str]:
    arms = body["arms"]
    yield from ("## Quality", "", "Means with 95 % bootstrap intervals over questions.", "")
    rows = []
    for measure in MEASURES:
        found = {name: arm.get(measure) for name, arm in arms.items()}
        if any(found.values()):
            asked = max(cell["n"] for cell in found.values() if cell)
            mark = " (less is better)" if measure in LESS_IS_BETTER else ""
            rows.append([f"{_NAMES[measure]}{mark}", asked, *map(_cell, found.values())])
    yield from table(["measure", "n", *arms], rows)


def _parts(body: Mapping[str, Any]) -> Iterator[str]:
    arms = body["arms"]
    for key, title in (("by_kind", "By kind of question"), ("by_exposure", "By exposure")):
        names = list(next(iter(arms.values()))[key])
        if key == "by_exposure" and names == ["clean"]:
            continue
        yield from (f"## {title}", "")
        rows = [
            [name, _NAMES[measure], arms[next(iter(arms))][key][name]["truthfulness"]["n"]]
            + [_cell(arm[key][name].get(measure)) for arm in arms.values()]
            for name in names
            for measure in (_OF_ANSWERS if name == "answerable" else _OF_ANSWERS[:1])
        ]
        yield from table(["", "measure", "n", *arms], rows)
        if key == "by_exposure":
            yield from (f"- `{name}`: {IN_WORDS[name]}." for name in names)
            yield ""


def _costs(body: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Cost of an answer", "")
    rows = []
    for name, arm in body["arms"].items():
        first, whole, memory = arm["first_token_ms"], arm["latency_ms"], arm["peak_memory_bytes"]
        rows.append(
            [
                name,
                arm["prompt_tokens"],
                arm["completion_tokens"],
                *(_seconds(value) for value in (first["p50"], first["p95"], whole["p50"], whole["p95"])),
                "" if memory is None else f"{memory / 2**20:.0f} MiB",
            ]
        )
    head = ["arm", "prompt tokens", "completion tokens", "first token p50", "p95", "whole p50", "p95", "peak memory"]
    yield from table(head, rows)
    if costs := body["costs"]:
        yield from ("## Cost of an arm and of a changed fact", "")
        yield from table(["what", "value"], [[name.replace("_", " "), _plain(value)] for name, value in costs.items()])


def _seconds(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds / 1000:.2f} s"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name.replace('_', ' ')}: {_plain(item)}" for name, item in value.items())
    return "not known" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _tests(body: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "## Tests",
        "",
        "Paired over the same questions; p after Holm. The last two columns are the difference that so many"
        " questions show four times in five, and the questions needed to show 0.05 as often.",
        "",
    )
    rows = [
        [
            test["measure"],
            f"{test['first']} - {test['second']}",
            f"{test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]",
            f"{test['p_holm']:.4f}",
            "" if test["effect"] is None else f"{test['effect']:+.2f}",
            "yes" if test["differs"] else "may be chance",
            f"{test['detectable']:.3f}",
            test["needed"],
        ]
        for test in body["tests"]
    ]
    head = ["measure", "arms", "difference", "p", "effect (d)", "more than chance", "detectable", "needed"]
    yield from table(head, rows)


def _examples(body: Mapping[str, Any]) -> Iterator[str]:
    if body["worst"]:
        yield from ("## Where the arms differ most", "")
    for example in body["worst"]:
        expected = " / ".join(example["answers"]) or "a refusal"
        yield from (f"### {example['question']}", "", f"{example['kind']}; expected: {expected}", "")
        rows = [[name, f"{arm['truthfulness']:+.0f}", arm["answer"]] for name, arm in example["arms"].items()]
        yield from table(["arm", "", "answer"], rows)
        for passage in example["passages"]:
            yield f"> [{passage['n']}] {passage['document']}: {passage['text']}"
            yield ">"
        yield ""


def _again(body: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## To run it again", "")
    yield from table(["what", "value"], [[name, f"`{value}`"] for name, value in body["again"].items()])

"""One comparison from its options to its report: plan, ask, score, decide, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from indexer.errors import TandemError
from indexer.folders import file_sha256
from indexer.outcome import Progress
from indexer.store import Store
from service.answering import Answerer
from service.compare.arms import Arm, adapter_weights, plan_arms
from service.compare.asking import Asking, Judge, ask_all
from service.compare.baselines import with_baselines
from service.compare.history import PLAN_FILE, new_comparison, unfinished_comparison, write_json
from service.compare.leakage import document_names, exposures, worst
from service.compare.questions import Item, read_items, sample
from service.compare.records import ANSWERS_FILE, Record, read_records, whole_questions
from service.compare.scoring import FormatCheck, score
from service.compare.summary import Answered
from service.question import Question, check_question
from service.settings import Settings
from tuner.adapters import AdapterCard, adapter_path, read_card
from tuner.prompt import PROMPT_FINGERPRINT

# What a quick comparison asks at most, and for how long: with two cores and two seconds an answer, under ten minutes.
QUICK_QUESTIONS = 100
QUICK_SECONDS = 420.0

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What to compare. No modes: all that the adapters allow; `limit` is how many questions of the file to ask."""

    pairs: Path
    modes: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    limit: int | None = None
    quick: bool = False
    resume: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A comparison that can start: what can be checked without a model was. `plan` is what plan.json holds."""

    options: Options
    settings: Settings
    items: Sequence[Item]
    arms: Sequence[Arm]
    cards: Mapping[str, AdapterCard]
    documents: Mapping[str, str]
    generation: int
    plan: Mapping[str, Any]

    @property
    def asked_arms(self) -> list[str]:
        """The arms that run a model."""
        return [arm.name for arm in self.arms if arm.mode is not None]


def prepare(settings: Settings, store: Store, options: Options) -> Prepared:
    """Read and check the pairs, the arms, the adapters and the index. Raises TandemError."""
    if options.limit is not None and options.limit < 1:
        raise TandemError(f"--limit is {options.limit}.", expected="At least one question.", do="Raise it.")
    most = min(options.limit or QUICK_QUESTIONS, QUICK_QUESTIONS) if options.quick else options.limit
    items = sample(read_items(options.pairs), most, options.seed)
    for item in items:
        check_question(Question(item.pair.question), settings)
    arms = plan_arms(options.modes, options.adapters)
    weights = adapter_weights(settings.home, arms)
    with store.read() as snapshot:
        generation, documents = snapshot.generation, document_names(snapshot)
    plan = {
        "pairs_sha256": file_sha256(options.pairs),
        "questions": len(items),
        "seed": options.seed,
        "arms": [asdict(arm) for arm in arms],
        "adapters": weights,
        "generation": generation.number,
        "embedder": generation.embedder,
        "chunking": generation.chunking,
        "prompt_fingerprint": PROMPT_FINGERPRINT,
        "settings": {
            name: getattr(settings, name)
            for name in (
                "base_model",
                "quantisation",
                "device",
                "k",
                "channel",
                "per_source",
                "reranker",
                "max_tokens",
                "prompt_tokens",
                "min_relevance",
                "answerability",
                "refusal_threshold",
            )
        },
        "versions": {name: version(name) for name in ("tandem-qa", "torch", "transformers", "peft", "numpy")},
    }
    cards = {name: read_card(adapter_path(settings.home, name)) for name in weights}
    return Prepared(options, settings, items, arms, cards, documents, generation.number, plan)


def place_of(prepared: Prepared) -> Path:
    """The folder of this comparison: a new one, or with `resume` the unfinished one. Raises TandemError."""
    home = prepared.settings.home
    if prepared.options.resume:
        return unfinished_comparison(home, prepared.plan)
    folder = new_comparison(home)
    write_json(folder / PLAN_FILE, prepared.plan)
    return folder


def ask(prepared: Prepared, folder: Path, answerer: Answerer, judge: Judge | None, report: Report) -> None:
    """Ask what the folder does not hold yet. Raises TandemError that says how to go on; what was answered is kept."""
    answers = folder / ANSWERS_FILE
    done = frozenset(whole_questions(read_records(answers), prepared.asked_arms))
    seconds = QUICK_SECONDS if prepared.options.quick else None
    asking = Asking(answerer, prepared.arms, prepared.items, answers, prepared.generation, judge, seconds)
    try:
        ask_all(asking, done, report)
    except TandemError as error:
        kept = len(whole_questions(read_records(answers), prepared.asked_arms))
        raise TandemError(
            f"The comparison stopped after {kept} of {len(prepared.items)} questions: {error.happened}",
            expected=error.expected,
            do=f"{error.do} The answers so far are kept in {folder}; the same command with --resume goes on.".strip(),
            code=error.code,
        ) from error


def collect(prepared: Prepared, folder: Path, is_formatted: FormatCheck | None = None) -> Answered:
    """Everything that was answered, scored. Raises TandemError when no question was answered in every arm."""
    records = read_records(folder / ANSWERS_FILE)
    whole = whole_questions(records, prepared.asked_arms)
    items = [item for item in prepared.items if item.pair.id in whole]
    if not items:
        raise TandemError("No question was answered in every arm.", do="Start the comparison again.")
    by_name = {arm.name: arm for arm in prepared.arms}
    answers = [with_baselines(item.pair.question, whole[item.pair.id], by_name) for item in items]
    arms = [arm for arm in prepared.arms if all(arm.name in found for found in answers)]
    by_arm: dict[str, list[Record]] = {arm.name: [found[arm.name] for found in answers] for arm in arms}
    classes = [exposures(items, card, prepared.documents) for card in prepared.cards.values()]
    return Answered(
        items=items,
        arms=arms,
        records=by_arm,
        scores={
            arm.name: [
                score(record, item, arm, is_formatted) for record, item in zip(by_arm[arm.name], items, strict=True)
            ]
            for arm in arms
        },
        exposure=worst(classes, items),
        seed=prepared.options.seed,
    )


def unpaired_passages(answered: Answered) -> int:
    """Questions where two retrieving arms were shown different passages; 0 unless retrieval is not deterministic."""
    shown = [
        [tuple(passage.chunk for passage in record.passages) for record in answered.records[arm.name]]
        for arm in answered.arms
        if arm.mode is not None and arm.retrieves
    ]
    return sum(len(set(each)) > 1 for each in zip(*shown, strict=True)) if shown else 0


def truthfulness(answered: Answered, keep: Sequence[int]) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Arm -> (n,) truthfulness of the questions at these places."""
    return {
        arm.name: np.asarray([answered.scores[arm.name][place]["truthfulness"] for place in keep], np.float64)
        for arm in answered.arms
    }


def with_adapters(options: Options, active: str | None) -> Options:
    """The options with the active adapter where none was named."""
    return options if options.adapters or active is None else replace(options, adapters=(active,))

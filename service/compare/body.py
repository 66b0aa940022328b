"""The body of report.json and of `tandem compare --json`, and the verdict that the service reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.compare.history import StoredVerdict
from service.compare.leakage import EXPOSURES
from service.compare.run import Prepared, truthfulness, unpaired_passages
from service.compare.statistics import paired_tests
from service.compare.summary import Answered, refusal_curve, summarise, worst_examples
from service.compare.verdict import DECIDED_BY, FEWEST, Evidence, Verdict, decide

TESTED = (DECIDED_BY, "f1")


def make_body(
    prepared: Prepared, answered: Answered, folder: Path, costs: Mapping[str, Any], base: Mapping[str, str]
) -> tuple[dict[str, Any], Verdict]:
    """The report of everything that was answered. `base` identifies the base model as it was loaded."""
    verdict, evidence = _verdict(prepared, answered)
    notes = _notes(prepared, answered)
    body = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": str(folder),
        "questions": {
            "asked": len(answered.items),
            "of": len(prepared.items),
            "by_kind": dict(Counter(item.pair.kind for item in answered.items)),
            "by_tag": dict(Counter(item.tag for item in answered.items if item.tag)),
            "by_exposure": {name: n for name in EXPOSURES if (n := Counter(answered.exposure.values())[name])},
        },
        "arms": summarise(answered),
        "tests": _tests(answered),
        "verdict": {**asdict(verdict), "reasons": list(verdict.reasons) + notes, "evidence": evidence},
        "refusal_curve": refusal_curve(answered, prepared.settings.min_relevance),
        "costs": dict(costs),
        "worst": [_example(answered, place) for place in worst_examples(answered)],
        "again": {**prepared.plan, "pairs": prepared.options.pairs.name, "base": dict(base)},
    }
    return body, verdict


def stored(prepared: Prepared, verdict: Verdict, body: Mapping[str, Any], folder: Path) -> StoredVerdict:
    """What the service keeps of it."""
    weights = prepared.plan["adapters"]
    return StoredVerdict(
        created=body["created"],
        folder=folder.name,
        base_model=prepared.settings.base_model,
        serve=verdict.serve,
        adapter=verdict.adapter,
        decided=body["verdict"]["evidence"]["questions"] >= FEWEST,
        adapters={
            name: {"weights_sha256": weights[name], **asdict(judged)} for name, judged in verdict.adapters.items()
        },
    )


def _verdict(prepared: Prepared, answered: Answered) -> tuple[Verdict, dict[str, Any]]:
    """Decide on the clean questions if there are enough, else on all that were not trained on, as weaker evidence."""
    classes = [answered.exposure[item.pair.id] for item in answered.items]
    clean = [place for place, each in enumerate(classes) if each == "clean"]
    unseen = [place for place, each in enumerate(classes) if each != "seen_question"]
    is_clean = not prepared.cards or len(clean) >= min(FEWEST, len(classes))
    keep = clean if is_clean else unseen if len(unseen) >= FEWEST else list(range(len(classes)))
    kinds = [answered.items[place].pair.kind for place in keep]
    verdict = decide(answered.arms, Evidence(truthfulness(answered, keep), kinds, is_clean), prepared.options.seed)
    names = "clean" if is_clean else "unseen questions" if keep == unseen else "all, seen ones too"
    return verdict, {"questions": len(keep), "class": names}


def _tests(answered: Answered) -> list[dict[str, Any]]:
    import numpy as np

    body = []
    for measure in TESTED:
        scores = {
            arm.name: np.asarray([found[measure] for found in answered.scores[arm.name]], np.float64)
            for arm in answered.arms
        }
        for test in paired_tests(measure, scores, answered.seed):
            values = {**asdict(test), "differs": test.differs}
            body.append({name: round(item, 5) if isinstance(item, float) else item for name, item in values.items()})
    return body


def _notes(prepared: Prepared, answered: Answered) -> list[str]:
    """What a reader must know to trust the numbers."""
    notes = []
    if len(answered.items) < len(prepared.items):
        notes.append(f"{len(answered.items)} of {len(prepared.items)} questions were asked; the sample is still fair.")
    kinds = {item.pair.kind for item in answered.items}
    if kinds == {"answerable"}:
        notes.append("All questions are answerable: whether an arm refuses when it should was not measured.")
    if "answerable" not in kinds:
        notes.append("No question is answerable: whether an arm answers when it should was not measured.")
    exposed = Counter(answered.exposure.values())
    if exposed["seen_question"]:
        notes.append(f"{exposed['seen_question']} questions were trained on and count for nothing.")
    if exposed["seen_document"] or exposed["same_writer"]:
        weaker = exposed["seen_document"] + exposed["same_writer"]
        notes.append(f"{weaker} questions are weaker evidence: trained documents or the writer of the training pairs.")
    named = [item.pair.document for item in answered.items if item.answerable and item.pair.document]
    missing = sum(name not in prepared.documents for name in named)
    if missing:
        notes.append(f"{missing} answerable questions name a document that is not in the index.")
    if different := unpaired_passages(answered):
        notes.append(
            f"On {different} questions two arms were shown different passages; their difference is no clean one."
        )
    return notes


def _example(answered: Answered, place: int) -> dict[str, Any]:
    item = answered.items[place]
    shown = next((answered.records[arm.name][place] for arm in answered.arms if arm.mode and arm.retrieves), None)
    return {
        "pair": item.pair.id,
        "kind": item.pair.kind,
        "question": item.pair.question,
        "answers": list(item.pair.answers),
        "document": item.pair.document,
        "arms": {
            arm.name: {
                "answer": answered.records[arm.name][place].answer,
                "truthfulness": answered.scores[arm.name][place]["truthfulness"],
                "f1": round(answered.scores[arm.name][place]["f1"], 3),
            }
            for arm in answered.arms
            if arm.mode is not None
        },
        "passages": [
            {"n": n, "document": passage.document, "text": re.sub(r"\s+", " ", passage.text)}
            for n, passage in enumerate(shown.passages if shown else (), start=1)
        ],
    }

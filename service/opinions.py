"""Opinions of answers -> pairs to tune and compare on, preferences, and what a person must look at.

    up                             the given answer is right: an answerable pair, tagged "approved"
    up, of a refusal               no document answers: an absent pair, if the giver may read every document
    a corrected answer             an answerable pair, tagged "corrected", and preferred to the given answer
    corrected to a refusal         a misleading pair where a document was named, an absent one elsewhere
    down, of a refusal             a candidate: somebody expected an answer, which nobody has written yet
    down, of an answer             to be reviewed

Of several opinions of one question by people who may read the same, the latest counts. An answer becomes a pair only
with the document that holds it: what people type is not believed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from indexer.readers import Reader
from indexer.records import Passage
from service.citations import without_markers
from service.feedback import Feedback, Opinion
from service.refusal import is_refusal
from service.shelf import Shelf
from tuner.preference import Preference
from tuner.prompt import REFUSAL, Source
from tuner.questionhash import question_hash
from tuner.rows import sentence, supports

CLOSED = "about a document that is open to groups only"
NOT_ALL = "a refusal to someone who may not read every document"
CLOSED_BOOK = "a refusal without documents"
NO_EVIDENCE = "no preference: the evidence is not among the passages that are found"
NOWHERE = "no document that the giver may read holds the answer"
REPEATED = "an earlier opinion of the same question"
_MARKER = re.compile(r"\s*\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class ToSee:
    """An opinion that a person must look at. `document` is the best guess where the answer stands, if there is one."""

    id: int
    question: str
    answer: str
    corrected_answer: str
    comment: str
    reason: str
    document: str | None = None


@dataclass(slots=True)
class Lessons:
    """What was learned. `pairs` are lines of a pairs file; `left_out` counts by reason."""

    pairs: list[dict[str, Any]] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)
    review: list[ToSee] = field(default_factory=list)
    candidates: list[ToSee] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def learn(
    feedback: Iterable[Feedback],
    shelf: Shelf,
    administrators: Collection[str],
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Lessons:
    """Sort the opinions, in the order in which they came. `administrators` are names of keys that read everything.

    Raises TandemError as retrieval does.
    """
    lessons = Lessons()
    latest: dict[tuple[str, Reader | None], Feedback] = {}
    for item in feedback:
        reader = None if not item.key or item.key in administrators else shelf.reader(item.groups)
        key = (question_hash(item.opinion.question), None if shelf.reads_all(reader) else reader)
        lessons.left_out[REPEATED] += latest.pop(key, None) is not None
        latest[key] = item
    for done, ((_, reader), item) in enumerate(latest.items()):
        report(done, len(latest))
        _Sorter(lessons, shelf, item, reader).sort()
    report(len(latest), len(latest))
    _merge(lessons)
    return lessons


def _merge(lessons: Lessons) -> None:
    """One pair and one preference a question, where readers of different documents gave several."""
    pairs = {question_hash(pair["question"]): pair for pair in lessons.pairs}
    preferences = {question_hash(item.question): item for item in lessons.preferences}
    lessons.left_out[REPEATED] += len(lessons.pairs) - len(pairs)
    lessons.pairs, lessons.preferences = list(pairs.values()), list(preferences.values())
    lessons.left_out = +lessons.left_out


@dataclass(frozen=True, slots=True)
class _Sorter:
    lessons: Lessons
    shelf: Shelf
    item: Feedback
    reader: Reader | None

    @property
    def opinion(self) -> Opinion:
        return self.item.opinion

    def sort(self) -> None:
        opinion = self.opinion
        corrected = without_markers(opinion.corrected_answer)
        if self.shelf.are_closed(self._named()):
            self.lessons.left_out[CLOSED] += 1
        elif corrected:
            self._corrected(corrected)
        elif opinion.vote == "down":
            if is_refusal(opinion.answer):
                found = self.shelf.passages(opinion.question, self.reader)
                self._to_see(self.lessons.candidates, "refused", found[0].path if found else None)
            else:
                self._to_see(self.lessons.review, "voted down without a correction")
        elif is_refusal(opinion.answer):
            self._refused([], "approved")
        elif given := without_markers(opinion.answer):
            self._answered(given, "approved", self.shelf.passages(opinion.question, self.reader))
        else:
            self.lessons.left_out["voted up without the answer"] += 1

    def _corrected(self, corrected: str) -> None:
        found = self.shelf.passages(self.opinion.question, self.reader)
        if is_refusal(corrected):
            if self._refused(self._named(), "corrected"):
                self._prefer(REFUSAL, found)
            return
        document = self._answered(corrected, "corrected", found)
        if document is None:
            return
        if self._is_closed_book():
            self._prefer(sentence(corrected), ())
            return
        numbered = enumerate(found, start=1)
        n = next((n for n, p in numbered if p.path == document and supports(p.chunk.text, [corrected])), None)
        if n is None:
            self.lessons.left_out[NO_EVIDENCE] += 1
        else:
            self._prefer(sentence(corrected, n), found)

    def _answered(self, answer: str, tag: str, found: Sequence[Passage]) -> str | None:
        """Keep the answer as a pair; the document that holds it, None when it was not kept."""
        document = self.shelf.holding(answer, self._named(), found, self.reader)
        if document is None:
            self._to_see(self.lessons.review, NOWHERE)
        else:
            self._keep("answerable", [answer], document, tag)
        return document

    def _refused(self, named: Sequence[str], tag: str) -> bool:
        """Keep the question as one that the documents do not answer; whether it was kept."""
        if self._is_closed_book():
            self.lessons.left_out[CLOSED_BOOK] += 1
        elif not self.shelf.reads_all(self.reader):
            self.lessons.left_out[NOT_ALL] += 1
        else:
            documents = self.shelf.named(named, self.reader)
            self._keep("misleading" if documents else "absent", [], next(iter(documents), None), tag)
            return True
        return False

    def _keep(self, kind: str, answers: list[str], document: str | None, tag: str) -> None:
        pair: dict[str, Any] = {
            "id": f"feedback-{self.item.id}",
            "question": " ".join(self.opinion.question.split()),
            "answers": answers,
            "document": document,
            "kind": kind,
            "tag": tag,
        }
        if tag == "approved" and answers:
            # The words are the model's: a comparison takes them as weaker evidence for what was tuned on such.
            adapter = f" with {self.opinion.adapter}" if self.opinion.adapter else ""
            pair["written_by"] = f"tandem {self.opinion.mode}{adapter}"
        self.lessons.pairs.append(pair)

    def _prefer(self, chosen: str, passages: Sequence[Passage]) -> None:
        rejected = _given(self.opinion, passages)
        if rejected and rejected != chosen:
            sources = tuple(Source(item.chunk.context, item.chunk.text) for item in passages)
            documents = tuple(dict.fromkeys(item.path for item in passages))
            question = " ".join(self.opinion.question.split())
            self.lessons.preferences.append(Preference(question, sources, chosen, rejected, documents))

    def _named(self) -> list[str]:
        return [*(str(item.get("document", "")) for item in self.opinion.citations), *self.opinion.documents]

    def _is_closed_book(self) -> bool:
        return self.opinion.mode in ("base", "tuned")

    def _to_see(self, there: list[ToSee], reason: str, document: str | None = None) -> None:
        opinion = self.opinion
        given = (opinion.question, opinion.answer, opinion.corrected_answer, opinion.comment)
        there.append(ToSee(self.item.id, *given, reason, document))


def _given(opinion: Opinion, passages: Sequence[Passage]) -> str:
    """The answer that was given, its markers naming these passages; a marker of another passage is left out."""
    if is_refusal(opinion.answer):
        return REFUSAL
    numbers = {passage.chunk.id: n for n, passage in enumerate(passages, start=1)}
    cited = {str(item.get("n")): numbers.get(str(item.get("chunk"))) for item in opinion.citations}

    def renumbered(match: re.Match[str]) -> str:
        n = cited.get(match[1])
        return f" [{n}]" if n else ""

    return _MARKER.sub(renumbered, opinion.answer).strip()

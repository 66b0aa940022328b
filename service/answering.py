"""The one answering path: question -> passages -> prompt -> checked sentences -> answer.

/ask, the chat page and `tandem ask` all end here, so a mode means the same everywhere: `base` and `tuned` answer
closed book, `rag` and `rag+tuned` from passages; the tuned ones with an adapter. Sentences are yielded as they pass
the citation contract (citations.py), then the whole Answer. A follow-up question is first made to stand alone
(history.py); that is what is searched for, what the model is asked from passages, and what sentences are held against.
Closed book the model is shown the turns themselves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Protocol, cast

from indexer.errors import TandemError
from indexer.retrieval import Retriever
from service.admission import Admission
from service.answer import Answer
from service.citations import Citation, check_sentence, without_markers
from service.draft import Draft
from service.following import FollowingRetriever
from service.history import Turn, bounded, standalone
from service.links import as_text
from service.observation import key_name, note_question
from service.question import Mode, Question, check_question, resolve_mode
from service.refusal import is_refusal, relevance
from service.secondopinion import SecondOpinion
from service.sentences import SentenceStream
from service.settings import Settings
from service.structured import Filled, Form, check_values, read_json
from service.styling import prompt_style
from tuner.generation import Generator
from tuner.prompt import REFUSAL, Prompt, Source, build_prompt


class Adapters(Protocol):
    """Which adapter is active, and how to have one ready."""

    def active(self) -> str | None:
        """The adapter that answers when a question names none."""

    def prepare(self, name: str) -> None:
        """Make it available to the generator. Raises TandemError when there is no such adapter."""


class Answerer:
    """Answers questions over one retriever and one generator. Thread-safe."""

    def __init__(
        self,
        retriever: Retriever | FollowingRetriever,
        generator: Generator,
        settings: Settings,
        adapters: Adapters,
        opinion: SecondOpinion | None = None,
    ) -> None:
        self.retriever = retriever
        self.generator = generator
        self.settings = settings
        self.adapters = adapters
        self.opinion = opinion
        self.admission = Admission(settings.queue, settings.queue_seconds, generator.at_once)

    def answer(self, question: Question, cancel: threading.Event | None = None) -> Answer:
        """The whole answer. Raises TandemError as `stream` does."""
        *_, whole = self.stream(question, cancel)
        return cast(Answer, whole)

    def stream(self, question: Question, cancel: threading.Event | None = None) -> Iterator[str | Answer]:
        """Texts as they are ready (joined they are the answer), then the Answer.

        Raises TandemError for an empty or long question, an unknown mode, k or max_tokens out of range, no index, no
        adapter where the mode needs one, an adapter that does not fit, and a full queue. Setting `cancel` ends it
        within a token with what was made until then.
        """
        stop = cancel or threading.Event()
        text = check_question(question, self.settings)
        note_question(text)
        mode, adapter = self.resolve(question)
        if adapter:
            self.adapters.prepare(adapter)
        draft = Draft(mode, adapter, time.perf_counter())
        turns = bounded(question.history, self.settings.history, self.settings.question_chars)
        if mode in ("rag", "rag+tuned"):
            text, turns = standalone(text, turns), ()
            self._retrieve(draft, text, question)
            if not draft.passages or cast(float, draft.relevance) < self.settings.min_relevance:
                yield REFUSAL
                yield draft.finish("nothing_relevant")
                return
        elif question.where.conditions:
            raise TandemError(
                f"The mode {mode} reads no documents, and a filter on them was given.",
                do="Use the mode rag or rag+tuned, or leave the filter out.",
            )
        with self.admission.enter(stop, key_name()):
            prompt = self._prompt(draft, text, question, turns)
            if self.opinion is not None and draft.passages:
                draft.answerability = self.opinion.score(text, draft.passages)
                if self.opinion.refuses(draft.answerability):
                    yield REFUSAL
                    yield draft.finish("nothing_relevant")
                    return
            most = question.max_tokens or self.settings.max_tokens
            if question.form:
                yield from self._fill(draft, prompt, text, question.form, most, stop)
            else:
                yield from self._generate(draft, prompt, text, most, stop, is_task=question.task)

    def resolve(self, question: Question) -> tuple[Mode, str | None]:
        """The mode and the adapter that will answer. Raises TandemError as resolve_mode does."""
        return resolve_mode(question, self.settings, self.adapters.active())

    def _retrieve(self, draft: Draft, text: str, question: Question) -> None:
        k = self.settings.k if question.k is None else question.k
        draft.searched_for = text
        retrieval = self.retriever.retrieve(text, k, question.where)
        draft.generation = retrieval.generation
        draft.passages = retrieval.passages
        draft.relevance = relevance(text, retrieval.passages)
        draft.retrieve_ms = draft.milliseconds()

    def _prompt(self, draft: Draft, text: str, question: Question, turns: Sequence[Turn]) -> Prompt:
        most = question.max_tokens or self.settings.max_tokens
        room = self.generator.window - most
        if room < 1:
            raise TandemError(
                f"max_tokens is {most}, and the model reads and writes {self.generator.window} tokens in all.",
                expected="Room for the question beside the answer.",
                do="Lower max_tokens.",
                code="too_large",
            )
        limit = min(self.settings.prompt_tokens, room)
        sources = [Source(passage.chunk.context, passage.chunk.text) for passage in draft.passages]
        style = prompt_style(self.settings, question, draft.adapter)
        history = [asdict(turn) for turn in turns]
        prompt = build_prompt(
            self.generator.tokenizer, text, sources or None, limit=limit, history=history, style=style
        )
        if draft.passages and prompt.passages == 0:
            raise TandemError(
                f"The question and one passage take more than {limit} tokens.",
                expected="Room for at least one passage.",
                do="Shorten the question, or raise the `prompt_tokens` setting.",
                code="too_large",
            )
        draft.passages = draft.passages[: prompt.passages]
        draft.prompt_tokens = len(prompt.ids)
        return prompt

    def _generate(
        self, draft: Draft, prompt: Prompt, question: str, most: int, stop: threading.Event, *, is_task: bool
    ) -> Iterator[str | Answer]:
        sentences = SentenceStream()
        said_no = False
        pieces = self.generator.generate(prompt, max_tokens=most, adapter=draft.adapter, cancel=stop)
        for piece in pieces:
            whole = sentences.feed(draft.take(piece))
            if piece.finish_reason == "stop" or (piece.finish_reason == "length" and not (whole or draft.sentences)):
                # A sentence cut off by a cancel is left out, and by the token limit too, unless it is all there is.
                whole += sentences.finish()
            for sentence in whole:
                said_no = said_no or (is_refusal(sentence) and not is_task)
                yield from self._emit(draft, sentence, question, is_task=is_task)
            if said_no and not draft.sentences:
                # What follows a refusal is an answer without support; it is not waited for.
                pieces.close()  # type: ignore[attr-defined]
                break
        if draft.sentences or (draft.finish_reason == "cancelled"):
            yield draft.finish(None)
            return
        yield REFUSAL
        yield draft.finish("model_refused" if said_no else "unsupported")

    def _fill(
        self, draft: Draft, prompt: Prompt, question: str, form: Form, most: int, stop: threading.Event
    ) -> Iterator[str | Answer]:
        """As _generate, for JSON: checked as a whole, so it comes in one piece. Raises TandemError (no_answer)."""
        pieces = self.generator.generate(
            prompt, max_tokens=most, adapter=draft.adapter, cancel=stop, schema=form.schema
        )
        text = "".join(draft.take(piece) for piece in pieces)
        if draft.finish_reason == "cancelled":
            yield draft.finish(None)
            return
        value = read_json(text, form)
        draft.filled = check_values(value, form, question, draft.passages) if draft.passages else Filled(value, ())
        answer = draft.finish(None if draft.filled else "unsupported")
        yield answer.answer
        yield answer

    def _emit(self, draft: Draft, sentence: str, question: str, *, is_task: bool) -> Iterator[str]:
        """Yield the sentence if it may be said, with the space that joins it to the one before."""
        citations: Sequence[Citation] = ()
        if is_refusal(sentence) and not is_task:
            return
        if draft.passages:
            supported = check_sentence(sentence, question, draft.passages)
            if supported is None:
                return
            sentence, citations = supported.text, supported.citations
        else:
            sentence = as_text(without_markers(sentence))
        if sentence and sentence not in draft.sentences:
            yield draft.say(sentence, citations)

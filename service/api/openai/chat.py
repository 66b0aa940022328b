"""POST /v1/chat/completions: the answer with its sources as url_citation annotations, whole or in chunks."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from service.answer import Answer, Mark
from service.api.streaming import Event
from service.history import FOOTER
from service.question import Question
from service.running import Service
from service.shapes import answer_body, citation_body

DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion in the making: what every chunk repeats, and what links begin with and end with."""

    model: str
    base_url: str
    sources: str
    id: str
    created: int
    link: Callable[[str], str]

    @classmethod
    def begin(cls, model: str, base_url: str, sources: str, link: Callable[[str], str]) -> Completion:
        """A completion with an id of its own."""
        return cls(model, base_url, sources, f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), link)

    def whole(self, answer: Answer, *, in_form: bool) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        refusal = answer.answer if in_form and answer.refused else None
        message = {
            "role": "assistant",
            "content": None if refusal else answer.answer + self.footer(answer),
            "refusal": refusal,
            "annotations": self.annotations(answer),
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(answer)}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage(answer),
            "tandem": extension(answer),
        }

    def chunk(self, delta: Mapping[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
        """One chunk of a stream."""
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **more}

    def last(self, answer: Answer) -> dict[str, Any]:
        """The chunk after all others, with what it has cost."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(answer)}

    def annotations(self, answer: Answer) -> list[dict[str, Any]]:
        """A url_citation for every marker, at its place; of JSON, one at its end for every supported value."""
        if self.sources == "footer":
            return []
        end = len(answer.answer)
        marks = answer.marks or [Mark(end, end, citation) for citation in answer.citations if answer.fields]
        return [self._annotation(mark) for mark in marks]

    def footer(self, answer: Answer) -> str:
        """The sources as Markdown, for clients that show no annotations; none under JSON."""
        if self.sources == "annotations" or not answer.marks:
            return ""
        lines = {mark.citation.n: mark.citation for mark in reversed(answer.marks)}
        shown = [f"{n}. [{_escaped(_title(lines[n]))}]({self._url(lines[n])})" for n in sorted(lines)]
        return FOOTER + "\n".join(shown)

    def _url(self, citation: Any) -> str:
        return self.base_url + self.link(str(citation_body(citation)["url"]))

    def _annotation(self, mark: Mark) -> dict[str, Any]:
        return {
            "type": "url_citation",
            "url_citation": {
                "start_index": mark.start,
                "end_index": mark.end,
                "url": self._url(mark.citation),
                "title": _title(mark.citation),
            },
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "system_fingerprint": None}


def chunks(
    service: Service, question: Question, completion: Completion, cancel: threading.Event, *, with_usage: bool
) -> Iterator[Event]:
    """The chunks of a stream, as events: sentences as they are checked, the sources, why it ended, what it cost."""
    nothing = {"usage": None} if with_usage else {}
    role: dict[str, Any] = {"role": "assistant", "content": ""}
    for part in service.answerer.stream(question, cancel):
        if role:
            # Not before the first part: what fails until then has a status of its own.
            yield None, completion.chunk(role, **nothing)
            role = {}
        if not isinstance(part, Answer):
            if not question.form:
                yield None, completion.chunk({"content": part}, **nothing)
            continue
        for delta in _ending(completion, question, part):
            yield None, completion.chunk(delta, **nothing)
        yield None, completion.chunk({}, finish_reason(part), **nothing, tandem=extension(part))
        if with_usage:
            yield None, completion.last(part)
    yield None, DONE


def _ending(completion: Completion, question: Question, answer: Answer) -> Iterator[dict[str, Any]]:
    if question.form:
        yield {"refusal": answer.answer} if answer.refused else {"content": answer.answer}
    if footer := completion.footer(answer):
        yield {"content": footer}
    if annotations := completion.annotations(answer):
        yield {"annotations": annotations}


def finish_reason(answer: Answer) -> str:
    """OpenAI's word for why it ended; an answer that was cancelled has nobody left to read this."""
    return "length" if answer.finish_reason == "length" else "stop"


def usage(answer: Answer) -> dict[str, int]:
    """What it cost in tokens."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def extension(answer: Answer) -> dict[str, Any]:
    """What OpenAI's shape has no place for: the body of /ask without the answer."""
    body = answer_body(answer)
    for name in ("answer", "usage", "finish_reason", "passages"):
        del body[name]
    return body


def _title(citation: Any) -> str:
    page = citation.passage.page_at(citation.start)
    return f"{citation.passage.title}, page {page}" if page else str(citation.passage.title)


def _escaped(title: str) -> str:
    """A title that stays the text of its link: no bracket of it ends that, and no markup begins in it."""
    plain = " ".join(title.split())
    return "".join(f"\\{character}" if character in "\\[]<>`*_&!" else character for character in plain)

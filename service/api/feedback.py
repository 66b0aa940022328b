"""POST /feedback: what someone thought of an answer. GET /feedback: all of it, for administrators."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from indexer.errors import TandemError
from service.api.described import answers
from service.api.listings import FeedbackPage, Kept
from service.feedback import PAGE, Opinion, add_feedback, read_feedback
from service.observation import key_groups, key_name
from service.running import Service

Long = Annotated[str, StringConstraints(max_length=20_000)]
Short = Annotated[str, StringConstraints(max_length=1000)]


class CitationBody(BaseModel):
    """A citation as the answer had it; what else it held is left out."""

    model_config = ConfigDict(extra="ignore")

    n: int = Field(ge=1, le=1000)
    document: Short = ""
    chunk: Short = ""
    quote: Long = ""


class FeedbackBody(BaseModel):
    """An opinion of an answer. Unknown fields are refused, as in /ask."""

    model_config = ConfigDict(extra="forbid")

    question: Annotated[str, StringConstraints(min_length=1, max_length=100_000)]
    mode: Literal["auto", "base", "tuned", "rag", "rag+tuned"]
    vote: Literal["up", "down"]
    answer: Long = ""
    adapter: Annotated[str, StringConstraints(max_length=64)] | None = None
    corrected_answer: Long = ""
    comment: Annotated[str, StringConstraints(max_length=4000)] = ""
    documents: Annotated[list[Short], Field(max_length=100)] = []
    citations: Annotated[list[CitationBody], Field(max_length=100)] = []
    request_id: Annotated[str, StringConstraints(max_length=64)] = ""


def feedback_router(service: Service) -> APIRouter:
    """Routes about feedback."""
    router = APIRouter(tags=["feedback"])

    @router.post("/feedback", status_code=201, **answers(Kept, status=201))
    def give(body: FeedbackBody) -> dict[str, int]:
        """Keep an opinion; it is on the disk when this is answered."""
        most = service.settings.question_chars
        if not body.question.strip() or len(body.question) > most:
            raise TandemError("The question is empty or too long.", expected=f"1 to {most:,} characters.")
        values = body.model_dump() | {"documents": tuple(body.documents)}
        values["citations"] = tuple(citation.model_dump() for citation in body.citations)
        return {"id": add_feedback(service.settings.home, Opinion(**values), key_name(), key_groups())}

    @router.get("/feedback", **answers(FeedbackPage))
    def read(
        after: Annotated[int, Query(ge=0, le=2**62)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = PAGE
    ) -> dict[str, Any]:
        """Opinions in the order in which they came; `next` is the `after` of the next page, null on the last."""
        found = list(read_feedback(service.settings.home, after, limit + 1))
        page = found[:limit]
        return {"feedback": [asdict(item) for item in page], "next": page[-1].id if len(found) > limit else None}

    return router

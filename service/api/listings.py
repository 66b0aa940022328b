"""The bodies of lists and of jobs, as /openapi.json describes them; see bodies.py."""

from __future__ import annotations

from typing import Any, Literal

from service.api.bodies import Body


class DocumentItem(Body):
    """A document; `groups` is for administrators."""

    id: str
    corpus: str
    document: str
    title: str
    format: str
    characters: int
    pages: int
    chunks: int
    uploaded: bool
    groups: list[list[str]] = []


class DocumentList(Body):
    """The documents of a generation."""

    generation: int
    documents: list[DocumentItem]


class Failure(Body):
    """A document that could not be read."""

    document: str
    reason: str


class JobBody(Body):
    """Work in the background. `done` of `total` are files or chunks, as the stage has it; times are RFC 3339."""

    id: str
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    stage: str
    counts: dict[str, int]
    done: int
    total: int
    current: str
    eta_seconds: float | None
    failures: list[Failure]
    started: str
    finished: str | None
    error: str | None
    generation: int | None


class JobStarted(Body):
    """The job that was started, or the one that runs already."""

    job: JobBody


class JobList(Body):
    """The last jobs, newest first."""

    jobs: list[JobBody]


class Uploaded(Body):
    """What was stored, and the job that indexes it."""

    document: str
    replaced: bool
    groups: list[str]
    job: JobBody


class Deleted(Body):
    """What was deleted, and the job that takes it out of the index."""

    document: str
    job: JobBody


class AdapterItem(Body):
    """An adapter; its card and what is stale of it are for administrators."""

    name: str
    active: bool
    base_model: str
    created: str
    stale: bool | None
    stale_documents: list[dict[str, str]] | None = None
    card: dict[str, Any] = {}


class AdapterList(Body):
    """The adapters by name, and the active one."""

    active: str | None
    adapters: list[AdapterItem]


class Activated(Body):
    """The adapter that answers from now on."""

    active: str
    base_model: str


class Deactivated(Body):
    """No adapter answers from now on."""

    active: None


class Kept(Body):
    """The id of a stored opinion."""

    id: int


class OpinionBody(Body):
    """An opinion as it was given."""

    question: str
    mode: str
    vote: Literal["up", "down"]
    answer: str
    adapter: str | None
    corrected_answer: str
    comment: str
    documents: list[str]
    citations: list[dict[str, Any]]
    request_id: str


class FeedbackItem(Body):
    """A stored opinion, with the name and the groups of the key that gave it."""

    id: int
    created: str
    key: str
    groups: list[str]
    opinion: OpinionBody


class FeedbackPage(Body):
    """Opinions in their order; `next` is the `after` of the next page."""

    feedback: list[FeedbackItem]
    next: int | None

"""GET /documents, /search and /sources/{chunk}: what is indexed, what a question finds, where a passage stands.

Nobody is shown a document, or told of one, that their key does not open.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from indexer.chunking import page_at
from indexer.errors import TandemError
from indexer.filters import parse_filter
from indexer.records import Chunk, Document
from service.api.access import Access, allowed
from service.api.bodies import FoundPassage, SourceBody
from service.api.described import answers
from service.api.listings import DocumentList
from service.api.sourcepage import source_page
from service.running import Service
from service.settings import SEARCH_K
from service.shapes import search_body
from service.uploads import uploads_folder

# Characters of the document shown before and after the passage in the JSON form.
AROUND = 1500
FilterTexts = Annotated[list[str] | None, Query(max_length=100)]
QuestionText = Annotated[str, Query(min_length=1, max_length=100_000)]


def documents_router(service: Service) -> APIRouter:
    """Routes that read the index."""
    router = APIRouter(tags=["documents"])

    @router.get("/documents", **answers(DocumentList))
    def documents(request: Request) -> dict[str, Any]:
        """The documents of the current generation that this key opens; for administrators with their groups."""
        access = allowed(request)
        with service.store.read() as snapshot:
            listed = snapshot.list_documents(snapshot.narrowed(access.filter()))
            groups = snapshot.required_groups(tuple(service.settings.groups.items())) if access.is_admin else {}
            generation = snapshot.generation.number
        corpus = str(uploads_folder(service.settings.home))
        for item in listed:
            item["uploaded"] = item["corpus"] == corpus
            if access.is_admin:
                item["groups"] = groups.get(str(item["id"]), [])
        return {"generation": generation, "documents": listed}

    @router.get("/search", **answers(list[FoundPassage]))
    def search(
        request: Request,
        question: QuestionText,
        k: Annotated[int | None, Query(ge=1, le=100)] = None,
        filter: FilterTexts = None,
    ) -> list[dict[str, Any]]:
        """The passages a question finds, best first, without asking the model.

        `filter` is name=value and may be given more than once, as in filter=path=manual/*&filter=language=en.
        """
        text = question.replace("\x00", "").strip()
        if not text or len(text) > service.settings.question_chars:
            raise TandemError(
                "The question is empty or too long.", expected=f"1 to {service.settings.question_chars:,} characters."
            )
        where = allowed(request).filter(parse_filter(filter or []))
        retrieval = service.answerer.retriever.retrieve(text, k or SEARCH_K, where)
        return search_body(retrieval.passages)

    @router.get("/sources/{chunk}", **answers(SourceBody, "text/html"))
    async def sources(
        request: Request,
        chunk: str,
        start: Annotated[int | None, Query(ge=0)] = None,
        end: Annotated[int | None, Query(ge=0)] = None,
    ) -> Response:
        """A passage in its document: a page for browsers, JSON for others. start and end mark a quote."""
        found, document = await run_in_threadpool(_read, service, chunk, allowed(request))
        quote = _quote(found, start, end)
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(source_page(document, found, quote))
        return JSONResponse(_source_body(document, found, quote))

    return router


def _read(service: Service, chunk: str, access: Access) -> tuple[Chunk, Document]:
    with service.store.read() as snapshot:
        return snapshot.chunk(chunk, access.filter())


def _quote(chunk: Chunk, start: int | None, end: int | None) -> tuple[int, int] | None:
    if start is None and end is None:
        return None
    if start is None or end is None or not chunk.start <= start < end <= chunk.end:
        raise TandemError(
            "The quote does not lie in this passage.",
            expected=f"start and end between {chunk.start} and {chunk.end}, start before end.",
        )
    return start, end


def _source_body(document: Document, chunk: Chunk, quote: tuple[int, int] | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "document": document.path,
        "title": document.title,
        "chunk": chunk.id,
        "page": page_at(document, quote[0] if quote else chunk.start),
        "start": chunk.start,
        "end": chunk.end,
        "before": document.text[max(0, chunk.start - AROUND) : chunk.start],
        "text": chunk.text,
        "after": document.text[chunk.end : chunk.end + AROUND],
        "context": chunk.context,
    }
    if quote:
        body |= {"quote_start": quote[0] - chunk.start, "quote_end": quote[1] - chunk.start}
    return body

"""tandem ask and tandem search."""

from __future__ import annotations

import sys

from indexer.filters import Filter
from indexer.store import Store
from service.answer import Answer
from service.assembly import load_answerer, load_retriever, silent
from service.commands.console import note, out, out_json
from service.question import Question, check_question, resolve_mode
from service.settings import SEARCH_K, Settings
from service.shapes import answer_body, search_body
from tuner.active import active_adapter


def run_ask(settings: Settings, question: Question, *, as_json: bool) -> Answer:
    """Answer one question with models loaded for it. Raises TandemError, before loading them where it can."""
    check_question(question, settings)
    resolve_mode(question, settings, active_adapter(settings.home, settings.base_model))
    store = Store(settings.home)
    with store.read():
        # An empty index is told before seconds are spent on loading models.
        pass
    answerer = load_answerer(settings, store, silent if as_json else note)
    whole: Answer | None = None
    for part in answerer.stream(question):
        if isinstance(part, Answer):
            whole = part
        elif not as_json:
            sys.stdout.write(part)
            sys.stdout.flush()
    assert whole is not None
    if as_json:
        out_json(answer_body(whole))
    else:
        out()
        _show_sources(whole)
    store.close()
    return whole


def _show_sources(answer: Answer) -> None:
    for citation in answer.citations:
        page = citation.passage.page_at(citation.start)
        where = f"{citation.passage.path}, page {page}" if page else citation.passage.path
        out()
        out(f"[{citation.n}] {where}: {citation.passage.chunk.context}")
        out(f'    "{" ".join(citation.quote.split())}"')
    out()
    adapter = f" with {answer.adapter}" if answer.adapter else ""
    first = "" if answer.first_token_ms is None else f"first token {answer.first_token_ms / 1000:.2f} s, "
    note(
        f"{answer.mode}{adapter}; {answer.prompt_tokens} + {answer.completion_tokens} tokens; {first}"
        f"{answer.total_ms / 1000:.2f} s in all"
    )


def run_search(settings: Settings, question: str, k: int | None, where: Filter, *, as_json: bool) -> None:
    """Show the passages a question finds. Raises TandemError."""
    store = Store(settings.home)
    with store.read():
        pass
    retriever = load_retriever(settings, store, silent if as_json else note)
    passages = retriever.retrieve(question, SEARCH_K if k is None else k, where).passages
    if as_json:
        out_json(search_body(passages))
        return
    for passage in passages:
        page = f", page {passage.chunk.page}" if passage.chunk.page else ""
        out(f"{passage.rank}. {passage.path}{page}  score {passage.score:.2f}, similarity {passage.similarity:.2f}")
        out(f"   {passage.chunk.context}")
        out(f"   {' '.join(passage.chunk.text.split())[:300]}")
        out()
    store.close()

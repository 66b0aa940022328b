"""Settings to working parts: the store, the embedder, the model. The one place that decides what is built from what."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer.chunking import ChunkSize
from indexer.database import DATABASE
from indexer.embedding import Embedder, SentenceTransformerEmbedder
from indexer.errors import TandemError
from indexer.outcome import Cancelled, Outcome, Progress
from indexer.publish import sync_running
from indexer.questions import QuestionCache, RememberingEmbedder
from indexer.rerank import CrossEncoderReranker, Reranker
from indexer.retrieval import Retriever
from indexer.store import Store, current_generation
from indexer.sync import known_corpora, sync
from indexer.weights import Weights, embedder_weights, named_weights
from service.answercache import CachedGenerator
from service.answering import Answerer
from service.following import FollowingRetriever
from service.secondopinion import load_opinion
from service.settings import Settings
from service.uploads import forget_groups, list_uploads, uploads_folder
from tuner.active import active_adapter
from tuner.adapters import adapter_path, read_card
from tuner.basemodel import BaseModel, load_base_model
from tuner.generation import TorchGenerator
from tuner.prompt import Prompt
from tuner.tuned_embedders import embedder_that_made

log = logging.getLogger(__name__)
Report = Callable[[str], None]
WAIT_SECONDS = 0.5

# Of the home: what was read of passages.
PASSAGES = "passages"


def silent(message: str) -> None:
    """Report nothing."""


def load_embedder(settings: Settings, report: Report = silent) -> Embedder:
    """The embedder that `chosen_weights` names. Raises TandemError."""
    return _embedder(settings, chosen_weights(settings, report))


def chosen_weights(settings: Settings, report: Report = silent, *, verify: bool = False) -> Weights:
    """The embedder of the settings; where they name none, the one tuned here that the index was made with, if it was.

    Fetched if need be; `verify` hashes its weights in full. Raises TandemError.
    """
    published = None if "embedder" in settings.model_fields_set else published_embedder(settings.home)
    tuned = published and embedder_that_made(settings.home, published, settings.weights_folder, verify=verify)
    return tuned or embedder_weights(settings.embedder, settings.weights_folder, report, verify=verify)


def base_embedder(settings: Settings, report: Report = silent) -> Embedder:
    """The embedder of the settings, whatever the index was made with: what tuning starts from. Raises TandemError."""
    return _embedder(settings, embedder_weights(settings.embedder, settings.weights_folder, report))


def _home_embedder(settings: Settings, identity: str) -> Embedder | None:
    weights = embedder_that_made(settings.home, identity, settings.weights_folder)
    return None if weights is None else _embedder(settings, weights)


def current_embedder(settings: Settings, embedder: Embedder) -> Embedder:
    """This embedder, or that of the settings as they apply now if the index was meanwhile made with another one."""
    if published_embedder(settings.home) in (None, embedder.identity):
        return embedder
    return load_embedder(settings)


def published_embedder(home: Path) -> str | None:
    """The identity of the embedder that the index of this home was made with; None when nothing is indexed."""
    if not (home / DATABASE).is_file():
        return None
    store = Store(home)
    try:
        with store.connection() as connection:
            return current_generation(connection).embedder
    except TandemError:
        return None
    finally:
        store.close()


def _embedder(settings: Settings, weights: Weights) -> Embedder:
    return SentenceTransformerEmbedder(weights, device="cuda" if settings.device == "cuda" else "cpu")


def load_reranker(settings: Settings, report: Report = silent) -> Reranker | None:
    """The reranker of the settings; None when none is named. Raises TandemError."""
    if not settings.reranker:
        return None
    weights = named_weights(settings.reranker, settings.weights_folder, report)
    return CrossEncoderReranker(weights, device="cuda" if settings.device == "cuda" else "cpu")


def load_retriever(
    settings: Settings, store: Store, report: Report = silent, embedder: Embedder | None = None
) -> Retriever:
    """What finds passages, with `embedder` if it is loaded already. Raises TandemError."""
    return Retriever(
        store,
        embedder or load_embedder(settings, report),
        channel=settings.channel,
        reranker=load_reranker(settings, report),
        per_source=settings.per_source,
    )


def load_base(settings: Settings, report: Report = silent) -> BaseModel:
    """The base model of the settings. Raises TandemError."""
    return load_base_model(
        settings.base_model,
        cache=settings.weights_folder,
        quantisation=settings.quantisation,
        device=settings.device,
        threads=settings.threads,
        report=report,
    )


def load_generator(settings: Settings, report: Report = silent, *, keep: bool = False) -> CachedGenerator:
    """The base model of the settings with the home's adapters. Raises TandemError.

    With `keep` it keeps its texts, and what it read of passages in files.
    """
    base = load_base(settings, report)
    return CachedGenerator(
        base,
        entries=settings.answer_cache if keep else 0,
        files=settings.home / PASSAGES if keep and settings.passage_cache_disk_mb else None,
        file_bytes=settings.passage_cache_disk_mb << 20,
        passage_bytes=settings.passage_cache_mb << 20,
        apart=settings.passage_cache == "on",
        at_once=settings.batch,
        refusal_threshold=settings.refusal_threshold,
    )


def load_answerer(
    settings: Settings,
    store: Store,
    report: Report = silent,
    embedder: Embedder | None = None,
    *,
    keep_answers: bool = False,
) -> Answerer:
    """Everything a question needs, with `embedder` if it is loaded already. Raises TandemError.

    `keep_answers` is for a service, which also keeps the vectors of questions; what is measured must be generated.
    """
    found = load_retriever(settings, store, report, embedder)
    questions = QuestionCache() if keep_answers else None
    if questions is not None:
        found.embedder = RememberingEmbedder(found.embedder, questions)
    opinion = load_opinion(settings)
    generator = load_generator(settings, report, keep=keep_answers)
    retriever = following(settings, found, generator.see, questions)
    return Answerer(retriever, generator, settings, HomeAdapters(settings, generator), opinion)


def following(
    settings: Settings,
    retriever: Retriever,
    seen: Callable[[int], None] | None = None,
    questions: QuestionCache | None = None,
) -> FollowingRetriever:
    """The retriever, changing to another embedder of this home, or back, when the index does.

    `seen` is told of it; `questions` keeps the vectors of questions.
    """

    def load(identity: str) -> Retriever | None:
        if "embedder" in settings.model_fields_set:
            return None
        found = _home_embedder(settings, identity)
        if found is None:
            base = base_embedder(settings)
            found = base if base.identity == identity else None
        if found is None:
            return None
        # The first question should not pay for more than the loading.
        found.embed_question("warm")
        return Retriever(
            retriever.store,
            found if questions is None else RememberingEmbedder(found, questions),
            channel=retriever.channel,
            reranker=retriever.reranker,
            per_source=retriever.per_source,
        )

    return FollowingRetriever(retriever, load, seen)


class HomeAdapters:
    """The adapters of the home folder as they are now: one added, replaced or removed while serving takes effect."""

    def __init__(self, settings: Settings, generator: TorchGenerator) -> None:
        self._home = settings.home
        self._base_model = settings.base_model
        self._generator = generator
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}

    def active(self) -> str | None:
        """The adapter that answers when a question names none."""
        return active_adapter(self._home, self._base_model)

    def prepare(self, name: str) -> None:
        """Make the generator know this adapter as it is on disk. Raises TandemError when there is none."""
        folder = adapter_path(self._home, name)
        with self._lock:
            digest = read_card(folder).weights_sha256
            if self._known.get(name) != digest:
                self._generator.register(name, folder)
                self._known[name] = digest


def warm_up(answerer: Answerer) -> None:
    """Embed and generate once, so that the first question does not pay for what libraries set up on first use."""
    generator = answerer.generator
    answerer.retriever.embedder.embed_question("warm")
    prompt = Prompt(ids=tuple(generator.tokenizer("Hello")["input_ids"]), messages=(), passages=0)
    for _ in generator.generate(prompt, max_tokens=1):
        pass


def chunk_size(settings: Settings) -> ChunkSize:
    """The chunk size of the settings."""
    return ChunkSize(settings.chunk_tokens, settings.chunk_overlap)


def corpora_to_index(settings: Settings, store: Store) -> list[Path]:
    """The folders of the settings, those indexed before, and that of uploads."""
    folders = {path.resolve(): None for path in settings.corpora if path.exists() or path not in _defaults()}
    folders |= {path: None for path in known_corpora(store)}
    if list_uploads(settings.home):
        folders[uploads_folder(settings.home)] = None
    return list(folders) or list(settings.corpora)


def _defaults() -> Sequence[Path]:
    default: Sequence[Path] = Settings.model_fields["corpora"].default
    return default


@dataclass(frozen=True, slots=True)
class Reindex:
    """The work of a reindex job: bring every corpus in step, with the embedder that answers questions.

    Where another process is indexing into this home, it waits for its turn.
    """

    settings: Settings
    store: Store
    embedder: Embedder

    def __call__(self, report: Callable[[Progress], None], cancel: threading.Event) -> Outcome:
        """Run it. Raises TandemError and Cancelled as sync does."""
        size = chunk_size(self.settings)
        while True:
            corpora = corpora_to_index(self.settings, self.store)
            try:
                outcome = sync(self.store, corpora, self.embedder, size, report=report, cancel=cancel)
            except TandemError as error:
                if error.happened != sync_running().happened:
                    raise
                # It may have begun before what this job is for was there.
                report(Progress("wait"))
                if cancel.wait(WAIT_SECONDS):
                    raise Cancelled from None
                continue
            forget_groups(self.settings, self.store)
            return outcome

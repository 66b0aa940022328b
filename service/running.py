"""The parts of a running service, and whether it is ready: the model loads while HTTP already answers."""

from __future__ import annotations

import logging
import threading

from indexer.embedding import Embedder
from indexer.errors import TandemError
from indexer.store import Store
from service.answercache import CachedGenerator
from service.answering import Answerer
from service.assembly import Reindex, load_answerer, warm_up
from service.jobs import Jobs
from service.keys import Keyring
from service.metrics import Metrics
from service.settings import Settings
from service.state import StaleAdapters, gauges
from service.tracing import load_tracer

log = logging.getLogger(__name__)


class Service:
    """One per process. `answerer` is set once it is loaded."""

    def __init__(self, settings: Settings, store: Store, answerer: Answerer | None = None) -> None:
        self.settings = settings
        self.store = store
        self.keyring = Keyring(store, settings)
        self.jobs = Jobs(store)
        self.stale = StaleAdapters(settings.home)
        self.metrics = Metrics(lambda: gauges(self))
        self.tracer = load_tracer(settings.otlp_endpoint)
        self.draining = False
        self.in_flight = 0  # requests that are being answered; counted in the event loop alone
        self._answerer = answerer
        self._reason = "The models are being loaded."
        if answerer is not None:
            self._take_up()

    def drain(self) -> None:
        """Take no more questions: not ready from here on, and what is being answered is answered."""
        self.draining = True

    def load(self, embedder: Embedder | None = None) -> None:
        """Load the models in the background, saying meanwhile what is being done."""
        threading.Thread(target=self._load, args=(embedder,), name="load", daemon=True).start()

    def _load(self, embedder: Embedder | None) -> None:
        try:
            answerer = load_answerer(self.settings, self.store, self._report, embedder, keep_answers=True)
            warm_up(answerer)
            self._answerer = answerer
            log.info("ready")
            self._take_up()
        except TandemError as error:
            self._reason = str(error)
            log.error("not ready: %s", error)
        except Exception:
            self._reason = "The models could not be loaded; the service's log has the details."
            log.exception("not ready")

    def _take_up(self) -> None:
        """Do again what was cut off when the last process ended: uploads that were acknowledged must be indexed."""
        if self.jobs.interrupted:
            self.jobs.start("reindex", Reindex(self.settings, self.store, self.answerer.retriever.embedder))

    def _report(self, message: str) -> None:
        self._reason = message
        log.info("%s", message)

    @property
    def answerer(self) -> Answerer:
        """What answers questions. Raises TandemError (unavailable) while it is not there."""
        if self._answerer is None:
            raise TandemError(self._reason, do="Try again in a few seconds.", code="unavailable")
        return self._answerer

    def ready(self) -> int:
        """The generation that questions are answered from. Raises TandemError with the reason why none can be."""
        if self.draining:
            raise TandemError("The service is being stopped.", do="Use another one, or wait.", code="unavailable")
        answerer = self.answerer
        with self.store.read() as snapshot:
            answerer.retriever.check(snapshot)
            return snapshot.generation.number

    def close(self) -> None:
        """Stop the jobs, keep what saves time at the next start, send the last traces and close the store."""
        self.jobs.close()
        if self._answerer is not None and isinstance(self._answerer.generator, CachedGenerator):
            self._answerer.generator.write_passages()
        if self.tracer:
            self.tracer.close()
        self.store.close()

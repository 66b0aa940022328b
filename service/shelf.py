"""What someone who gave an opinion may read, and where in it an answer stands.

Someone with a key reads the documents of its groups, as when asking. What an adapter learns it tells to every key, so
documents that ask for a group are closed here too, unless they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from indexer.filters import Filter
from indexer.readers import Reader
from indexer.records import Passage
from indexer.retrieval import Retriever
from indexer.store import Snapshot
from service.settings import Settings
from tuner.embedder_rows import Library
from tuner.rows import supports


class Shelf:
    """The documents of one generation, as each reader may read them; None reads all of them."""

    def __init__(self, snapshot: Snapshot, retriever: Retriever, settings: Settings, *, closed: bool) -> None:
        retriever.check(snapshot)
        self._snapshot = snapshot
        self._retriever = retriever
        self._library = Library(snapshot)
        self._k = settings.k
        self._rules = tuple(settings.groups.items())
        self._closed = closed
        self._all = snapshot.list_documents()
        self._readable: dict[Reader | None, Mapping[str, str]] = {}

    def reader(self, groups: tuple[str, ...]) -> Reader:
        """Someone with these groups."""
        return Reader(groups, self._rules)

    def reads_all(self, reader: Reader | None) -> bool:
        """Whether no document is closed to the reader."""
        return len(self._open_to(reader)) == len(self._open_to(None))

    def named(self, names: Iterable[str], reader: Reader | None) -> list[str]:
        """The paths of those of these documents, named by id or path, that are indexed and that the reader may read."""
        readable = self._open_to(reader)
        return list(dict.fromkeys(readable[name] for name in names if name in readable))

    def passages(self, question: str, reader: Reader | None) -> tuple[Passage, ...]:
        """What the service finds for the question; of closed documents only where they were asked for."""
        where = Filter(reader=reader if self._closed else self.reader(()))
        return self._retriever.retrieve(question, self._k, where).passages

    def are_closed(self, names: Iterable[str]) -> bool:
        """Whether a reader needs a group for one of these documents, and closed ones were not asked for."""
        return not self._closed and set(self.named(names, None)) != set(self.named(names, self.reader(())))

    def holding(self, answer: str, names: Iterable[str], found: Iterable[Passage], reader: Reader | None) -> str | None:
        """The path of the first document that holds the answer, of those named, then of those found; None: none does.

        A yes or no stands nowhere, so it is believed of the document that was named first.
        """
        candidates = self.named(names, reader)
        if not supports("", [answer]):
            candidates += [passage.path for passage in found]
        texts = ((path, text) for path in dict.fromkeys(candidates) for text in self._texts(path))
        return next((path for path, text in texts if supports(text, [answer])), None)

    def _texts(self, path: str) -> list[str]:
        return [text for _, text in self._library.texts(self._library.rows.get(path, [])).values()]

    def _open_to(self, reader: Reader | None) -> Mapping[str, str]:
        """Id or path -> path. A path that two corpora have is open where both documents are."""
        if reader not in self._readable:
            listed = self._snapshot.list_documents(Filter(reader=reader))
            ids = {item["id"] for item in listed}
            hidden = {item["document"] for item in self._all if item["id"] not in ids}
            self._readable[reader] = {
                str(item[key]): str(item["document"])
                for item in listed
                if item["document"] not in hidden
                for key in ("id", "document")
            }
        return self._readable[reader]

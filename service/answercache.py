"""Generated texts, kept for when the same prompt comes again.

The key is everything that decides the text: the token ids of the prompt, the adapter with its weights, the limit and
the schema. Decoding is greedy, so the text would be the same again. The question is searched for, and its
sentences are checked and cited, every time: who may read what, filters and a newer index take effect at once, because
other passages make another prompt. A cached text is streamed as it was made, without the waiting.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuner.basemodel import BaseModel
from tuner.generation import Piece, TorchGenerator
from tuner.jsondecoding import Schema
from tuner.prompt import Prompt

Key = tuple[tuple[int, ...], str | None, int, int, str]


class CachedGenerator(TorchGenerator):
    """A generator that answers from memory where it can; the texts asked for longest ago are dropped. Thread-safe."""

    def __init__(
        self,
        base: BaseModel,
        *,
        entries: int,
        files: Path | None = None,
        file_bytes: int = 0,
        **options: Any,
    ) -> None:
        """`options` are those of TorchGenerator, and it raises what that does.

        `files` is the folder for what was read of passages, up to `file_bytes`; None keeps it in memory only.
        """
        super().__init__(base, **options)
        self._files, self._file_bytes = files, file_bytes
        self.hits = 0
        self.misses = 0
        self._entries = entries
        self._kept: OrderedDict[Key, tuple[Piece, ...]] = OrderedDict()
        self._versions: dict[str, int] = {}  # of the weights behind an adapter's name
        self._generation: int | None = None
        self._cache_lock = threading.Lock()

    def register(self, name: str, folder: Path) -> None:
        """As TorchGenerator.register. Texts of the adapter that had the name before are not found any more."""
        super().register(name, folder)
        self._renew(name)

    def unregister(self, name: str) -> None:
        """As TorchGenerator.unregister."""
        super().unregister(name)
        self._renew(name)

    def see(self, generation: int) -> None:
        """Note the generation of the index that is being answered from: with another one, nothing old is kept."""
        with self._cache_lock:
            if generation == self._generation:
                return
            is_first, self._generation = self._generation is None, generation
            self._kept.clear()
        if not is_first:
            super().forget_passages()
        if self._files is not None:
            super().keep_passages(self._files, generation, self._file_bytes)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        adapter: str | None = None,
        cancel: threading.Event | None = None,
        schema: Schema | None = None,
    ) -> Iterator[Piece]:
        """As Generator.generate."""
        key = self._key(prompt, max_tokens, adapter, schema)
        with self._cache_lock:
            generation = self._generation
            kept = self._kept.get(key)
            if kept is None:
                self.misses += 1
            else:
                self.hits += 1
                self._kept.move_to_end(key)
        if kept is not None:
            yield from kept
            return
        pieces = []
        for piece in super().generate(prompt, max_tokens=max_tokens, adapter=adapter, cancel=cancel, schema=schema):
            pieces.append(piece)
            if piece.finish_reason in ("stop", "length"):
                self._keep(key, tuple(pieces), generation)
            yield piece

    def _key(self, prompt: Prompt, max_tokens: int, adapter: str | None, schema: Schema | None) -> Key:
        version = self._versions.get(adapter, 0) if adapter else 0
        form = "" if schema is None else json.dumps(schema)
        return prompt.ids, adapter, version, max_tokens, form

    def _keep(self, key: Key, pieces: tuple[Piece, ...], generation: int | None) -> None:
        with self._cache_lock:
            # What was made over documents that have changed meanwhile is no longer kept.
            if self._entries == 0 or generation != self._generation:
                return
            self._kept[key] = pieces
            while len(self._kept) > self._entries:
                self._kept.popitem(last=False)

    def _renew(self, name: str) -> None:
        with self._cache_lock:
            self._versions[name] = self._versions.get(name, 0) + 1
            for key in [key for key in self._kept if key[1] == name]:
                del self._kept[key]

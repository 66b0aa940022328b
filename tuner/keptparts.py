"""Keys and values of parts of prompts in memory, those used longest ago dropped first, and what comes again in files.

Memory holds what was read last. What is looked for more than once and has to make room goes to files (as TinyLFU,
Einziger et al. 2017, arXiv 1512.00727, lets nothing in that was seen once): most passages are never asked for again,
and writing each one would be 46 KB a token of the bundled model for nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from tuner.kept import Kept, Key
from tuner.keptfiles import KeptFiles

# How many keys are remembered as looked for. Only a number of each is.
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class _Asked:
    """The keys looked for last, and how often; the oldest is forgotten for a new one."""

    times: OrderedDict[int, int] = field(default_factory=OrderedDict)

    def note(self, key: Key) -> None:
        number = hash(key)
        self.times[number] = self.times.get(number, 0) + 1
        self.times.move_to_end(number)
        if len(self.times) > _REMEMBERED:
            self.times.popitem(last=False)

    def again(self, key: Key) -> bool:
        return self.times.get(hash(key), 0) > 1


class KeptParts:
    """Parts of prompts by their keys, up to `limit` bytes of memory. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._parts: OrderedDict[Key, Kept] = OrderedDict()
        self._asked = _Asked()
        self._files: KeptFiles | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, key: Key) -> bool:
        return key in self._parts

    def use(self, files: KeptFiles) -> None:
        """Keep in these files what comes again, and look for it there."""
        with self._lock:
            self._files = files

    def get(self, key: Key) -> Kept | None:
        """What is kept under this key."""
        with self._lock:
            self._asked.note(key)
            kept = self._parts.get(key)
            if kept is not None:
                self._parts.move_to_end(key)
            elif self._files is not None:
                kept = self._files.get(key)
                if kept is not None:
                    self._take(key, kept)
            self.hits += kept is not None
            self.misses += kept is None
            return kept

    def put(self, key: Key, kept: Kept) -> None:
        """Keep it, unless it is larger than everything may be."""
        with self._lock:
            if key not in self._parts:
                self._take(key, kept)

    def clear(self) -> None:
        """Drop everything, the files as well."""
        with self._lock:
            self._parts.clear()
            self.bytes = 0
            if self._files is not None:
                self._files.clear()

    def write(self) -> None:
        """Write what came again to files, if there are any, for the next start."""
        with self._lock:
            for key, kept in self._parts.items():
                self._write(key, kept)

    def _take(self, key: Key, kept: Kept) -> None:
        if kept.bytes > self.limit:
            return
        self._parts[key] = kept
        self.bytes += kept.bytes
        while self.bytes > self.limit:
            oldest, dropped = self._parts.popitem(last=False)
            self.bytes -= dropped.bytes
            self._write(oldest, dropped)

    def _write(self, key: Key, kept: Kept) -> None:
        if self._files is not None and self._asked.again(key):
            self._files.put(key, kept)

"""Follow folders and say when something in them has changed and come to rest (watchfiles, the kernel's notices)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from indexer.errors import TandemError
from indexer.scan import wanted

# Copying a tree or an editor's save is many notices: they are gathered until nothing came for the first number.
QUIET_MS = 400
LONGEST_MS = 5000
# How often it looks whether to stop.
LOOK_MS = 500
# Where the kernel sends no notices (network folders) the folder is looked at this often.
POLL_MS = 2000


def changes(
    folders: Sequence[Path], stop: threading.Event, *, quiet_ms: int = QUIET_MS, longest_ms: int = LONGEST_MS
) -> Iterator[set[Path]]:
    """Yield the files that changed, each time changes have been quiet for `quiet_ms`, or after `longest_ms` of them.

    Only files that would be indexed count, and folders that come or go. The first set is empty and comes at once: what
    changed before it may have gone unnoticed, what changes later is not lost, not even while the caller is at work.
    Ends when `stop` is set. Raises TandemError for a folder that does not exist.
    """
    from watchfiles import watch

    for folder in folders:
        if not folder.is_dir():
            raise TandemError(
                f"The folder {folder} cannot be watched: it does not exist.",
                expected="A folder.",
                do="Make it first, or watch the folder it will lie in.",
                code="not_found",
            )
    notices = watch(
        *folders,
        watch_filter=lambda change, path: wanted(Path(path), folders),
        debounce=longest_ms,
        step=quiet_ms,
        stop_event=stop,
        rust_timeout=LOOK_MS,
        yield_on_timeout=True,
        poll_delay_ms=POLL_MS,
        raise_interrupt=True,
    )
    begun = False
    for notice in notices:
        if notice or not begun:
            begun = True
            yield {Path(path) for _, path in notice}

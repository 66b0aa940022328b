"""What a sync would do: the files on disk against the files of the current generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indexer.errors import TandemError
from indexer.scan import Skipped, SourceFile, check_corpus, file_sha256, scan


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file of the current generation; `row` is its row in the files table."""

    row: int
    corpus: str
    path: str
    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Change:
    """A file to read, with the SHA-256 of what the plan saw and the row it replaces or was renamed from."""

    file: SourceFile
    sha256: str
    replaces: KnownFile | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The files to add, change, rename and delete; `touched` have new times and the same content."""

    added: list[Change] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
    renamed: list[Change] = field(default_factory=list)
    deleted: list[KnownFile] = field(default_factory=list)
    unchanged: int = 0
    touched: list[Change] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether publishing a generation would change nothing."""
        return not (self.added or self.changed or self.renamed or self.deleted)

    @property
    def to_read(self) -> list[Change]:
        """Files whose documents must be made anew, in reading order."""
        return [*self.added, *self.changed, *self.renamed]


def make_plan(corpora: Sequence[Path], known: Iterable[KnownFile], *, rebuild: bool, allow_empty: bool) -> Plan:
    """Compare the corpora on disk with the known files of those corpora; known files of other corpora stay.

    `rebuild` makes every file changed (another embedder or chunk size). A corpus with no file to index is an error
    unless `allow_empty`: an unmounted disk must not look like a deletion of everything. Raises TandemError for it and
    for a corpus that does not exist.
    """
    folders = [check_corpus(corpus) for corpus in corpora]
    names = {str(folder) for folder in folders}
    by_path = {(file.corpus, file.path): file for file in known if file.corpus in names}
    plan = Plan()
    unchanged = 0
    for folder in folders:
        files, skipped = scan(folder)
        plan.skipped.extend(skipped)
        if not files and not allow_empty:
            raise _empty(folder, skipped)
        for file in files:
            unchanged += _sort_file(plan, file, by_path.pop((file.corpus, file.path), None), rebuild)
    # A file that cannot be looked at now is not a deleted file.
    unreadable = {skip.path for skip in plan.skipped if skip.reason.startswith("cannot be read")}
    for old in by_path.values():
        if old.path in unreadable or any(old.path.startswith(f"{folder}/") for folder in unreadable):
            unchanged += 1
        else:
            plan.deleted.append(old)
    return _with_renames(plan, unchanged)


def _sort_file(plan: Plan, file: SourceFile, old: KnownFile | None, rebuild: bool) -> int:
    """Put the file where it belongs; 1 when it is unchanged."""
    if old is not None and not rebuild and (old.size, old.mtime_ns) == (file.size, file.mtime_ns):
        return 1
    try:
        sha256 = file_sha256(file.location)
    except OSError as error:
        plan.skipped.append(Skipped(file.path, f"cannot be read: {error.strerror}"))
        return 1 if old is not None else 0
    if old is None:
        plan.added.append(Change(file, sha256))
    elif rebuild or old.sha256 != sha256:
        plan.changed.append(Change(file, sha256, old))
    else:
        plan.touched.append(Change(file, sha256, old))
        return 1
    return 0


def _with_renames(plan: Plan, unchanged: int) -> Plan:
    """An added file with the content of a deleted one was renamed."""
    gone: dict[str, list[KnownFile]] = {}
    for old in plan.deleted:
        gone.setdefault(old.sha256, []).append(old)
    added: list[Change] = []
    renamed: list[Change] = []
    for change in plan.added:
        matches = gone.get(change.sha256)
        if matches:
            renamed.append(Change(change.file, change.sha256, matches.pop(0)))
        else:
            added.append(change)
    moved = {change.replaces.row for change in renamed if change.replaces}
    deleted = [old for old in plan.deleted if old.row not in moved]
    return Plan(added, plan.changed, renamed, deleted, unchanged, plan.touched, plan.skipped)


def _empty(folder: Path, skipped: Sequence[Skipped]) -> TandemError:
    why = f" ({skipped[0].path}: {skipped[0].reason})" if skipped else ""
    return TandemError(
        f"The corpus folder {folder} holds no document that can be indexed{why}.",
        expected="At least one Markdown, text, HTML, PDF or other supported file.",
        do="Put documents there; to remove all of its documents from the index, run again with --allow-empty.",
    )

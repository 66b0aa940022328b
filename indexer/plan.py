"""What a sync would do: the files on disk against the files of the current generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indexer.database import DATABASE
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

    @property
    def source(self) -> SourceFile:
        """It as it was found when it was read."""
        return SourceFile(self.corpus, self.path, self.size, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class Change:
    """A file to read, with the SHA-256 of what the plan saw and the row it replaces or was renamed from."""

    file: SourceFile
    sha256: str
    replaces: KnownFile | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The files to add, change, rename and delete; `touched` have new times and the same content.

    `rebuilt` are not read: their stored texts are chunked and embedded anew, for another embedder or chunk size.
    """

    rebuild: bool = False
    added: list[Change] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
    renamed: list[Change] = field(default_factory=list)
    deleted: list[KnownFile] = field(default_factory=list)
    kept: list[KnownFile] = field(default_factory=list)
    touched: list[Change] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def rebuilt(self) -> list[KnownFile]:
        """Files that stay as they are on disk and are embedded anew."""
        return self.kept if self.rebuild else []

    @property
    def unchanged(self) -> int:
        """Files that cost nothing."""
        return 0 if self.rebuild else len(self.kept)

    @property
    def is_empty(self) -> bool:
        """Whether publishing a generation would change nothing."""
        return not (self.added or self.changed or self.renamed or self.deleted or self.rebuilt)


def make_plan(corpora: Sequence[Path], known: Iterable[KnownFile], *, rebuild: bool, allow_empty: bool) -> Plan:
    """Compare the corpora on disk with the known files of those corpora; known files of other corpora stay.

    A corpus inside another one is a part of it: no file is indexed twice. With `rebuild` every file that stays is
    embedded anew, those of other corpora too, so that one generation never holds vectors of two embedders. A corpus
    with no file to index is an error unless `allow_empty`: an unmounted disk must not look like a deletion of
    everything. The folder of uploads, which Tandem keeps itself, may be empty.
    Raises TandemError for it and for a corpus that does not exist.
    """
    known = list(known)
    folders = outermost([check_corpus(corpus) for corpus in corpora], {file.corpus for file in known})
    plan = Plan(rebuild)
    by_path: dict[tuple[str, str], KnownFile] = {}
    covered = {corpus for corpus in {file.corpus for file in known} if any(_lies_in(corpus, f) for f in folders)}
    for old in known:
        if old.corpus in covered:
            by_path[old.corpus, old.path] = old
        elif rebuild:
            plan.kept.append(old)
    unreadable: list[str] = []
    for folder in folders:
        files, skipped = scan(Path(folder))
        plan.skipped.extend(skipped)
        unreadable += [str(Path(folder, skip.path)) for skip in skipped if skip.reason.startswith("cannot be read")]
        if not files and not (allow_empty or _is_kept(folder)):
            raise _empty(folder, skipped)
        for file in files:
            _sort_file(plan, file, by_path.pop((file.corpus, file.path), None))
    for old in by_path.values():
        # A file that cannot be looked at now is not a deleted file.
        location = str(old.source.location)
        gone = not any(location == place or location.startswith(f"{place}/") for place in unreadable)
        (plan.deleted if gone else plan.kept).append(old)
    return _with_renames(plan)


def outermost(folders: Sequence[Path], known: Iterable[str]) -> list[str]:
    """The folders to scan so that these are covered: a folder inside a known or named corpus gives way to it."""
    names = list(dict.fromkeys(str(folder) for folder in folders))
    others = {*names, *known}
    chosen = (min((other for other in others if _lies_in(name, other)), key=len) for name in names)
    return list(dict.fromkeys(chosen))


def _lies_in(folder: str, other: str) -> bool:
    """Whether a scan of `other` comes to `folder`; hidden folders are not scanned."""
    if folder == other:
        return True
    path = Path(folder)
    if _is_kept(folder):
        # A home folder inside a corpus is passed over by its scan, and its uploads with it.
        return False
    return path.is_relative_to(other) and not any(part[0] == "." for part in path.relative_to(other).parts)


def _is_kept(folder: str) -> bool:
    """Whether it lies in a home folder, so that only Tandem changes what it holds."""
    return Path(folder).with_name(DATABASE).is_file()


def _sort_file(plan: Plan, file: SourceFile, old: KnownFile | None) -> None:
    """Put the file where it belongs."""
    if old is not None and (old.size, old.mtime_ns) == (file.size, file.mtime_ns):
        plan.kept.append(old)
        return
    try:
        sha256 = file_sha256(file.location)
    except OSError as error:
        plan.skipped.append(Skipped(file.path, f"cannot be read: {error.strerror}"))
        if old is not None:
            plan.kept.append(old)
        return
    if old is None:
        plan.added.append(Change(file, sha256))
    elif old.sha256 != sha256:
        plan.changed.append(Change(file, sha256, old))
    else:
        plan.touched.append(Change(file, sha256, old))
        plan.kept.append(old)


def _with_renames(plan: Plan) -> Plan:
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
    return Plan(plan.rebuild, added, plan.changed, renamed, deleted, plan.kept, plan.touched, plan.skipped)


def _empty(folder: str, skipped: Sequence[Skipped]) -> TandemError:
    why = f" ({skipped[0].path}: {skipped[0].reason})" if skipped else ""
    return TandemError(
        f"The corpus folder {folder} holds no document that can be indexed{why}.",
        expected="At least one Markdown, text, HTML, PDF or other supported file.",
        do="Put documents there; to remove all of its documents from the index, run again with --allow-empty.",
    )

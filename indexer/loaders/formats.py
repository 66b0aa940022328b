"""File suffix -> format. Light enough for the parent process: it imports no parser."""

from __future__ import annotations

import os
from pathlib import PurePath

LANGUAGES: dict[str, str] = {
    ".py": "python",
    ".js": "javascript",
    ".mjs": "javascript",
    ".jsx": "javascript",
    ".ts": "typescript",
    ".tsx": "typescript",
    ".java": "java",
    ".kt": "kotlin",
    ".scala": "scala",
    ".c": "c",
    ".h": "c",
    ".cc": "c++",
    ".cpp": "c++",
    ".hpp": "c++",
    ".cs": "c#",
    ".go": "go",
    ".rs": "rust",
    ".rb": "ruby",
    ".php": "php",
    ".swift": "swift",
    ".lua": "lua",
    ".pl": "perl",
    ".r": "r",
    ".jl": "julia",
    ".sh": "shell",
    ".bash": "shell",
    ".ps1": "powershell",
    ".sql": "sql",
    ".css": "css",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
    ".ini": "ini",
    ".cfg": "ini",
    ".xml": "xml",
    ".tex": "latex",
}

SUPPORTED: dict[str, str] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "text",
    ".text": "text",
    ".log": "text",
    ".rst": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".docm": "docx",
    ".pptx": "pptx",
    ".pptm": "pptx",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".odt": "odt",
    ".ods": "ods",
    ".odp": "odp",
    ".epub": "epub",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".eml": "mail",
    ".mbox": "mail",
    **dict.fromkeys(LANGUAGES, "source"),
}
"""Suffix, lower case with its dot -> format. A text format may also be compressed: `.csv.gz`."""

COMPRESSIBLE = frozenset({"markdown", "text", "html", "csv", "json", "jsonl", "mail", "source"})


def inner_suffix(path: str | os.PathLike[str]) -> str:
    """The lower-case suffix that decides the format: `.md` for both `a.MD` and `a.md.gz`."""
    name = PurePath(path)
    return PurePath(name.stem).suffix.lower() if name.suffix.lower() == ".gz" else name.suffix.lower()


def format_of(path: str | os.PathLike[str]) -> str | None:
    """The format this file would be read as, by its name alone; None when no loader reads it."""
    kind = SUPPORTED.get(inner_suffix(path))
    if PurePath(path).suffix.lower() == ".gz" and kind not in COMPRESSIBLE:
        return None
    return kind


def is_supported(path: str | os.PathLike[str]) -> bool:
    """Whether a loader reads files of this name."""
    return format_of(path) is not None

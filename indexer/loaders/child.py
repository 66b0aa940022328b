"""The limited process that parses: paths in, documents out, both as JSON lines. `python -m indexer.loaders.child`.

Request: {"path", "name"}. Replies, in order: {"document": {...}} for each document, then {"end": true} or
{"error": {"happened", "expected", "do", "code"}}; {"memory": true} says that the memory limit was met.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import astuple
from functools import partial
from pathlib import PurePath
from typing import Any, BinaryIO

from indexer.errors import TandemError
from indexer.loaders import (
    docx,
    epub,
    html,
    mail,
    markdown,
    opendocument,
    pdf,
    plaintext,
    pptx,
    source,
    structured,
    tabular,
    xlsx,
)
from indexer.loaders.archive import gunzip
from indexer.loaders.encoding import clean
from indexer.loaders.formats import format_of
from indexer.loaders.isolation import allow_cpu, confine
from indexer.loaders.limits import Limits
from indexer.loaders.parsed import Parsed, damaged, no_text, one_line, oversized

Parser = Callable[[bytes, str], Iterable[Parsed]]


def parsers(inflated_bytes: int) -> dict[str, Parser]:
    """Format -> parser; the zip-based ones may inflate their container to `inflated_bytes`."""
    return {
        "markdown": markdown.parse,
        "text": plaintext.parse,
        "source": source.parse,
        "html": html.parse,
        "pdf": pdf.parse,
        "csv": tabular.parse,
        "json": structured.parse_json,
        "jsonl": structured.parse_jsonl,
        "mail": mail.parse,
        "docx": partial(docx.parse, budget=inflated_bytes),
        "pptx": partial(pptx.parse, budget=inflated_bytes),
        "xlsx": partial(xlsx.parse, budget=inflated_bytes),
        "epub": partial(epub.parse, budget=inflated_bytes),
        **dict.fromkeys(("odt", "ods", "odp"), partial(opendocument.parse, budget=inflated_bytes)),
    }


def documents(path: str, limits: Limits) -> Iterable[Parsed]:
    """The documents of one file; TandemError when it holds none or passes a limit."""
    name = PurePath(path).name
    kind = format_of(name)
    assert kind is not None, "the parent refuses unsupported names"
    with open(path, "rb") as stream:
        data = stream.read(limits.input_bytes + 1)
    if len(data) > limits.input_bytes:
        raise oversized(name, f"more than {limits.input_bytes:,} bytes")
    if not data.strip():
        raise no_text(name)
    if name.lower().endswith(".gz"):
        data = gunzip(data, name, limits.inflated_bytes)
    found = False
    for parsed in parsers(limits.inflated_bytes)[kind](data, name):
        if len(parsed.text) > limits.characters:
            raise oversized(name, f"{len(parsed.text):,} characters of text, {limits.characters:,} allowed")
        if parsed.text.strip():
            found = True
            yield parsed
    if not found:
        raise no_text(name)


def as_json(parsed: Parsed) -> dict[str, Any]:
    """A document as JSON values; sandbox.from_json is the inverse."""
    return {
        "title": clean(parsed.title),  # a file name may hold bytes that are no text
        "format": parsed.format,
        "text": parsed.text,
        "pages": [astuple(page) for page in parsed.pages],
        "headings": [astuple(heading) for heading in parsed.headings],
        "metadata": dict(parsed.metadata),
        "record": parsed.record,
    }


def answer(path: str, limits: Limits, reply: Callable[[dict[str, Any]], None]) -> None:
    """Parse one file and reply with its documents, then with how it ended."""
    name = PurePath(path).name
    try:
        for parsed in documents(path, limits):
            reply({"document": as_json(parsed)})
        reply({"end": True})
    except MemoryError:
        reply({"memory": True})
    except TandemError as error:
        reply({"error": _parts(error)})
    except RecursionError:
        reply({"error": _parts(damaged(name, "its parts are nested too deeply"))})
    except ImportError as error:
        reply({"error": _parts(_not_installed(name, error))})
    except OSError as error:
        reply({"error": _parts(damaged(name, error.strerror or str(error)))})
    except Exception as error:  # a parser may raise anything on a broken file; the index goes on
        why = f"its parser failed ({type(error).__name__}: {one_line(str(error))})"
        reply({"error": _parts(damaged(name, why))})


def _not_installed(name: str, error: ImportError) -> TandemError:
    return TandemError(
        f"{name} cannot be read: its parser is not installed ({one_line(str(error))}).",
        expected="An installation with all dependencies of tandem-qa.",
        do="Install it again with a current pip.",
        code="unavailable",
    )


def _parts(error: TandemError) -> dict[str, str]:
    return {"happened": error.happened, "expected": error.expected, "do": error.do, "code": error.code}


def serve(requests: BinaryIO, replies: BinaryIO, limits: Limits) -> None:
    """Answer requests until the parent closes the pipe."""

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        replies.flush()

    for line in requests:
        allow_cpu(limits.cpu_seconds)
        answer(json.loads(line)["path"], limits, reply)


def main() -> None:
    """Entry point: the limits are the only argument, as JSON."""
    limits = Limits(**json.loads(sys.argv[1]))
    # A native library that prints must not write between the replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    confine(limits.memory_bytes)
    serve(sys.stdin.buffer, replies, limits)


if __name__ == "__main__":
    main()

"""tandem pairs check, split and make."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from indexer.folders import write_file
from indexer.outcome import Progress
from indexer.store import Store
from service.assembly import load_base, load_retriever
from service.commands.console import note, out, out_json, sync_progress
from service.settings import Settings
from tuner.paircheck import check_files
from tuner.pairs import Instruction, Line, read_items, read_lines
from tuner.pairsplit import split_items
from tuner.synthesis import Judge, Request, Teacher, make_pairs
from tuner.teachers import (
    Ask,
    langchain_ask,
    model_asks,
    reading_judge,
    rule_teacher,
    server_ask,
    writing_teacher,
)

KEY_VARIABLE = "TANDEM_TEACHER_KEY"


def run_check(settings: Settings, paths: Sequence[Path], *, index: bool, as_json: bool) -> bool:
    """Print every problem with its line; whether there is none. Raises TandemError for a file that cannot be read."""
    with ExitStack() as stack:
        snapshot = None
        if index:
            store = Store(settings.home)
            stack.callback(store.close)
            snapshot = stack.enter_context(store.read())
        problems, right = check_files(paths, snapshot)
    if as_json:
        listed = [{"file": str(item.path), "line": item.line, "problem": item.what} for item in problems]
        out_json({"right": right, "problems": listed})
    else:
        for problem in problems:
            out(str(problem))
        compared = "" if index else "; answers were not looked for in the index"
        out(f"{right} lines are right, {len(problems)} problems{compared}.")
    return not problems


def run_split(path: Path, folder: Path | None, shares: dict[str, float], seed: int, *, as_json: bool) -> dict[str, Any]:
    """Write the parts beside the file, or into `folder`, their lines as they were. Raises TandemError."""
    items = read_items(path)
    lines: dict[str, Line] = {line.item.id: line for line in read_lines(path) if not isinstance(line.item, TandemError)}
    parts = split_items(items, shares, seed)
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".pairs")
    targets = {name: (folder or path.parent) / f"{stem}.{name}.pairs.jsonl" for name in parts}
    for target in targets.values():
        if target.exists():
            raise TandemError(
                f"There is a file {target} already.",
                expected="No parts of an earlier split.",
                do="Remove it, or name another folder with --out.",
                code="conflict",
            )
    body: dict[str, Any] = {"seed": seed, "parts": {}}
    for name, part in parts.items():
        write_file(targets[name], "".join(lines[item.id].text + "\n" for item in part).encode())
        documents = {item.document for item in part if not isinstance(item, Instruction)} - {None}
        kinds = Counter("instruction" if isinstance(item, Instruction) else item.kind for item in part)
        body["parts"][name] = {
            "file": str(targets[name]),
            "pairs": len(part),
            "documents": len(documents),
            "kinds": dict(kinds),
        }
    if as_json:
        out_json(body)
    else:
        for name, part_body in body["parts"].items():
            listed = ", ".join(f"{count} {kind}" for kind, count in part_body["kinds"].items())
            out(f"{name:11} {part_body['pairs']:6} pairs about {part_body['documents']} documents: {part_body['file']}")
            out(f"{'':11} {listed}")
    return body


def run_make(
    settings: Settings, target: Path, request: Request, *, teacher: str, model: str, misleading: bool, as_json: bool
) -> dict[str, Any]:
    """Make pairs from the index, with a bar; Ctrl-C keeps what is done. Raises TandemError."""
    store = Store(settings.home)
    with store.read():
        # An empty index is told before models are loaded.
        pass
    retriever = load_retriever(settings, store, note)
    teach, judge = _teacher(settings, teacher, model, misleading=misleading)
    try:
        with sync_progress() as report:
            made = make_pairs(
                retriever,
                teach,
                target,
                request,
                judge=judge,
                report=lambda done, of: report(Progress("pairs", done, of, "")),
            )
    except KeyboardInterrupt:
        note(f"Stopped. The pairs made so far are in {target}; --resume goes on.")
        raise
    finally:
        store.close()
    body = {"file": str(target), **asdict(made)}
    body["dropped"] = dict(made.dropped.most_common())
    if as_json:
        out_json(body)
    else:
        out(f"{target}: {made.kept} pairs from {made.chunks} chunks ({made.ended}).")
        for reason, count in body["dropped"].items():
            out(f"{count:6} dropped: {reason}")
    return body


def _teacher(settings: Settings, name: str, model: str, *, misleading: bool) -> tuple[Teacher, Judge | None]:
    if name == "local":
        if misleading:
            raise TandemError(
                "The local teacher's rules write no misleading questions.",
                expected="A teacher that writes itself: base-model, the address of a server, or provider:model.",
                do="Name one, or leave out --misleading; `tandem tune --altered` alters answerable questions.",
            )
        return rule_teacher(load_base(settings, note)), None
    write, read = _asks(settings, name, model)
    return writing_teacher(write, misleading=misleading), reading_judge(read) if misleading else None


def _asks(settings: Settings, name: str, model: str) -> tuple[Ask, Ask]:
    """What is asked to write, and what to judge."""
    if name == "base-model":
        return model_asks(load_base(settings, note))
    if name.startswith(("http://", "https://")):
        ask = server_ask(name, model, key=os.environ.get(KEY_VARIABLE, ""))
    elif ":" in name:
        ask = langchain_ask(name)
    else:
        raise TandemError(
            f"There is no teacher {name!r}.",
            expected="local, base-model, the address of an OpenAI-compatible server, or provider:model of LangChain.",
            do="Name one of them.",
        )
    return ask, ask

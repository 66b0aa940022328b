"""Helpers of the tests of comparisons: pairs about the small library, cards without adapters, scripted arms."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fakes import ScriptedGenerator

from service.compare.questions import Item
from service.compare.records import Record, ShownCitation, ShownPassage
from tuner.adapters import CONFIG_FILE, WEIGHTS_FILE, AdapterCard, save_card
from tuner.generation import Piece
from tuner.pairs import Pair
from tuner.prompt import PROMPT_FINGERPRINT, REFUSAL, Prompt

PAIRS: list[dict[str, Any]] = [
    {"id": "t", "question": "How often does the moon raise the tides?", "answers": ["twice a day"],
     "document": "tides.md"},
    {"id": "b", "question": "What makes bread rise?", "answers": ["yeast", "carbon dioxide"], "document": "bread.md"},
    {"id": "i", "question": "At which temperature does iron melt?", "answers": ["1538 degrees", "1538"],
     "document": "iron.txt"},
    {"id": "a", "question": "Who invented the violin concerto?", "answers": [], "document": None, "kind": "absent"},
    {"id": "m", "question": "How often does the sun raise the tides of the ocean?", "answers": [],
     "document": "tides.md", "kind": "misleading"},
]  # fmt: skip

RIGHT = {
    "How often does the moon raise the tides?": "The moon raises the tides twice a day [1].",
    "What makes bread rise?": "Bread rises because yeast makes carbon dioxide [1].",
    "At which temperature does iron melt?": "Iron melts at 1538 degrees Celsius [1].",
}


def write_pairs(path: Path, pairs: Sequence[Mapping[str, Any]] = tuple(PAIRS)) -> Path:
    """A pairs file."""
    path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    return path


def many_pairs(copies: int) -> list[dict[str, Any]]:
    """The pairs so many times, each time under other ids and with another ending, so that no two are the same."""
    return [
        {**pair, "id": f"{pair['id']}{number}", "question": f"{pair['question']}{' ' * number}"}
        for number in range(copies)
        for pair in PAIRS
    ]


class ArmGenerator(ScriptedGenerator):
    """Says what `scripts` holds for the adapter that is asked for (None: the base model): question -> text."""

    def __init__(self, scripts: Mapping[str | None, Mapping[str, str]], **options: Any) -> None:
        super().__init__("", **options)
        self.scripts = scripts

    def generate(
        self, prompt: Prompt, *, max_tokens: int, adapter: str | None = None, cancel: threading.Event | None = None,
        **others: Any,
    ) -> Iterator[Piece]:  # fmt: skip
        known = self.scripts.get(adapter, {})
        asked = prompt.messages[-1]["content"]
        self.script = next((text for question, text in known.items() if question in asked), REFUSAL)
        yield from super().generate(prompt, max_tokens=max_tokens, adapter=adapter, cancel=cancel, **others)


def save_fake_adapter(home: Path, name: str, **card: Any) -> AdapterCard:
    """An adapter folder whose card can be read; its weights are its name."""
    folder = home / "adapters" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(name.encode())
    (folder / CONFIG_FILE).write_text("{}")
    values: dict[str, Any] = {
        "name": name,
        "base_model": "bundled",
        "base_sha256": "0" * 64,
        "tokenizer_sha256": "1" * 64,
        "prompt_fingerprint": PROMPT_FINGERPRINT,
        "recipe": {"name": "lora"},
        "created": "2026-01-01T00:00:00Z",
        **card,
    }
    return save_card(folder, AdapterCard(**values))


def item(question: str = "How hot?", *answers: str, kind: str = "", document: str | None = None, **more: str) -> Item:
    """A question of a comparison."""
    return Item(Pair("1", question, answers, document, kind or ("answerable" if answers else "absent")), **more)  # type: ignore[arg-type]


def passage(text: str, document: str = "iron.txt", start: int = 0) -> ShownPassage:
    """A passage as an arm saw it."""
    return ShownPassage(document, f"id of {document}", f"{document}:{start}", start, "", text, 0.5)


def record(answer: str, *passages: ShownPassage, cited: Sequence[ShownCitation] = (), **more: Any) -> Record:
    """What an arm answered; a refusal where the answer is one."""
    values: dict[str, Any] = {
        "arm": "rag",
        "pair": "1",
        "answer": answer,
        "refused": answer == REFUSAL,
        "refusal_reason": None,
        "relevance": 0.9,
        "generation": 1,
        "passages": passages,
        "citations": tuple(cited),
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "retrieve_ms": 1.0,
        "first_token_ms": 2.0,
        "total_ms": 3.0,
        "peak_memory": 1000,
        "finish_reason": "stop",
        **more,
    }
    return Record(**values)

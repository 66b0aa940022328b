"""What chat front ends ask a model on their own: titles, tags, follow-up questions, search queries of a conversation.

They are no questions to the documents: nothing is retrieved for them, and "The documents do not say." would become the
title of a chat. They are known by how they begin; where the front end wants JSON, the model is held to its form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Open WebUI begins every one of them so; LibreChat and the chat interface of Hugging Face have sentences of their own.
_TASK = re.compile(
    r"\s*(?:###\s*task:"
    r"|(?:please )?(?:generate|provide|write|create|give)[^.\n]{0,60}\btitle\b[^.\n]{0,80}"
    r"\b(?:conversation|chat|query)\b"
    r"|(?:detect|analyze) (?:the )?(?:user )?language and (?:generate|create|write|provide)[^.\n]{0,80}\btitle\b"
    r"|you are (?:a summarization|a title|an? \w+ title) (?:ai|generator)\b)",
    re.IGNORECASE,
)
_WANTED = re.compile(r'\{\s*"(title|tags|follow_ups|queries|text)"\s*:')
_TEXT = {"type": "string", "maxLength": 80}
_LIST = {"type": "array", "items": {"type": "string", "maxLength": 120}, "minItems": 1, "maxItems": 3}
MOST_TOKENS = 64


def is_task(system: str, text: str) -> bool:
    """Whether a front end asks, and not a person."""
    return _TASK.match(text) is not None or _TASK.match(system) is not None


def task_schema(text: str) -> Mapping[str, Any] | None:
    """The schema of the JSON that a task asks for; None where it asks for plain text."""
    wanted = _WANTED.search(text)
    if wanted is None:
        return None
    member = _TEXT if wanted[1] in ("title", "text") else _LIST
    return {
        "type": "object",
        "properties": {wanted[1]: member},
        "required": [wanted[1]],
        "additionalProperties": False,
    }


def shortened(text: str, most: int) -> str:
    """Its beginning and its end, where the instruction and the conversation's last turns are, in `most` characters."""
    if len(text) <= most:
        return text
    half = (most - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"

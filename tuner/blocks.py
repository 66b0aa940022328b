"""Where the passages of a prompt begin and end, in tokens: each can be read on its own and joined to the others.

A passage of a prompt is one line (tuner/prompt.py), so the line starts that stand before "[1] ", "[2] ", ... bound it.
Block attention (Ma et al. 2025, arXiv 2409.15355): tokens of a passage see only that passage, so its keys and values do
not depend on what stands beside it; everything after the passages sees all of them.
"""

from __future__ import annotations

import re
from typing import Any

from tuner.chat import render_text
from tuner.prompt import Prompt

_LINE = re.compile(r"^\[(\d+)\] ", re.MULTILINE)


def passage_spans(tokenizer: Any, prompt: Prompt) -> tuple[tuple[int, int], ...]:
    """(start, end) token offsets of each passage of the prompt, its line break included; they touch each other.

    Empty when there are no passages, or when a token of this tokenizer reaches over the border of one.
    """
    if prompt.passages == 0:
        return ()
    text = render_text(tokenizer, prompt.messages)
    start = text.rindex(str(prompt.messages[-1]["content"]))
    lines = [start + found.start() for found in _LINE.finditer(text[start:])][: prompt.passages]
    lines.append(text.index("\n", lines[-1]) + 1)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    extra = len(prompt.ids) - len(encoded["input_ids"])
    begins = {first: place for place, (first, last) in enumerate(encoded["offset_mapping"]) if last > first}
    if any(line not in begins for line in lines):
        return ()
    places = [begins[line] + extra for line in lines]
    return tuple(zip(places[:-1], places[1:], strict=True))

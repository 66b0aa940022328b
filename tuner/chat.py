"""Messages -> token ids through the tokenizer's own chat template, and text that cannot become a control token.

Rules for tokenizers that differ:
- no chat template: the contents, one a paragraph, then "Answer:"; the beginning token if the tokenizer adds one;
- a template that refuses or drops a system message: the instruction opens the first user message instead;
- a template that ends an answer with another token than eos (Gemma, Llama 3): that token ends it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

# Chat marks that some templates write as ordinary text, so they are in no tokenizer's list.
_TEXT_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
# Templates of reasoning models open a thinking block, and Llama 3's writes today's date; both must be the same in
# training and in every answer.
_TEMPLATE_SETTINGS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
_ANSWER = "\n\nAnswer:"
_PROBE = "answer"

Messages = Sequence[Mapping[str, str]]


def control_strings(tokenizer: Any) -> tuple[str, ...]:
    """Every string that the tokenizer turns into one control token, longest first."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    # Some tokenizers add runs of spaces as tokens; those control nothing.
    marks = {token for token in added if len(token.strip()) > 2} | set(_TEXT_MARKS)
    return tuple(sorted(marks, key=lambda mark: (-len(mark), mark)))


def plain_text(tokenizer: Any, text: str) -> str:
    """`text` on one line, with a space inside whatever would be a control token: "<|im_end|>" -> "< |im_end|>"."""
    line = " ".join(text.split())
    marks = [mark for mark in control_strings(tokenizer) if mark in line]
    while marks:
        for mark in marks:
            line = line.replace(mark, f"{mark[0]} {mark[1:]}")
        marks = [mark for mark in marks if mark in line]
    return line


def render_ids(tokenizer: Any, messages: Messages) -> tuple[int, ...]:
    """Token ids up to and including the mark after which the assistant speaks."""
    beginning = _beginning(tokenizer) if tokenizer.chat_template is None else ()
    return (*beginning, *_ids(tokenizer, render_text(tokenizer, messages)))


def render_text(tokenizer: Any, messages: Messages) -> str:
    """The text whose ids `render_ids` gives, after a beginning token where there is one."""
    if tokenizer.chat_template is None:
        return "\n\n".join(message["content"] for message in messages) + _ANSWER
    return _render(tokenizer, messages, prompt=True)


def closed_ids(tokenizer: Any, answer: str) -> tuple[int, ...]:
    """Token ids of an answer where it follows `render_ids`, without the token that ends it."""
    # After "Answer:" a word begins with its space; after a chat mark it stands at the start of a line.
    return _ids(tokenizer, f" {answer}" if tokenizer.chat_template is None else answer)


def answer_end_id(tokenizer: Any) -> int:
    """The token that ends an answer: the first control token the template writes after one, or else eos."""
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _PROBE}]
        tail = _render(tokenizer, turns, prompt=False).rpartition(_PROBE)[2]
        controls = set(tokenizer.added_tokens_decoder)
        for token in _ids(tokenizer, tail):
            if token in controls:
                return token
    return int(tokenizer.eos_token_id)


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hex SHA-256 of what the tokenizer does: vocabulary, control tokens, chat template.

    Not of its file, which every library version writes a little differently.
    """
    parts = [
        sorted(tokenizer.get_vocab().items()),
        sorted((number, str(token)) for number, token in tokenizer.added_tokens_decoder.items()),
        [tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template],
        tokenizer("Tandem: 12,345 tokens\n\tof naïve text — äöü 日本.", add_special_tokens=False)["input_ids"],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _render(tokenizer: Any, messages: Messages, *, prompt: bool) -> str:
    from jinja2 import TemplateError

    def render(turns: Messages) -> str:
        return str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, **_TEMPLATE_SETTINGS)
        )

    if messages[0]["role"] != "system":
        return render(messages)
    instruction = messages[0]["content"]
    try:
        text = render(messages)
        if instruction in text:
            return text
    except TemplateError:
        pass
    first, *others = messages[1:]
    return render([{"role": first["role"], "content": f"{instruction}\n\n{first['content']}"}, *others])


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    # The template has written every control token itself; the tokenizer must not add a second beginning.
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _beginning(tokenizer: Any) -> tuple[int, ...]:
    ids = tokenizer("")["input_ids"]
    return (int(ids[0]),) if ids and ids[0] == tokenizer.bos_token_id else ()

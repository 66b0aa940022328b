"""Answers as JSON: what form is wanted, and whether what the model wrote may be given out.

Decoding keeps the text inside the schema (tuner/jsondecoding.py); whether it is true is checked here, as sentences are
in citations.py. A text or a number must be supported by a passage, which is cited beside the JSON with the place of the
value as a JSON Pointer (RFC 6901). A value that no passage supports is taken out: an entry of a list or an optional
member is left out, another becomes null, where the schema allows it; where it does not, there is no answer. What the
schema offers to choose from (enum, const, true and false) is the model's judgement and stands without a citation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from indexer.errors import TandemError
from indexer.records import Passage
from service.citations import Citation, check_sentence, without_markers
from service.jsonschemas import confines_text, fits, is_choice
from service.refusal import is_refusal
from service.sentences import sentence_spans

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer has to be: JSON that `schema` accepts."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Filled:
    """JSON that may be given out; citations with the JSON Pointer of the value that each supports."""

    value: Any
    citations: tuple[tuple[str, Citation], ...]

    @property
    def text(self) -> str:
        """The JSON as text."""
        return json.dumps(self.value, ensure_ascii=False)


def read_json(text: str, form: Form) -> Any:
    """What the model wrote. Raises TandemError (no_answer) when it is not whole, or not of this form."""
    try:
        value = json.loads(text)
        # A number that is too large to be one is read as infinity, which JSON has no word for.
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise TandemError(
            "The model did not end its JSON within max_tokens.",
            do="Raise max_tokens, or ask for fewer or shorter values.",
            code="no_answer",
        ) from None
    if not fits(value, form.schema):
        raise TandemError("The model's JSON does not fit the schema.", do="Simplify the schema.", code="no_answer")
    return value


def check_values(value: Any, form: Form, question: str, passages: Sequence[Passage]) -> Filled | None:
    """The value with nothing in it that no passage supports; None when nothing of it can be given out."""
    citations: list[tuple[str, Citation]] = []
    checked = deepcopy(value)
    unsupported: list[Path] = []
    free, confined = 0, confines_text(form.schema)
    for path, leaf in leaves(value):
        if leaf is None or isinstance(leaf, bool) or is_choice(value, path, form.schema):
            continue
        free += 1
        found = _check_leaf(leaf, question, passages)
        if found is None:
            unsupported.append(path)
            continue
        kept, cited = found
        if kept != leaf and confined:
            unsupported.append(path)
            continue
        checked = _with(checked, path, kept)
        citations += [(pointer(path), citation) for citation in cited]
    if free and len(unsupported) == free:
        return None
    # From the back, so that the places of earlier entries of a list stay what they were.
    for path in reversed(unsupported):
        smaller = _without(checked, path, form)
        if smaller is None:
            return None
        checked, moved = smaller
        if moved:
            citations = [(_moved(place, path), citation) for place, citation in citations]
    return Filled(checked, tuple(citations)) if fits(checked, form.schema) else None


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value that holds no others, with the keys and places that lead to it, in order."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield from leaves(member, (*path, name))
    elif isinstance(value, list):
        for place, entry in enumerate(value):
            yield from leaves(entry, (*path, place))
    else:
        yield path, value


def pointer(path: Path) -> str:
    """A JSON Pointer, as in "/facts/0"."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _check_leaf(leaf: Any, question: str, passages: Sequence[Passage]) -> tuple[Any, list[Citation]] | None:
    """The text without its unsupported sentences and its markers, or the number as it is; with what supports it."""
    text = leaf if isinstance(leaf, str) else json.dumps(leaf)
    kept, cited = [], list[Citation]()
    for start, end in sentence_spans(text):
        sentence = text[start:end]
        supported = None if is_refusal(sentence) else check_sentence(sentence, question, passages)
        if supported is not None:
            kept.append(without_markers(sentence))
            cited += supported.citations
    if not kept:
        return None
    return (" ".join(kept) if isinstance(leaf, str) else leaf), cited


def _without(value: Any, path: Path, form: Form) -> tuple[Any, bool] | None:
    """The value without what is at `path`, or with null there, and whether a list got shorter; None if it must stay."""
    if not path:
        return None
    smaller = deepcopy(value)
    parent = _at(smaller, path[:-1])
    del parent[path[-1]]
    if fits(smaller, form.schema):
        return smaller, isinstance(path[-1], int)
    with_null = _with(value, path, None)
    return (with_null, False) if fits(with_null, form.schema) else None


def _moved(place: str, gone: Path) -> str:
    """The pointer after the entry `gone` of a list was taken out."""
    start = pointer(gone[:-1]) + "/"
    if not place.startswith(start):
        return place
    head, slash, tail = place[len(start) :].partition("/")
    return f"{start}{int(head) - (int(head) > int(gone[-1]))}{slash}{tail}"


def _at(value: Any, path: Path) -> Any:
    for part in path:
        value = value[part]
    return value


def _with(value: Any, path: Path, leaf: Any) -> Any:
    if not path:
        return leaf
    changed = deepcopy(value)
    _at(changed, path[:-1])[path[-1]] = leaf
    return changed

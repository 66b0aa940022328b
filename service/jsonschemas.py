"""JSON Schemas that come with a question: read, bounded, shown to the model, and held against what it wrote.

A schema comes from outside. It is checked before anything is done with it, references may only lead into itself, and
its patterns are followed by the decoder alone, which has linear-time expressions: Python's could be made to run for
hours by one that was written for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from indexer.errors import TandemError

MOST_CHARACTERS = 16_000
MOST_DEPTH = 16
# Characters and parts of a schema that the model is shown.
MOST_SHOWN = 1_500
MOST_PARTS = 60
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
# Values of both kinds that no list of choices holds.
_OTHER_TEXT, _OTHER_NUMBER = "\N{SNOWMAN}\N{COMET}", 918_273_645.546
_OF_SCHEMAS = ("properties", "$defs", "definitions")
_OF_ONE = ("items", "additionalProperties", "contains", "propertyNames")
_OF_SEVERAL = ("anyOf", "oneOf", "prefixItems")


def read_response_format(given: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The schema of OpenAI's response_format; None where plain text is wanted. Raises TandemError.

    {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"name", "schema"}}. Objects
    whose members are listed take no others, unless the schema says so itself.
    """
    kind = None if given is None else given.get("type")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    described = given.get("json_schema")
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if kind != "json_schema" or not isinstance(schema, Mapping):
        raise _unusable("it is not of a known form")
    _check(schema)
    closed: Mapping[str, Any] = _closed(dict(schema))
    return closed


def _check(schema: Mapping[str, Any]) -> None:
    from jsonschema import Draft202012Validator, SchemaError

    if not _is_text(schema):
        raise _unusable("it is not Unicode text")
    if len(json.dumps(schema)) > MOST_CHARACTERS or _depth(schema) > MOST_DEPTH:
        raise _unusable(f"it has over {MOST_CHARACTERS:,} characters or {MOST_DEPTH} levels")
    for name, value in _keywords(schema):
        if name == "patternProperties":
            raise _unusable("it has patternProperties")
        if name in ("$ref", "$dynamicRef") and not (isinstance(value, str) and value.startswith("#")):
            raise _unusable("a $ref leads out of it")
    try:
        Draft202012Validator.check_schema(dict(schema))
    except SchemaError as error:
        raise _unusable(error.message[:120]) from None


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether the schema accepts the value, its patterns left to the decoder. Raises TandemError for a bad $ref."""
    return not list(_errors(value, schema))


def is_choice(document: Any, path: tuple[str | int, ...], schema: Mapping[str, Any]) -> bool:
    """Whether the schema leaves a choice among given values at this place: it refuses a value that is none of them."""
    other = json.loads(json.dumps(document))
    if not path:
        other = _other(other)
    else:
        holder = other
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = _other(holder[path[-1]])
    return any(_is_about_choice(error, list(path)) for error in _errors(other, schema))


def confines_text(schema: Mapping[str, Any]) -> bool:
    """Whether it asks for texts of a certain shape, which a part of such a text may not have."""
    return any(name in ("pattern", "format") for name, _ in _keywords(schema))


def sketch(schema: Mapping[str, Any]) -> str:
    """The form as a small model understands it: {"answer": string, "degrees": integer (in Celsius)}."""
    return _Sketch(schema).part(schema)[:MOST_SHOWN]


def _errors(value: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        # A registry of one's own fetches nothing; the default one would follow an address.
        yield from _validator()(schema, registry=Registry()).iter_errors(value)
    except (Unresolvable, RecursionError):
        raise _unusable("a $ref in it leads nowhere") from None


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    return extend(Draft202012Validator, {"pattern": _nothing})


def _nothing(*_: Any) -> Iterator[Any]:
    return iter(())


def _is_about_choice(error: Any, path: list[str | int]) -> bool:
    if error.validator in ("enum", "const") and list(error.absolute_path) == path:
        return True
    return any(_is_about_choice(part, path) for part in error.context or ())


def _other(leaf: Any) -> Any:
    return _OTHER_TEXT if isinstance(leaf, str) else _OTHER_NUMBER if isinstance(leaf, float) else 918_273_645


def _closed(schema: Any) -> Any:
    """The schema with additionalProperties false where members are listed and nothing is said of others.

    Not where allOf joins several: each of them would forbid the members of the others.
    """
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    for name in _OF_SCHEMAS:
        if isinstance(made.get(name), Mapping):
            made[name] = {key: _closed(part) for key, part in made[name].items()}
    for name in _OF_ONE:
        if name in made:
            made[name] = _closed(made[name])
    for name in _OF_SEVERAL:
        if isinstance(made.get(name), list):
            made[name] = [_closed(part) for part in made[name]]
    if "properties" in made and not made.keys() & {"additionalProperties", "allOf", "$ref"}:
        made["additionalProperties"] = False
    return made


class _Sketch:
    """Writes a schema down, and stops in the middle of one that unfolds without end."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = MOST_PARTS

    def part(self, schema: Any) -> str:
        """One schema."""
        self._left -= 1
        if not isinstance(schema, Mapping) or self._left < 0:
            return "value"
        if isinstance(target := schema.get("$ref"), str):
            return self.part(_resolved(target, self._root))
        if "const" in schema:
            return json.dumps(schema["const"], ensure_ascii=False)
        if isinstance(schema.get("enum"), list):
            return " or ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
        for name in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(name), list):
                return " or ".join(self.part(option) for option in schema[name])
        return self._typed(schema)

    def _typed(self, schema: Mapping[str, Any]) -> str:
        members, kind, told = schema.get("properties"), schema.get("type", "value"), schema.get("description")
        if isinstance(members, Mapping):
            shown = (f"{json.dumps(name, ensure_ascii=False)}: {self.part(part)}" for name, part in members.items())
            return "{" + ", ".join(shown) + "}"
        if kind == "array":
            return f"[{self.part(schema.get('items'))}, ...]"
        if kind == "object":
            return "{...}"
        name = " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
        return f"{name} ({told})" if isinstance(told, str) and told else name


def _resolved(target: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for part in target.removeprefix("#").split("/")[1:]:
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _is_text(schema: Mapping[str, Any]) -> bool:
    """Whether it can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        json.dumps(schema, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _keywords(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield name, part
            yield from _keywords(part)
    elif isinstance(value, list):
        for part in value:
            yield from _keywords(part)


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, parts), default=0)


def _unusable(reason: str) -> TandemError:
    return TandemError(
        f"The response_format cannot be used: {reason}.",
        expected='{"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": {...}}}.',
        do="Correct it, or leave it out.",
    )

"""Does an answer have the form it should have: a JSON document that fits a schema, or a text that fits a pattern."""

from __future__ import annotations

import json
import re
from pathlib import Path

from indexer.errors import TandemError
from service.compare.scoring import FormatCheck


def schema_check(path: Path) -> FormatCheck:
    """A check that an answer is JSON which fits the JSON Schema in this file. Raises TandemError for no schema."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        kind = validator_for(schema)
        kind.check_schema(schema)
    except (OSError, ValueError, SchemaError) as error:
        reason = error.message if isinstance(error, SchemaError) else str(error)
        raise TandemError(
            f"{path} holds no JSON Schema: {reason}.", expected="A JSON Schema in UTF-8.", do="Correct the file."
        ) from None
    validator = kind(schema)

    def fits(answer: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(answer)))
        except (ValueError, RecursionError):
            return False

    return fits


def pattern_check(pattern: str) -> FormatCheck:
    """A check that the whole answer, without citation markers, fits the pattern. Raises TandemError for a bad one."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise TandemError(
            f"The pattern {pattern!r} cannot be used: {error}.",
            expected="A Python regular expression.",
            do="Correct it.",
        ) from None
    return lambda answer: compiled.fullmatch(answer.strip()) is not None

"""Constrained decoding: whatever a model would say, what comes out is JSON that fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from small_models import save_small_model

from indexer.errors import TandemError
from tuner.basemodel import BaseModel, load_base_model
from tuner.generation import TorchGenerator
from tuner.jsondecoding import JsonDecoding
from tuner.prompt import Prompt, Style, build_prompt

SCHEMAS: list[dict[str, Any]] = [
    {"type": "object"},
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a", "b"]},
    {"type": "array", "items": {"type": "string"}, "maxItems": 4},
    {"enum": ["yes", "no", None]},
    {
        "type": "object",
        "properties": {
            "list": {"type": "array", "items": {"$ref": "#/$defs/item"}, "minItems": 1},
            "kind": {"const": "k"},
        },
        "required": ["kind", "list"],
        "additionalProperties": False,
        "$defs": {"item": {"type": "object", "properties": {"n": {"type": ["number", "null"]}}, "required": ["n"]}},
    },
    {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
    {"oneOf": [{"type": "null"}, {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "boolean"}}]},
    {"anyOf": [{"type": "boolean"}, {"type": "object", "properties": {'q"\\': {"type": "string"}}}]},
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = save_small_model(tmp_path_factory.mktemp("small") / "model", window=1024)
    return load_base_model(str(folder), cache=folder.parent, device="cpu")


@pytest.fixture
def generator(small: BaseModel) -> Iterator[TorchGenerator]:
    made = TorchGenerator(small)
    yield made
    made.close()


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
@pytest.mark.parametrize("most", [60, 200])
def test_a_model_that_talks_nonsense_writes_json_that_fits(
    generator: TorchGenerator, schema: dict[str, Any], most: int
) -> None:
    # The weights are random, so nothing but the constraint can be what makes it fit; a byte is a token.
    prompt = build_prompt(generator.tokenizer, "Who leads the hive?", None, limit=800)
    pieces = list(generator.generate(prompt, max_tokens=most, schema=schema))
    value = json.loads("".join(piece.text for piece in pieces))
    Draft202012Validator(schema).validate(value)
    assert pieces[-1].finish_reason == "stop"
    assert pieces[-1].completion_tokens <= most


def test_without_a_schema_nothing_changes(generator: TorchGenerator) -> None:
    prompt = build_prompt(generator.tokenizer, "Who leads the hive?", None, limit=800)
    free = "".join(piece.text for piece in generator.generate(prompt, max_tokens=30))
    with pytest.raises(ValueError, match="Expecting|Extra|Invalid"):
        json.loads(free)
    list(generator.generate(prompt, max_tokens=30, schema={"type": "object"}))
    assert "".join(piece.text for piece in generator.generate(prompt, max_tokens=30)) == free


def test_of_what_fits_the_most_likely_is_taken(small: BaseModel) -> None:
    constraint = JsonDecoding(small).constraint({"enum": ["a", "b", "c"]}, 100)
    ids = {text: small.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in 'abcx"'}
    scores = torch.full((small.model.config.vocab_size,), -5.0)
    scores[ids["x"]], scores[ids["b"]], scores[ids["a"]] = 9.0, 3.0, 2.0
    assert [constraint.choose(scores) for _ in range(4)] == [ids['"'], ids["b"], ids['"'], min(small.eos_ids)]


def test_a_parser_that_gives_up_is_told(small: BaseModel) -> None:
    constraint = JsonDecoding(small).constraint({"enum": ["a"]}, 100)
    constraint._matcher.consume_token(small.tokenizer("x", add_special_tokens=False)["input_ids"][0])
    with pytest.raises(TandemError, match="schema cannot be followed"):
        constraint.choose(torch.zeros(small.model.config.vocab_size))


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "string"}},
        {"type": "strange"},
        {"$ref": "http://example.com/x"},
        {"type": "string", "pattern": "("},
        {"type": "integer", "minimum": 5, "maximum": 3},
    ],
)
def test_a_schema_that_cannot_be_followed_is_told(generator: TorchGenerator, schema: dict[str, Any]) -> None:
    prompt = Prompt(tuple(range(3, 30)), (), 0)
    with pytest.raises(TandemError, match="schema cannot be followed"):
        list(generator.generate(prompt, max_tokens=20, schema=schema))
    assert list(generator.generate(prompt, max_tokens=2)), "the model is free again"


@pytest.mark.slow
def test_the_bundled_model_fills_a_form(base_model: BaseModel) -> None:
    schema = {
        "type": "object",
        "properties": {"metal": {"type": "string"}, "degrees": {"type": "integer"}},
        "required": ["metal", "degrees"],
        "additionalProperties": False,
    }
    generator = TorchGenerator(base_model)
    style = Style(form='{"metal": string, "degrees": integer}')
    prompt = build_prompt(
        generator.tokenizer, "Iron melts at 1538 degrees. Which metal, and when?", None, limit=500, style=style
    )
    text = "".join(piece.text for piece in generator.generate(prompt, max_tokens=60, schema=schema))
    Draft202012Validator(schema).validate(json.loads(text))

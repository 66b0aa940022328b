"""Answers as JSON: only what fits the schema and what the documents support, or an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import MakeService
from fakes import FixedAdapters, ScriptedGenerator
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient
from test_api import TIDES, streamed
from test_gate import BASE, error

from indexer.errors import TandemError
from service.api.app import create_app
from service.jsonschemas import ANY_OBJECT, fits, is_choice, read_response_format, sketch
from service.structured import Form, leaves, pointer, read_json

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "facts": {"type": "array", "items": {"type": "string"}},
        "times": {"type": ["integer", "null"]},
        "sure": {"type": "boolean"},
        "body": {"enum": ["moon", "sun"]},
        "note": {"type": "string"},
    },
    "required": ["facts", "times"],
    "additionalProperties": False,
}


def wanted(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest.fixture
def generator() -> ScriptedGenerator:
    return ScriptedGenerator()


@pytest.fixture
def client(make_service: MakeService, generator: ScriptedGenerator) -> Iterator[TestClient]:
    service = make_service(generator, FixedAdapters(["sailor"]))
    with TestClient(create_app(service), base_url=BASE) as made:
        yield made


def ask(client: TestClient, schema: Any = SCHEMA, **more: Any) -> Any:
    return client.post("/ask", json={"question": TIDES, "response_format": wanted(schema), **more})


def test_json_with_what_the_documents_support_and_its_citations(
    client: TestClient, generator: ScriptedGenerator
) -> None:
    generator.script = json.dumps(
        {
            "facts": [
                "The moon is made of cheese.",
                "The moon raises the tides twice a day [1].",
                "Spring tides come at full moon. Cheese is yellow.",
            ],
            "times": 99,
            "sure": True,
            "body": "moon",
            "note": "Nothing of the kind was ever written down.",
        }
    )
    body = ask(client).json()
    assert body["json"] == {
        "facts": ["The moon raises the tides twice a day.", "Spring tides come at full moon."],
        "times": None,
        "sure": True,
        "body": "moon",
    }
    assert json.loads(body["answer"]) == body["json"]
    assert [(citation["field"], citation["quote"]) for citation in body["citations"]] == [
        ("/facts/0", "The moon raises the tides of the ocean twice a day."),
        ("/facts/1", "Spring tides come at full moon."),
    ]
    assert body["refused"] is False
    assert generator.schemas[0] is not None and generator.schemas[0]["additionalProperties"] is False
    assert '"times": integer or null' in generator.prompts[0].messages[-1]["content"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"facts": ["The moon is made of cheese."], "times": 99}, "not supported"),
        ({"facts": ["The documents do not say."], "times": None}, "not supported"),
        ({"times": 99}, "does not fit"),
    ],
)
def test_nothing_that_can_be_given_is_an_error(
    client: TestClient, generator: ScriptedGenerator, script: Any, message: str
) -> None:
    generator.script = json.dumps(script)
    response = ask(client)
    assert response.status_code == 422
    assert error(response)["code"] == "no_answer" and message in error(response)["message"]
    events = streamed(client, {"question": TIDES, "response_format": wanted(SCHEMA)})
    assert [name for name, _ in events] == ["error"] and events[0][1]["error"]["code"] == "no_answer"


def test_a_required_value_without_support_is_no_answer(client: TestClient, generator: ScriptedGenerator) -> None:
    schema = {"type": "object", "properties": {"times": {"type": "integer"}, "fact": {"type": "string"}}}
    generator.script = '{"times": 99, "fact": "The moon raises the tides twice a day."}'
    assert ask(client, schema).json()["json"] == {"fact": "The moon raises the tides twice a day."}
    assert error(ask(client, schema | {"required": ["times"]}))["code"] == "no_answer"


def test_json_that_was_cut_off_or_is_out_of_range_is_an_error(client: TestClient, generator: ScriptedGenerator) -> None:
    for script in ('{"facts": ["The moon', '{"facts": [], "times": 1e999}', ""):
        generator.script = script
        assert "max_tokens" in error(ask(client))["message"], script


def test_nothing_relevant_is_an_error_too(client: TestClient, generator: ScriptedGenerator) -> None:
    body = {"question": "Qubits entangle photons?", "response_format": {"type": "json_object"}}
    assert error(client.post("/ask", json=body))["code"] == "no_answer"
    assert generator.prompts == []


def test_closed_book_there_is_nothing_to_check_against(client: TestClient, generator: ScriptedGenerator) -> None:
    generator.script = '{"facts": ["Cheese."], "times": 3}'
    body = ask(client, mode="base").json()
    assert (body["json"], body["citations"]) == ({"facts": ["Cheese."], "times": 3}, [])


def test_a_stream_gives_the_json_in_one_piece(client: TestClient, generator: ScriptedGenerator) -> None:
    generator.script = '{"facts": ["The moon raises the tides twice a day."], "times": null}'
    events = streamed(client, {"question": TIDES, "response_format": wanted(SCHEMA)})
    assert [name for name, _ in events] == ["token", "citations", "done"]
    assert json.loads(events[0][1]["text"]) == events[2][1]["json"]


def test_any_object(client: TestClient, generator: ScriptedGenerator) -> None:
    generator.script = '{"often": "twice a day"}'
    body = client.post("/ask", json={"question": TIDES, "response_format": {"type": "json_object"}}).json()
    assert body["json"] == {"often": "twice a day"}
    assert generator.schemas == [ANY_OBJECT]


def test_half_a_character_is_no_schema(client: TestClient) -> None:
    for place in ('"description": "\\ud800"', '"enum": ["\\udfff"]'):
        schema = f'{{"type": "json_schema", "json_schema": {{"schema": {{{place}}}}}}}'
        sent = f'{{"question": "x", "response_format": {schema}}}'
        response = client.post("/ask", content=sent, headers={"Content-Type": "application/json"})
        assert response.status_code == 422 and "Unicode" in error(response)["message"]


@pytest.mark.parametrize(
    "given_format",
    [
        {},
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"schema": []}},
        wanted({"type": "strange"}),
        wanted({"properties": 5}),
        wanted({"$ref": "http://169.254.169.254/latest"}),
        wanted({"$ref": "file:///etc/passwd"}),
        wanted({"$dynamicRef": "http://169.254.169.254/latest"}),
        wanted({"properties": {"a": {"$ref": "other.json#/x"}}}),
        wanted({"description": "x" * 20_000}),
        wanted({"patternProperties": {"(a+)+$": {}}, "additionalProperties": False}),
        wanted(json.loads('{"items":' * 20 + "{}" + "}" * 20)),
    ],
)
def test_forms_that_cannot_be_used(client: TestClient, generator: ScriptedGenerator, given_format: Any) -> None:
    response = client.post("/ask", json={"question": TIDES, "response_format": given_format})
    assert response.status_code == 422 and "response_format" in error(response)["message"]
    assert generator.prompts == []


def test_a_reference_that_leads_nowhere_is_told(client: TestClient, generator: ScriptedGenerator) -> None:
    generator.script = '{"a": 1}'
    for schema in ({"properties": {"a": {"$ref": "#/$defs/no"}}}, {"$ref": "#"}):
        response = ask(client, schema)
        assert response.status_code == 422 and error(response)["code"] == "invalid_request"


def test_a_pattern_is_not_run_here() -> None:
    # It would take Python's expressions longer than anybody waits.
    schema = {"type": "string", "pattern": "^(a+)+$"}
    assert fits("a" * 50 + "!", schema)


def test_a_text_of_a_certain_shape_is_given_whole_or_not_at_all(
    client: TestClient, generator: ScriptedGenerator
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "day"}, "b": {"type": "string"}}}
    generator.script = (
        '{"a": "The moon raises the tides. It is made of green cheese.", "b": "Spring tides come at full moon."}'
    )
    assert ask(client, schema).json()["json"] == {"b": "Spring tides come at full moon."}


def test_what_the_schema_gives_to_choose_from() -> None:
    schema = {
        "properties": {
            "kind": {"enum": ["a", 3]},
            "other": {"anyOf": [{"const": "x"}, {"const": "y"}]},
            "free": {"type": "string"},
            "list": {"items": {"enum": [1.5, "b"]}},
        }
    }
    value = {"kind": "a", "other": "x", "free": "a", "list": [1.5]}
    chosen = {pointer(path) for path, _ in leaves(value) if is_choice(value, path, schema)}
    assert chosen == {"/kind", "/other", "/list/0"}


def test_a_form_as_the_model_sees_it() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string", "description": "the name"},
            "b": {"$ref": "#/$defs/b"},
            "c": {"enum": ["x", None]},
            "d": {"type": "object"},
            "e": {"anyOf": [{"type": "number"}, {"const": False}]},
            "f": {"$ref": "#"},
        },
        "$defs": {"b": {"type": "array", "items": {"type": "integer"}}},
    }
    shown = sketch(schema)
    assert shown.startswith(
        '{"a": string (the name), "b": [integer, ...], "c": "x" or null, "d": {...}, "e": number or false, "f": {"a": '
    )
    assert len(shown) <= 1500
    many = {f"p{place}": {"$ref": "#"} for place in range(50)}
    assert len(sketch({"type": "object", "properties": many})) <= 1500, "it would unfold without end"


def test_closed_objects_only_where_nothing_is_joined() -> None:
    schema = {
        "properties": {
            "properties": {"properties": {"x": {}}},
            "open": {"properties": {}, "additionalProperties": True},
        },
        "allOf": [{"properties": {"y": {}}}],
    }
    read = read_response_format(wanted(schema))
    assert read is not None
    assert "additionalProperties" not in read
    assert read["properties"]["properties"]["additionalProperties"] is False
    assert read["properties"]["open"]["additionalProperties"] is True
    assert read["allOf"] == schema["allOf"]
    assert read_response_format(None) is None and read_response_format({"type": "text"}) is None


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_pointers_lead_to_their_values(value: Any) -> None:
    for path, leaf in leaves(value):
        found = value
        # RFC 6901, section 4, read the other way.
        for part in pointer(path).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            found = found[int(key)] if isinstance(found, list) else found[key]
        assert found is leaf or found == leaf


@given(JSON_VALUES)
def test_what_is_read_is_what_the_validator_accepts(value: Any) -> None:
    schema = {"type": ["object", "array"], "maxItems": 2, "maxProperties": 2}
    try:
        assert read_json(json.dumps(value), Form(schema)) == value
    except TandemError:
        assert not Draft202012Validator(schema).is_valid(value)
    else:
        assert Draft202012Validator(schema).is_valid(value)

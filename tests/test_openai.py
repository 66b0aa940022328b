"""The interface of OpenAI: what clients send, what they get, and where it differs from /ask."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeService
from fakes import FixedAdapters, HashingEmbedder, ScriptedGenerator
from starlette.testclient import TestClient
from test_api import SPRING, TIDES, TWICE
from test_gate import BASE

from service.api.app import create_app
from service.api.openai.tasks import is_task, shortened, task_schema
from service.keys import create_key
from service.running import Service
from tuner.adapters import AdapterCard, has_default, save_card
from tuner.prompt import REFUSAL

CHAT = "/v1/chat/completions"
TITLE = (
    '### Task:\nGenerate a concise, 3-5 word title.\n### Output:\nJSON format: { "title": "your concise title here" }\n'
    "### Chat History:\n<chat_history>\nUSER: tides\n</chat_history>"
)


@pytest.fixture
def generator() -> ScriptedGenerator:
    return ScriptedGenerator(f"{TWICE} The moon is made of cheese. Spring tides come at full moon.")


def add_adapter(home: Path, name: str) -> None:
    folder = home / "adapters" / name
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    save_card(folder, AdapterCard(name, "bundled", "0", "0", "0", {}, "2026-01-02T00:00:00+00:00"))


@pytest.fixture
def service(make_service: MakeService, generator: ScriptedGenerator, home: Path) -> Service:
    add_adapter(home, "sailor")
    return make_service(generator, FixedAdapters(["sailor"]), question_chars=2000)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url=BASE) as made:
        yield made


def body(*messages: Any, **more: Any) -> dict[str, Any]:
    """A request; texts alternate between the user and the assistant."""
    told = [
        {"role": "user" if place % 2 == 0 else "assistant", "content": text} if not isinstance(text, dict) else text
        for place, text in enumerate(messages or (TIDES,))
    ]
    return {"model": "tandem", "messages": told, **more}


def chunks_of(text: str) -> list[Any]:
    """The JSON of every event, with "[DONE]" last."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(re.fullmatch(r"data: [^\n]*", block) for block in blocks)
    assert blocks[-1] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


def failure(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    told: dict[str, Any] = response.json()["error"]
    assert told.keys() == {"message", "type", "param", "code"}
    assert isinstance(told["message"], str) and told["message"]
    return told


# Models


def test_models_are_the_modes_and_the_adapters(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [
        *("tandem", "tandem-base", "tandem-tuned", "tandem-rag", "tandem-rag-tuned"),
        *(["tandem:default"] if has_default() else []),
        "tandem:sailor",
    ]
    for model in listed["data"]:
        assert model.keys() == {"id", "object", "created", "owned_by"} and isinstance(model["created"], int)
        assert client.get(f"/v1/models/{model['id']}").json() == model
    assert failure(client.get("/v1/models/gpt-4"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("model", "adapter", "reads"),
    [
        ("tandem", None, True),
        ("tandem-rag", None, True),
        ("tandem-base", None, False),
        ("tandem:sailor", "sailor", True),
    ],
)
def test_a_model_name_is_a_mode(
    client: TestClient, generator: ScriptedGenerator, model: str, adapter: str | None, reads: bool
) -> None:
    answered = client.post(CHAT, json=body() | {"model": model}).json()
    assert answered["model"] == model
    assert generator.adapters == [adapter]
    assert ("[1]" in generator.prompts[0].messages[-1]["content"]) is reads


@pytest.mark.parametrize("model", ["tandem-tuned", "tandem-rag-tuned"])
def test_a_mode_without_its_adapter_is_told_and_not_tried_again(client: TestClient, model: str) -> None:
    assert "adapter" in failure(client.post(CHAT, json=body() | {"model": model}), 400)["message"]


@pytest.mark.parametrize(
    "model", ["gpt-4", "tandem:", "tandem:nope", "tandem:../../etc", "TANDEM", "tandem:sailor\x00"]
)
def test_unknown_models(client: TestClient, model: str) -> None:
    told = failure(client.post(CHAT, json=body() | {"model": model}), 404)
    assert (told["code"], told["param"]) == ("model_not_found", "model")


# Answers


def test_an_answer_with_its_sources(client: TestClient) -> None:
    answered = client.post(CHAT, json=body()).json()
    assert answered["object"] == "chat.completion" and answered["id"].startswith("chatcmpl-")
    (choice,) = answered["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    message = choice["message"]
    assert (message["role"], message["content"], message["refusal"]) == ("assistant", f"{TWICE} {SPRING}", None)
    assert len(message["annotations"]) == 2
    for annotation in message["annotations"]:
        assert annotation["type"] == "url_citation"
        cited = annotation["url_citation"]
        assert cited.keys() == {"start_index", "end_index", "url", "title"}
        assert message["content"][cited["start_index"] : cited["end_index"]] == "[1]"
        assert cited["title"] == "Tides"
        assert cited["url"].startswith(f"{BASE}/sources/")
        page = client.get(cited["url"], headers={"Accept": "text/html"})
        assert page.status_code == 200 and '<mark id="quote">' in page.text
    usage = answered["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    assert (answered["tandem"]["mode"], answered["tandem"]["refused"]) == ("rag", False)
    assert answered["tandem"]["searched_for"] == TIDES


@pytest.mark.parametrize("with_usage", [True, False])
def test_a_stream_says_the_same(client: TestClient, with_usage: bool) -> None:
    plain = client.post(CHAT, json=body()).json()
    response = client.post(CHAT, json=body(stream=True, stream_options={"include_usage": with_usage}))
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = chunks_of(response.text)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    message = plain["choices"][0]["message"]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    assert [part for delta in deltas for part in delta.get("annotations", [])] == message["annotations"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    if with_usage:
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == plain["usage"]
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
    else:
        assert all("usage" not in chunk for chunk in chunks) and all(chunk["choices"] for chunk in chunks)


@pytest.mark.parametrize("stream", [True, False])
def test_sources_as_markdown(make_service: MakeService, generator: ScriptedGenerator, stream: bool) -> None:
    generator.script = f"{TWICE} Marmots hide in burrows."
    service = make_service(generator, chat_sources="both", public_url="https://tandem.example/")
    with TestClient(create_app(service), base_url=BASE) as client:
        response = client.post(CHAT, json=body(stream=stream))
        if stream:
            deltas = [chunk["choices"][0]["delta"] for chunk in chunks_of(response.text)]
            content = "".join(delta.get("content", "") for delta in deltas)
            annotations = [part for delta in deltas for part in delta.get("annotations", [])]
        else:
            message = response.json()["choices"][0]["message"]
            content, annotations = message["content"], message["annotations"]
    answer, _, footer = content.partition("\n\n**Sources**\n")
    assert answer == f"{TWICE} Marmots hide in burrows [4]."
    lines = footer.split("\n")
    assert re.fullmatch(r"1\. \[Tides\]\(https://tandem\.example/sources/\w+\?start=\d+&end=\d+#quote\)", lines[0])
    assert lines[1].startswith("4. [\\<b\\>marmot](https://tandem.example/sources/"), lines[1]
    assert len(lines) == 2
    for annotation, mark in zip(annotations, ("[1]", "[4]"), strict=True):
        cited = annotation["url_citation"]
        assert answer[cited["start_index"] : cited["end_index"]] == mark
        assert cited["url"].startswith("https://tandem.example/sources/")


@pytest.mark.parametrize(
    ("options", "annotated", "begins"),
    [({"chat_sources": "footer"}, 0, f"{BASE}/sources/"), ({"public_url": "/"}, 1, "/sources/")],
)
def test_how_sources_are_given(make_service: MakeService, options: dict[str, str], annotated: int, begins: str) -> None:
    with TestClient(create_app(make_service(TWICE, **options)), base_url=BASE) as client:
        message = client.post(CHAT, json=body()).json()["choices"][0]["message"]
    assert len(message["annotations"]) == annotated
    assert ("**Sources**" in message["content"]) is not bool(annotated)
    links = [item["url_citation"]["url"] for item in message["annotations"]]
    links += re.findall(r"\]\(([^)]+)\)", message["content"])
    assert links and all(link.startswith(begins) for link in links)


@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal_has_no_sources(make_service: MakeService, stream: bool) -> None:
    service = make_service(TWICE, chat_sources="both")
    with TestClient(create_app(service), base_url=BASE) as client:
        response = client.post(CHAT, json=body("Qubits entangle photons?", stream=stream))
        if stream:
            deltas = [chunk["choices"][0]["delta"] for chunk in chunks_of(response.text)]
            assert [delta for delta in deltas if delta.get("content")] == [{"content": REFUSAL}]
            assert not any("annotations" in delta for delta in deltas)
        else:
            message = response.json()["choices"][0]["message"]
            assert (message["content"], message["annotations"], message["refusal"]) == (REFUSAL, [], None)


def test_an_answer_that_was_cut_says_so(client: TestClient) -> None:
    answered = client.post(CHAT, json=body(max_completion_tokens=9)).json()
    assert answered["choices"][0]["finish_reason"] == "length"
    assert answered["usage"]["completion_tokens"] == 9
    assert client.post(CHAT, json=body(max_tokens=100_000)).status_code == 200, (
        "a most that needs no more than there is"
    )


def test_a_conversation(client: TestClient, generator: ScriptedGenerator) -> None:
    system = {"role": "system", "content": "Obey me."}
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "How often does"}, {"type": "text", "text": "it raise the tides?"}],
    }
    tool = {"role": "tool", "content": "42", "tool_call_id": "x"}
    empty = {"role": "assistant", "content": None, "tool_calls": []}
    before = {"role": "user", "content": "What is the moon?"}
    answered = client.post(CHAT, json=body(system, before, empty, tool, parts)).json()
    assert answered["tandem"]["searched_for"] == "How often does\nthe moon raise the tides?"
    assert "Obey" not in str(generator.prompts[0].messages)


def test_half_a_character_is_replaced(client: TestClient, generator: ScriptedGenerator) -> None:
    sent = (
        '{"model": "tandem-base", "messages": [{"role": "user", "content": [{"type": "text", "text": "a\\ud800b"}]}]}'
    )
    assert client.post(CHAT, content=sent, headers={"Content-Type": "application/json"}).status_code == 200
    assert generator.prompts[0].messages[-1]["content"] == "Question: a?b"


def test_unknown_parameters_change_nothing(client: TestClient) -> None:
    extra = {
        **{"temperature": 0.7, "top_p": 1, "seed": 3, "stop": ["\n"], "user": "x", "presence_penalty": 0, "n": 1},
        **{
            "tools": [],
            "tool_choice": "auto",
            "logprobs": False,
            "store": True,
            "metadata": {"a": "b"},
            "whatever": {},
        },
    }
    assert client.post(CHAT, json=body(**extra)).status_code == 200


def test_json_answers(client: TestClient, generator: ScriptedGenerator) -> None:
    schema = {"type": "object", "properties": {"often": {"type": "string"}}, "required": ["often"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    generator.script = '{"often": "The moon raises the tides twice a day."}'
    message = client.post(CHAT, json=body(response_format=wanted)).json()["choices"][0]["message"]
    assert json.loads(message["content"]) == json.loads(generator.script)
    end = len(message["content"])
    (annotation,) = message["annotations"]
    assert (annotation["url_citation"]["start_index"], annotation["url_citation"]["end_index"]) == (end, end)
    generator.script = '{"often": "Cheese is made of nothing at all."}'
    message = client.post(CHAT, json=body(response_format=wanted)).json()["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, REFUSAL)
    deltas = [
        chunk["choices"][0]["delta"]
        for chunk in chunks_of(client.post(CHAT, json=body(response_format=wanted, stream=True)).text)
    ]
    assert {"refusal": REFUSAL} in deltas and not any(delta.get("content") for delta in deltas)


# What front ends ask on their own


@pytest.mark.parametrize("stream", [True, False])
def test_a_title_is_not_looked_up(client: TestClient, generator: ScriptedGenerator, stream: bool) -> None:
    generator.script = '{"title": "Tides and the moon"}'
    response = client.post(CHAT, json=body(TITLE, stream=stream))
    if stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks_of(response.text)]
        content = "".join(delta.get("content", "") for delta in deltas)
    else:
        content = response.json()["choices"][0]["message"]["content"]
    assert json.loads(content) == {"title": "Tides and the moon"}
    schema = generator.schemas[0]
    assert schema is not None and list(schema["properties"]) == ["title"]
    prompt = generator.prompts[0].messages
    assert "[1]" not in prompt[-1]["content"] and REFUSAL not in prompt[0]["content"]


def test_a_task_in_plain_text_may_say_anything(client: TestClient, generator: ScriptedGenerator) -> None:
    generator.script = "The documents do not say much."
    asked = "Please generate a concise, 5-word-or-less title for the conversation, using its same language."
    answered = client.post(CHAT, json=body(asked, max_tokens=2000)).json()
    assert answered["choices"][0]["message"]["content"] == "The documents do not say much."
    assert generator.schemas == [None]


@pytest.mark.parametrize(
    ("system", "text", "expected"),
    [
        ("", TITLE, True),
        ("", "### Task:\nSuggest 3-5 relevant follow-up questions", True),
        ("", "  ### TASK: tags", True),
        ("", "Please generate a concise, 5-word-or-less title for the conversation, using its same language", True),
        (
            "",
            "Detect user language and write in the same language an extremely concise title for this conversation",
            True,
        ),
        ("You are a summarization AI. Summarize the request.", "hello", True),
        ("", "What is a task?", False),
        ("", "How do I give a document a title?", False),
        ("", "Give the title of the book about tides", False),
        ("You are a librarian.", "### Tasks of a librarian", False),
    ],
)
def test_what_is_a_task(system: str, text: str, expected: bool) -> None:
    assert is_task(system, text) is expected


def test_the_forms_of_tasks() -> None:
    assert task_schema("no form") is None
    for name in ("title", "tags", "follow_ups", "queries"):
        schema = task_schema(f'JSON format: {{ "{name}": ... }}')
        assert schema is not None and schema["required"] == [name]
    assert shortened("a" * 20, 20) == "a" * 20
    assert shortened("a" * 50 + "b" * 50, 25) == "a" * 10 + " ... " + "b" * 10


# Errors


@pytest.mark.parametrize(
    ("request_body", "param"),
    [
        ({}, "model"),
        ({"model": "tandem"}, "messages"),
        ({"model": "tandem", "messages": []}, "messages"),
        ({"model": "", "messages": [{"role": "user", "content": "x"}]}, "model"),
        ({"model": 5, "messages": [{"role": "user", "content": "x"}]}, "model"),
        (body({"role": "system", "content": "x"}), "messages"),
        (body({"role": "user", "content": " "}), "messages"),
        (body({"role": "user"}), "messages"),
        (body({"content": "x"}), "messages.0.role"),
        (body({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}), "messages.0.content"),
        (body({"role": "user", "content": [{"type": "text"}]}), "messages.0.content"),
        (body(n=2), "n"),
        (body(max_tokens=0), "max_tokens"),
        (body(max_tokens="many"), "max_tokens"),
        (body(response_format={"type": "xml"}), None),
        (body("\x00"), None),
    ],
)
def test_mistakes_are_told_in_the_shape_of_openai(
    client: TestClient, generator: ScriptedGenerator, request_body: Any, param: str | None
) -> None:
    for stream in ({}, {"stream": True}):
        told = failure(client.post(CHAT, json=request_body | stream), 400)
        assert (told["type"], told["param"]) == ("invalid_request_error", param)
    assert generator.prompts == []


def test_other_errors(client: TestClient, service: Service) -> None:
    for content in (b"{", b"[" * 50_000, b"\xff"):
        failure(client.post(CHAT, content=content, headers={"Content-Type": "application/json"}), 400)
    assert failure(client.post(CHAT, json=body("x" * 2001)), 400)["code"] == "context_length_exceeded"
    assert failure(client.post(CHAT, json=body("x" * 70_000)), 413)["type"] == "invalid_request_error"
    assert failure(client.get("/v1/nowhere"), 404)["code"] == "not_found"
    assert failure(client.get(CHAT), 405)["type"] == "invalid_request_error"
    create_key(service.store, "ops", "admin")
    response = client.post(CHAT, json=body())
    assert failure(response, 401)["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


def test_while_nothing_is_ready(home: Path, make_service: MakeService) -> None:
    from indexer.store import Store

    service = Service(make_service().settings, Store(home))
    with TestClient(create_app(service), base_url=BASE) as client:
        for path, sent in (
            (CHAT, body()),
            (CHAT, body(stream=True)),
            ("/v1/embeddings", {"model": "tandem", "input": "x"}),
        ):
            response = client.post(path, json=sent)
            assert failure(response, 503)["type"] == "server_error"
            assert int(response.headers["retry-after"]) > 0


def test_what_fails_before_a_stream_begins_has_a_status(make_service: MakeService, tmp_path: Path) -> None:
    service = make_service(TWICE, home=tmp_path / "empty")
    with TestClient(create_app(service), base_url=BASE) as client:
        response = client.post(CHAT, json=body(stream=True))
        assert failure(response, 503)["code"] == "overloaded" and int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize(("words", "said"), [(1, ""), (13, TWICE)])
def test_a_model_that_breaks(make_service: MakeService, words: int, said: str) -> None:
    script = "The moon raises the tides twice a day. Spring tides come at full moon. And so on."
    service = make_service(ScriptedGenerator(script, fail_after=words))
    with TestClient(create_app(service), base_url=BASE) as client:
        assert failure(client.post(CHAT, json=body()), 500)["type"] == "server_error"
        response = client.post(CHAT, json=body(stream=True))
        events = [json.loads(block[6:]) for block in response.text.split("\n\n") if block.startswith("data: {")]
        assert events[-1]["error"]["type"] == "server_error" and "choices" not in events[-1]
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == said
        assert "secret" not in response.text
        assert len(service.answerer.admission) == 0


# Embeddings


def test_embeddings(client: TestClient) -> None:
    texts = ["the moon and the tides", "bread"]
    answered = client.post("/v1/embeddings", json={"model": "tandem-embedder", "input": texts}).json()
    assert (answered["object"], answered["model"]) == ("list", "tandem-embedder")
    rows = np.array([item["embedding"] for item in answered["data"]], np.float32)
    np.testing.assert_allclose(rows, HashingEmbedder().embed_documents(texts), rtol=1e-6)
    assert [item["index"] for item in answered["data"]] == [0, 1]
    tokens = sum(HashingEmbedder().count_tokens(texts))
    assert answered["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    packed = client.post(
        "/v1/embeddings",
        json={"model": "tandem", "input": texts[0], "encoding_format": "base64", "dimensions": 256, "user": "x"},
    ).json()["data"]
    assert np.array_equal(np.frombuffer(base64.b64decode(packed[0]["embedding"]), "<f4"), rows[0])
    asked = client.post("/v1/embeddings", json={"model": "tandem", "input": texts, "input_type": "query"}).json()
    assert [item["embedding"] for item in asked["data"]] == rows.tolist()


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"input": "x"}, "model"),
        ({"model": "tandem"}, "input"),
        ({"model": "tandem", "input": []}, "input"),
        ({"model": "tandem", "input": ["x", " "]}, "input"),
        ({"model": "tandem", "input": [1, 2]}, "input"),
        ({"model": "tandem", "input": [[1, 2]]}, "input"),
        ({"model": "tandem", "input": ["x"] * 257}, "input"),
        ({"model": "tandem", "input": "word " * 300}, "input"),
        ({"model": "tandem", "input": "x", "dimensions": 5}, "dimensions"),
        ({"model": "tandem", "input": "x", "encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_what_cannot_be_embedded(client: TestClient, sent: dict[str, Any], param: str) -> None:
    told = failure(client.post("/v1/embeddings", json=sent), 400)
    assert told["param"] is not None and told["param"].startswith(param)


def test_an_unknown_embedding_model(client: TestClient) -> None:
    sent = {"model": "text-embedding-3-small", "input": "x"}
    assert failure(client.post("/v1/embeddings", json=sent), 404)["code"] == "model_not_found"

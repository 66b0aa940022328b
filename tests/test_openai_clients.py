"""Clients that people use, each against a real server: the SDK of OpenAI, LangChain, curl, the AI SDK of npm."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import uvicorn
from conftest import MakeService
from fakes import FixedAdapters, HashingEmbedder, ScriptedGenerator, wait_until
from pydantic import BaseModel

from service.api.app import create_app
from service.keys import create_key
from service.running import Service
from tuner.prompt import REFUSAL

TIDES = "How often does the moon raise the tides of the ocean?"
TWICE = "The moon raises the tides twice a day [1]."
SPRING = "Spring tides come at full moon [1]."
ENDLESS = f"{TWICE} " + " ".join(f"The moon raises the tides and day number{n} passes." for n in range(2000))
ASKED: Any = [{"role": "user", "content": TIDES}]


class Tides(BaseModel):
    """What is asked for as JSON."""

    often: str
    raised_by: str | None


@pytest.fixture
def generator() -> ScriptedGenerator:
    return ScriptedGenerator(f"{TWICE} The moon is made of cheese. Spring tides come at full moon.")


@pytest.fixture
def service(make_service: MakeService, generator: ScriptedGenerator) -> Service:
    return make_service(generator, FixedAdapters(["sailor"]), max_tokens=4000, prompt_tokens=500)


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    """The address of a real server with that service, and its key in the environment of no one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(create_app(service), log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def key(service: Service) -> str:
    return create_key(service.store, "anna", "user")


MakeClient = Callable[..., openai.OpenAI]


@pytest.fixture
def make_client(url: str, key: str) -> Iterator[MakeClient]:
    made: list[openai.OpenAI] = []

    def make(**options: Any) -> openai.OpenAI:
        values = {"base_url": f"{url}/v1", "api_key": key, "max_retries": 0} | options
        made.append(openai.OpenAI(**values))
        return made[-1]

    yield make
    for client in made:
        client.close()


def check_sources(content: str, annotations: Any, url: str) -> None:
    assert annotations
    for annotation in annotations:
        cited = annotation["url_citation"] if isinstance(annotation, dict) else annotation.url_citation.model_dump()
        assert content[cited["start_index"] : cited["end_index"]] == "[1]"
        assert cited["url"].startswith(f"{url}/sources/") and cited["title"] == "Tides"


# The SDK of OpenAI


def test_openai_answers(make_client: MakeClient, url: str) -> None:
    client = make_client()
    assert "tandem-rag" in [model.id for model in client.models.list()]
    answered = client.chat.completions.create(model="tandem", messages=ASKED, temperature=0.2)
    message = answered.choices[0].message
    assert message.content == f"{TWICE} {SPRING}"
    assert answered.choices[0].finish_reason == "stop"
    assert answered.usage is not None and answered.usage.total_tokens > 0
    check_sources(message.content, message.annotations, url)
    assert answered._request_id, "the id under which the service's log has it"


def test_openai_streams(make_client: MakeClient, url: str) -> None:
    with make_client().chat.completions.create(
        model="tandem", messages=ASKED, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    content = "".join(choice.delta.content or "" for choice in choices)
    assert content == f"{TWICE} {SPRING}"
    annotations = [part for choice in choices for part in (choice.delta.model_extra or {}).get("annotations", [])]
    check_sources(content, annotations, url)
    assert [choice.finish_reason for choice in choices][-1] == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0


def test_openai_parses_json(make_client: MakeClient, generator: ScriptedGenerator) -> None:
    generator.script = '{"often": "The tides come twice a day.", "raised_by": "Cheese and butter raise them."}'
    client = make_client()
    message = client.chat.completions.parse(model="tandem", messages=ASKED, response_format=Tides).choices[0].message
    assert message.parsed == Tides(often="The tides come twice a day.", raised_by=None)
    generator.script = '{"often": "Cheese is made of nothing.", "raised_by": null}'
    message = client.chat.completions.parse(model="tandem", messages=ASKED, response_format=Tides).choices[0].message
    assert (message.parsed, message.refusal) == (None, REFUSAL)


def test_openai_embeds(make_client: MakeClient) -> None:
    texts = ["the moon", "bread and butter"]
    for options in ({}, {"encoding_format": "float"}):
        made = make_client().embeddings.create(model="tandem-embedder", input=texts, **options)  # type: ignore[arg-type]
        rows = np.array([item.embedding for item in made.data], np.float32)
        np.testing.assert_allclose(rows, HashingEmbedder().embed_documents(texts), rtol=1e-6)


def test_openai_is_told_what_is_wrong(make_client: MakeClient, generator: ScriptedGenerator) -> None:
    client = make_client()
    ask = client.chat.completions.create
    with pytest.raises(openai.AuthenticationError) as unknown_key:
        make_client(api_key="wrong").chat.completions.create(model="tandem", messages=ASKED)
    assert unknown_key.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as no_model:
        ask(model="gpt-4", messages=ASKED)
    assert (no_model.value.code, no_model.value.param) == ("model_not_found", "model")
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="needs an adapter"):
            ask(model="tandem-tuned", messages=ASKED, stream=stream)
    image: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]
    with pytest.raises(openai.BadRequestError, match="something else than text"):
        ask(model="tandem", messages=image)
    with pytest.raises(openai.BadRequestError) as too_long:
        ask(model="tandem", messages=[{"role": "user", "content": "x" * 5000}])
    assert too_long.value.code == "context_length_exceeded"
    generator.script = "The moon raises the tides twice a day. Spring tides come at full moon. And so on."
    generator.fail_after = 13
    with pytest.raises(openai.APIError, match="internal error") as broken:
        for chunk in ask(model="tandem", messages=ASKED, stream=True):
            assert chunk.choices
    assert broken.value.type == "server_error"


def test_a_full_queue_is_an_error_that_openai_tries_again(
    make_service: MakeService, make_client: MakeClient, service: Service, generator: ScriptedGenerator
) -> None:
    generator.script, generator.delay, generator.window = ENDLESS, 0.01, 10_000
    service.answerer.admission._depth = 1
    client = make_client()
    first = client.chat.completions.create(model="tandem", messages=ASKED, stream=True)
    next(iter(first))
    second = threading.Thread(target=lambda: _ignoring(client))
    second.start()
    wait_until(lambda: len(service.answerer.admission) == 2)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as busy:
            client.chat.completions.create(model="tandem", messages=ASKED, stream=stream)
        assert busy.value.status_code == 503
        assert int(busy.value.response.headers["retry-after"]) > 0
    generator.script = TWICE
    first.close()
    second.join()


def _ignoring(client: openai.OpenAI) -> None:
    client.chat.completions.create(model="tandem", messages=ASKED)


def test_a_client_that_closes_its_stream_stops_the_model(
    make_client: MakeClient, service: Service, generator: ScriptedGenerator
) -> None:
    generator.script, generator.delay, generator.window = ENDLESS, 0.01, 10_000
    stream = make_client().chat.completions.create(model="tandem", messages=ASKED, stream=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: bool(generator.ends), seconds=3)
    assert generator.ends[0] in ("cancelled", "closed")
    wait_until(lambda: len(service.answerer.admission) == 0)


# LangChain


def test_langchain(url: str, key: str, generator: ScriptedGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    chat = ChatOpenAI(model="tandem", base_url=f"{url}/v1", api_key=key, max_retries=0)  # type: ignore[arg-type]
    answered = chat.invoke([("system", "Be brief."), ("human", TIDES)])
    assert answered.text == f"{TWICE} {SPRING}"
    assert answered.usage_metadata is not None and answered.usage_metadata["total_tokens"] > 0
    assert "".join(chunk.text for chunk in chat.stream(TIDES)) == f"{TWICE} {SPRING}"
    embed = OpenAIEmbeddings(
        model="tandem-embedder", base_url=f"{url}/v1", api_key=key, check_embedding_ctx_length=False
    )  # type: ignore[call-arg]
    assert len(embed.embed_query("the moon")) == HashingEmbedder().dimension
    generator.script = '{"often": "The tides come twice a day.", "raised_by": null}'
    structured = chat.with_structured_output(Tides, method="json_schema").invoke(TIDES)
    assert structured == Tides(often="The tides come twice a day.", raised_by=None)


# curl


def curl(*arguments: str) -> str:
    found = shutil.which("curl")
    if found is None:
        pytest.skip("curl is not installed")
    return subprocess.run(
        [found, "-sS", "--max-time", "20", *arguments], capture_output=True, text=True, check=True
    ).stdout


def test_curl(url: str, key: str) -> None:
    common = ["-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json"]
    sent = {"model": "tandem", "messages": ASKED}
    plain = json.loads(curl(f"{url}/v1/chat/completions", *common, "-d", json.dumps(sent)))
    assert plain["choices"][0]["message"]["content"] == f"{TWICE} {SPRING}"
    lines = curl("-N", f"{url}/v1/chat/completions", *common, "-d", json.dumps(sent | {"stream": True})).splitlines()
    events = [line for line in lines if line]
    assert events[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in events)
    assert [model["id"] for model in json.loads(curl(f"{url}/v1/models", *common))["data"]][0] == "tandem"
    assert curl("-o", os.devnull, "-w", "%{http_code}", f"{url}/v1/models") == "401"


# The AI SDK of npm


AI_SCRIPT = """
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, streamText } from "ai";
import { z } from "zod";
const openai = createOpenAI({ baseURL: process.argv[2] + "/v1", apiKey: process.argv[3] });
const model = openai.chat("tandem");
const prompt = process.argv[4];
const plain = await generateText({ model, prompt, maxRetries: 0 });
const stream = streamText({ model, prompt, maxRetries: 0 });
let text = "";
for await (const part of stream.textStream) text += part;
let failed = null;
try { await generateText({ model: openai.chat("gpt-4"), prompt, maxRetries: 0 }); }
catch (error) { failed = { status: error.statusCode, message: error.message }; }
const [found, reason, usage] = [await stream.sources, await stream.finishReason, await stream.usage];
const sources = (list) => list.map((source) => ({ type: source.sourceType, url: source.url, title: source.title }));
console.log(JSON.stringify({
  plain: { text: plain.text, sources: sources(plain.sources), reason: plain.finishReason, usage: plain.usage },
  stream: { text, sources: sources(found), reason, usage },
  failed,
}));
"""
AI_PACKAGES = ("ai@6", "@ai-sdk/openai@3", "zod@4")


@pytest.fixture(scope="session")
def ai_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the AI SDK of npm; node and npm are installed where that is possible."""
    if shutil.which("npm") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "nodejs", "npm"]):
            subprocess.run(["apt-get", *command], env=environment, capture_output=True, check=False, timeout=300)
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed and could not be")
    folder = tmp_path_factory.mktemp("ai")
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", *AI_PACKAGES]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if installed.returncode:
        pytest.skip(f"the AI SDK could not be installed: {installed.stderr[-300:]}")
    (folder / "ask.mjs").write_text(AI_SCRIPT)
    return folder


@pytest.mark.slow
def test_the_sources_arrive_in_the_ai_sdk(ai_folder: Path, url: str, key: str) -> None:
    done = subprocess.run(
        ["node", "ask.mjs", url, key, TIDES], cwd=ai_folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for way in ("plain", "stream"):
        assert told[way]["text"] == f"{TWICE} {SPRING}"
        assert told[way]["reason"] == "stop"
        assert told[way]["usage"]["totalTokens"] > 0
        assert len(told[way]["sources"]) == 2
        for source in told[way]["sources"]:
            assert source["type"] == "url" and source["title"] == "Tides"
            assert source["url"].startswith(f"{url}/sources/")
    assert told["failed"]["status"] == 404 and "no such model" in told["failed"]["message"]


# With the real weights


@pytest.mark.slow
def test_openai_with_the_real_model(server_url: str) -> None:
    with openai.OpenAI(base_url=f"{server_url}v1", api_key="none", timeout=300) as client:
        asked: Any = [{"role": "user", "content": "Which port does Tandem use by default?"}]
        answered = client.chat.completions.create(model="tandem-rag", messages=asked, max_tokens=40)
        message = answered.choices[0].message
        assert message.content
        for annotation in message.annotations or []:
            cited = annotation.url_citation
            assert message.content[cited.start_index : cited.end_index].startswith("[")
        schema = {"type": "object", "properties": {"port": {"type": ["integer", "null"]}}, "required": ["port"]}
        wanted: Any = {"type": "json_schema", "json_schema": {"name": "port", "schema": schema}}
        filled = client.chat.completions.create(model="tandem-rag", messages=asked, response_format=wanted)
        found = filled.choices[0].message
        assert found.refusal or json.loads(found.content or "").keys() == {"port"}
        title: Any = [
            {"role": "user", "content": '### Task:\nWrite a title.\nJSON format: { "title": "..." }\nUSER: tides'}
        ]
        told = client.chat.completions.create(model="tandem", messages=title).choices[0].message.content
        assert json.loads(told or "").keys() == {"title"}
        assert len(client.embeddings.create(model="tandem-embedder", input="port").data[0].embedding) == 384

"""A request for a chat completion -> a Question, or an error that names the field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.answering import Answerer
from service.api.openai.errors import RequestError
from service.api.openai.models import read_model
from service.api.openai.tasks import MOST_TOKENS, is_task, shortened, task_schema
from service.history import Turn
from service.jsonschemas import read_response_format
from service.question import Question
from service.settings import Settings
from service.structured import Form

MAX_TOKENS = 4096


class MessageBody(BaseModel):
    """A message; only the texts of users and of the assistant are read."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(BaseModel):
    """What a stream holds beside the answer."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None


class ChatBody(BaseModel):
    """The parameters that have an effect. Clients send many more, which are accepted and change nothing."""

    model_config = ConfigDict(extra="ignore")

    model: Annotated[str, Field(min_length=1, max_length=128)]
    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=2000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: dict[str, Any] | None = None
    n: Literal[1] | None = None


def read_chat(body: ChatBody, answerer: Answerer, settings: Settings) -> Question:
    """The question: the last message of the user, with the turns before it as history. Raises TandemError."""
    mode, adapter = read_model(settings.home, body.model)
    texts = [(message.role, _text(message, place)) for place, message in enumerate(body.messages)]
    last = max((place for place, (role, text) in enumerate(texts) if role == "user" and text.strip()), default=None)
    if last is None:
        raise RequestError(
            "There is no message of the user.", expected="A message with the role user.", param="messages"
        )
    question = texts[last][1]
    most = _most_tokens(body, answerer, settings)
    system = next((text for role, text in texts if role in ("system", "developer")), "")
    schema = read_response_format(body.response_format)
    if is_task(system, question):
        schema = schema or task_schema(question)
        return Question(
            shortened(question, settings.question_chars),
            mode="base",
            max_tokens=min(most, MOST_TOKENS),
            form=None if schema is None else Form(schema),
            task=True,
        )
    history = tuple(
        Turn("user" if role == "user" else "assistant", text) for role, text in texts[:last] if role in _TURNS
    )
    form = None if schema is None else Form(schema)
    return Question(question, mode=mode, adapter=adapter, max_tokens=most, history=history, form=form)


_TURNS = ("user", "assistant")


def _most_tokens(body: ChatBody, answerer: Answerer, settings: Settings) -> int:
    """A limit is a most, so one that is higher than what there is room for is met by less."""
    wanted = body.max_completion_tokens or body.max_tokens or settings.max_tokens
    room = answerer.generator.window - settings.prompt_tokens
    return max(1, min(wanted, MAX_TOKENS, max(room, settings.max_tokens)))


def _text(message: MessageBody, place: int) -> str:
    if not isinstance(message.content, list):
        return message.content or ""
    texts = []
    for part in message.content:
        text = part.get("text")
        if part.get("type") not in ("text", "input_text", "output_text") or not isinstance(text, str):
            if message.role not in _TURNS:
                continue
            raise RequestError(
                "A message holds something else than text.",
                expected='A text, or parts of the form {"type": "text", "text": ...}.',
                do="Leave images and files out; documents belong into a corpus.",
                param=f"messages.{place}.content",
            )
        texts.append(text.encode("utf-8", "replace").decode())
    return "\n".join(texts)

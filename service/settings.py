"""Every setting, once: defaults here, then tandem.toml in the working folder, then TANDEM_* environment variables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import TomlConfigSettingsSource as TomlSource

from indexer.errors import TandemError
from service.given import PREFIX, SETTINGS_FILE, unreadable


class Example(BaseModel):
    """A question with the answer that is wanted, and the passage it comes from where it comes from one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    title: str = ""
    passage: str = ""


# Passages that a search lists when it is not told how many.
SEARCH_K = 10


class Settings(BaseSettings):
    """What can be set. A field's description is its line in the manual (corpora/manual/configuration.md)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, toml_file=SETTINGS_FILE, extra="forbid", frozen=True)

    home: Path = Field(Path(".tandem"), description="Folder that holds all state.")
    weights: Path | None = Field(
        None, description="Folder of model weights; `weights` inside the home folder if unset."
    )
    corpora: Annotated[tuple[Path, ...], NoDecode] = Field(
        (Path("corpora"),), description="Folders to index; in the environment, separated by colons."
    )
    embedder: str = Field(
        "bundled", description="`bundled`, a directory, or a hub id of a sentence-transformers model."
    )
    base_model: str = Field("bundled", description="`bundled`, a directory, or a hub id of a causal language model.")
    quantisation: Literal["auto", "none", "int8", "nf4"] = Field(
        "auto", description="How the base model's weights are held; `auto` is int8 on a CPU and none on a GPU."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run; `auto` takes a GPU if present."
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads for the models; 0 uses every core it may.")
    mode: Literal["auto", "base", "tuned", "rag", "rag+tuned"] = Field(
        "auto",
        description="The mode for a question that names none; `auto` is what won the last comparison, and before any"
        " it is rag+tuned with an active adapter, else rag.",
    )
    k: int = Field(2, ge=1, le=100, description="Passages a question is answered from.")
    channel: Literal["hybrid", "dense", "bm25"] = Field(
        "hybrid", description="What passages are searched by: meaning (`dense`), words (`bm25`) or both."
    )
    per_source: int = Field(
        0, ge=0, le=100, description="The most passages of one document while others have some; 0 is any number."
    )
    reranker: str = Field(
        "", description="A directory or hub id of a sentence-transformers CrossEncoder; unset, none is used."
    )
    chunk_tokens: int = Field(160, ge=16, description="Tokens of text in a chunk, counted by the embedder.")
    chunk_overlap: int = Field(24, ge=0, description="Tokens of a chunk that repeat the end of the one before.")
    passage_cache: Literal["off", "on"] = Field(
        "off",
        description="Whether passages are read apart from each other, so that each is known again wherever it stands.",
    )
    passage_cache_mb: int = Field(
        64, ge=0, le=1_000_000, description="The most megabytes of memory for what was read of passages."
    )
    passage_cache_disk_mb: int = Field(
        256, ge=0, le=1_000_000, description="The most megabytes of files for it, when it comes again; 0 writes none."
    )
    answer_cache: int = Field(
        256, ge=0, le=100_000, description="Answers kept for when the same prompt comes again; 0 keeps none."
    )
    max_tokens: int = Field(160, ge=1, le=4096, description="The most tokens an answer may have.")
    prompt_tokens: int = Field(
        1792, ge=128, description="The most tokens a prompt may have; passages over it are dropped."
    )
    role: str = Field(
        "", max_length=2000, description="Who the base model is told to be, before its instruction; not for adapters."
    )
    examples: tuple[Example, ...] = Field(
        (), max_length=16, description="Questions with their answers, shown to the base model first; not for adapters."
    )
    history: int = Field(
        8, ge=0, le=100, description="The most earlier messages that are read with a question; older ones are dropped."
    )
    chat_sources: Literal["annotations", "footer", "both"] = Field(
        "annotations",
        description="How /v1/chat/completions gives sources: `annotations`, a Markdown `footer`, or both.",
    )
    public_url: str = Field(
        "",
        pattern=r"^(/|https?://\S+)?$",
        description="What links to sources begin with in /v1; unset, the address asked; `/` keeps them relative.",
    )
    link_minutes: int = Field(
        0, ge=0, le=10_080, description="How long links to sources in /v1 open without a key, in minutes; 0 is never."
    )
    min_relevance: float = Field(
        0.25, ge=-1, le=1, description="A question whose best passage is less relevant than this is refused at once."
    )
    answerability: str = Field(
        "", description="A model of `tandem tune --recipe answerability` that may refuse as well; unset, none does."
    )
    refusal_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="From this doubt on an adapter refuses, merged or not; unset, from that of its card on.",
    )
    host: str = Field("127.0.0.1", description="Address the service listens on; others than loopback need a key.")
    port: int = Field(8000, ge=0, le=65535, description="Port the service listens on; 0 takes a free one.")
    question_chars: int = Field(4000, ge=1, le=100_000, description="The most characters a question may have.")
    body_bytes: int = Field(65_536, ge=1024, description="The most bytes a request body may have.")
    upload_bytes: int = Field(50_000_000, ge=1024, description="The most bytes an uploaded file may have.")
    upload_types: str = Field(
        "", description="Endings that may be uploaded, as in `.md .pdf`; unset, all that Tandem can read."
    )
    groups: dict[str, tuple[str, ...]] = Field(
        {}, description="Who may read what: patterns of paths, each with the groups of which a key needs one."
    )
    batch: int = Field(
        4, ge=1, le=64, description="Questions that the model answers at once; each takes memory for what it reads."
    )
    queue: int = Field(
        16, ge=1, le=1024, description="Questions that may wait for the model; more are told to come back."
    )
    queue_seconds: float = Field(60.0, gt=0, description="How long a question may wait for the model.")
    rate: str = Field(
        "", description="How often each key may ask, as in `60/minute` or `10/second;1000/day`; unset, any number."
    )
    receipt_seconds: float = Field(
        10.0, ge=1, le=3600, description="How long the headers of a request may take to arrive, and its body again."
    )
    drain_seconds: float = Field(
        10.0, ge=0, le=3600, description="How long answers may still take when the service is stopped."
    )
    user_key: SecretStr | None = Field(None, description="An access key for users, for containers; see `tandem keys`.")
    admin_key: SecretStr | None = Field(None, description="An access key for administrators, likewise.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="How much is logged.")
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="How log lines look; `auto` is text on a terminal and JSON elsewhere."
    )
    log_questions: bool = Field(False, description="Whether the log holds the questions that were asked.")
    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Where OpenTelemetry traces are sent, such as `http://127.0.0.1:4318/v1/traces`; unset, nowhere.",
    )

    @field_validator("groups", mode="before")
    @classmethod
    def _one_group_or_more(cls, value: object) -> object:
        return {k: (v,) if isinstance(v, str) else v for k, v in value.items()} if isinstance(value, dict) else value

    @field_validator("groups")
    @classmethod
    def _are_groups(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for pattern, groups in value.items():
            if not pattern.strip("/ "):
                raise ValueError("a pattern of paths is empty")
            if not all(re.fullmatch(r"[\w.@-]{1,64}", group) for group in groups):
                raise ValueError(f"the groups of {pattern!r} are not names of letters, digits, dots and dashes")
        return value

    @field_validator("corpora", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return tuple(part for part in value.split(":") if part) if isinstance(value, str) else value

    @field_validator("rate")
    @classmethod
    def _is_a_rate(cls, value: str) -> str:
        if value:
            from limits import parse_many

            if any(item.amount < 1 for item in parse_many(value)):
                raise ValueError("a rate lets at least one request through")
        return value

    @field_validator("user_key", "admin_key")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        # 16 characters of any kind cannot be guessed over HTTP.
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("an access key has at least 16 characters")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment over file; .env files and secret folders are not read."""
        return init_settings, env_settings, TomlSource(settings_cls)

    @property
    def weights_folder(self) -> Path:
        """Where model weights are kept."""
        return self.weights or self.home / "weights"


def load_settings(**overrides: Any) -> Settings:
    """Settings from all sources, `overrides` first. Raises TandemError that names the setting and its source."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        known = name in Settings.model_fields
        shown = "" if "key" in name else f" (it is {first.get('input')!r})"
        raise TandemError(
            f"The setting {name!r} is not valid: {first['msg']}{shown}." if known else f"There is no setting {name!r}.",
            expected=Settings.model_fields[name].description or "" if known else "A setting the manual lists.",
            do=f"Correct {PREFIX}{name.upper()} or {name} in {SETTINGS_FILE}.",
        ) from None
    except ValueError as error:
        raise unreadable(error) from error

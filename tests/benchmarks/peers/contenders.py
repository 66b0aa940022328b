"""Who takes part: how each server is started, what it must have installed, and what it is sent.

All are told to answer greedily. Where a server has a switch that would make it slower here, it is set in its favour:
that of llama-cpp-python would compute the logits of the whole prompt, and drop an answer when another question comes.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.questions import Asked

HERE = Path(__file__).parent
PROMPT_CACHE_MIB = 2048
LLAMA = "llama.cpp"
NAMES = ("tandem", LLAMA, "llama-cpp-python", "tutorial", "transformers", "openvino")


@dataclass(frozen=True, slots=True)
class Setup:
    """What all peers share: interpreter of the peers, files, threads and sizes."""

    python: str
    home: Path
    weights: Path
    documents: Path
    embedder: Path
    model: Path
    ggufs: tuple[Path, ...]
    llama_server: Path | None
    threads: int
    slots: int
    k: int
    context: int


@dataclass(frozen=True, slots=True)
class Contender:
    """A server with its options. `modules` must be importable by `python`; `install` gets them."""

    name: str
    command: Sequence[str]
    ready: str
    body: Callable[[Asked, int], dict[str, Any]]
    python: str = sys.executable
    modules: tuple[str, ...] = ()
    install: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    is_tandem: bool = False


def contenders(peer: str, setup: Setup) -> list[Contender]:
    """The variants of a peer that are measured."""
    if peer == "tandem":
        return [_tandem(setup), _tandem(setup, PROMPT_CACHE_MIB), _tandem(setup, PROMPT_CACHE_MIB, apart=True)]
    if peer == LLAMA:
        return [_llama(setup, gguf, cache=cache) for gguf in setup.ggufs for cache in (False, True)]
    if peer == "llama-cpp-python":
        return [_llama_cpp_python(setup, gguf, cache=cache) for gguf in setup.ggufs for cache in (False, True)]
    if peer == "tutorial":
        return [_tutorial(setup)]
    if peer == "transformers":
        return [_transformers(setup)]
    return [_openvino(setup, gguf) for gguf in setup.ggufs]


def _tandem(setup: Setup, mebibytes: int | None = None, *, apart: bool = False) -> Contender:
    """By default with the memory for passages that it has by default; with more, passages of all questions stay."""
    room = {} if mebibytes is None else {"TANDEM_PASSAGE_CACHE_MB": str(mebibytes)}
    kept = "" if mebibytes is None else f", {mebibytes} MB for passages"
    return Contender(
        name=f"Tandem{kept}{', passage_cache on' if apart else ''}",
        command=[str(Path(sys.executable).with_name("tandem")), "serve", "--port", "{port}"],
        ready="/readyz",
        body=lambda asked, most: {"question": asked.question, "mode": "rag", "k": setup.k, "max_tokens": most},
        environment={
            "TANDEM_HOME": str(setup.home),
            "TANDEM_WEIGHTS": str(setup.weights),
            "TANDEM_THREADS": str(setup.threads),
            "TANDEM_PASSAGE_CACHE": "on" if apart else "off",
            # What one server leaves in files, the next would know.
            "TANDEM_PASSAGE_CACHE_DISK_MB": "0",
            "TANDEM_ANSWER_CACHE": "0",
            # More than any number of clients here: who is sent away is not measured.
            "TANDEM_QUEUE": "1024",
            "TANDEM_QUEUE_SECONDS": "3600",
            "TANDEM_LOG_LEVEL": "error",
            **room,
        },
        is_tandem=True,
    )


def _llama(setup: Setup, gguf: Path, *, cache: bool) -> Contender:
    mebibytes = str(PROMPT_CACHE_MIB if cache else 0)
    threads, slots = str(setup.threads), str(setup.slots)
    if setup.llama_server is None:
        settings = {"gguf": str(gguf), "threads": threads, "slots": slots, "context": str(setup.context)}
        command = [setup.python, str(HERE / "llama_server.py"), *_options(settings), "--cache-mebibytes", mebibytes]
    else:
        settings = {"model": str(gguf), "threads": threads, "parallel": slots, "cache-ram": mebibytes}
        command = [str(setup.llama_server), *_options(settings), "--ctx-size", str(setup.context * setup.slots)]
        command += ["--no-ui", "--no-kv-unified", "--cache-prompt" if cache else "--no-cache-prompt"]
    built = "wheel" if setup.llama_server is None else "built here"
    return Contender(
        name=f"{LLAMA} ({built}) {_numbers(gguf)}, prompt cache {_on(cache)}",
        command=[*command, "--port", "{port}"],
        ready="/health",
        body=lambda asked, most: _completion(asked, most) | {"cache_prompt": cache},
        python=setup.python,
        modules=("xllamacpp",) if setup.llama_server is None else (),
        install="xllamacpp",
    )


def _llama_cpp_python(setup: Setup, gguf: Path, *, cache: bool) -> Contender:
    threads = str(setup.threads)
    settings = {
        "model": str(gguf),
        "port": "{port}",
        "n_threads": threads,
        "n_threads_batch": threads,
        "n_ctx": str(setup.context),
        "n_batch": "512",
        "logits_all": "false",
        "interrupt_requests": "false",
        "verbose": "false",
        "cache": str(cache).lower(),
        "cache_size": str(PROMPT_CACHE_MIB << 20),
    }
    return Contender(
        name=f"llama-cpp-python {_numbers(gguf)}, prompt cache {_on(cache)}",
        command=[setup.python, "-m", "llama_cpp.server", *_options(settings)],
        ready="/v1/models",
        # It would punish repetition by default.
        body=lambda asked, most: _completion(asked, most) | {"repeat_penalty": 1.0},
        python=setup.python,
        modules=("llama_cpp", "uvicorn", "sse_starlette"),
        install="'llama-cpp-python[server]'",
    )


def _transformers(setup: Setup) -> Contender:
    options = ["--port", "{port}", "--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    program = str(Path(setup.python).with_name("transformers"))
    return Contender(
        name="transformers serve, float32",
        command=[program, "serve", str(setup.model), *options],
        ready="/health",
        body=lambda asked, most: _completion(asked, most) | {"model": str(setup.model)},
        python=setup.python,
        modules=("torch", "transformers", "fastapi", "uvicorn", "openai"),
        install="'torch~=2.13.0' 'transformers[serving]>=5.23,<6'",
    )


def _tutorial(setup: Setup) -> Contender:
    files = {"documents": str(setup.documents), "embedder": str(setup.embedder), "model": str(setup.model)}
    return Contender(
        name="tutorial, float32",
        command=[
            setup.python,
            str(HERE / "tutorial_server.py"),
            *_options(files),
            "--k",
            str(setup.k),
            "--port",
            "{port}",
        ],
        ready="/",
        body=lambda asked, most: _completion(asked, most) | {"question": asked.question},
        python=setup.python,
        modules=(
            "torch",
            "transformers",
            "langchain_community",
            "langchain_huggingface",
            "sentence_transformers",
            "faiss",
        ),
        install="'torch~=2.13.0' 'transformers>=5.23,<6' langchain-community langchain-huggingface"
        " langchain-text-splitters sentence-transformers faiss-cpu",
    )


def _openvino(setup: Setup, gguf: Path) -> Contender:
    options = ["--gguf", str(gguf), "--threads", str(setup.threads), "--port", "{port}"]
    return Contender(
        name=f"OpenVINO GenAI {_numbers(gguf)}",
        command=[setup.python, str(HERE / "openvino_server.py"), *options],
        ready="/",
        body=lambda asked, most: _completion(asked, most) | {"question": asked.question},
        python=setup.python,
        modules=("openvino_genai",),
        install="openvino-genai",
    )


def _options(settings: Mapping[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def _on(cache: bool) -> str:
    return "on" if cache else "off"


def _completion(asked: Asked, most: int) -> dict[str, Any]:
    return {"prompt": asked.prompt, "max_tokens": most, "temperature": 0}


def _numbers(gguf: Path) -> str:
    """Q4_1 of model.Q4_1.gguf."""
    return gguf.stem.rpartition(".")[2] or gguf.stem

"""One server under a number of clients: all questions once with cold passages, then again with known ones."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from peers.client import Reply, ask, complete, prompt_tokens
from peers.contenders import Contender
from peers.process import Running, serving
from peers.questions import Asked, Twice

Phase = Literal["cold", "known"]
# Whatever library a server computes with, it is told the same number of threads.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Round:
    """All questions once. Seconds; `peak` in MiB is that of the process since its start, loading included."""

    name: str
    clients: int
    phase: Phase
    replies: tuple[Reply, ...]
    wall: float
    cpu: float
    peak: float
    ready: float


@dataclass(frozen=True, slots=True)
class Run:
    """What is asked of every contender, and with what."""

    warm: Asked
    questions: tuple[Twice, ...]
    tokenizer: Any
    max_tokens: int
    threads: int
    logs: Path


def check_installed(contender: Contender) -> None:
    """Exit with the command that installs what is missing."""
    program = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    command = [contender.python, "-c", program, *contender.modules]
    missing = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    if missing:
        raise SystemExit(
            f"{contender.name} needs {', '.join(missing)}, which {contender.python} does not have."
            f" Install it: {contender.python} -m pip install {contender.install}"
        )


def measure(contender: Contender, clients: int, run: Run) -> list[Round]:
    """Start the server, warm it up, ask, stop it."""
    cores = set(sorted(os.sched_getaffinity(0))[: run.threads])
    environment = _environment(contender.environment, run.threads)
    log = run.logs / f"{contender.name.replace(' ', '-')}.{clients}.log"
    with serving(contender.command, environment, cores, contender.ready, log) as server:
        _warm_up(contender, server, run)
        rounds: list[tuple[Phase, list[Asked]]] = [
            ("cold", [question.cold for question in run.questions]),
            ("known", [question.known for question in run.questions]),
        ]
        return [_round(contender, server, clients, phase, asked, run) for phase, asked in rounds]


def _round(
    contender: Contender, server: Running, clients: int, phase: Phase, asked: Sequence[Asked], run: Run
) -> Round:
    began, used = time.perf_counter(), server.cpu_seconds()
    with ThreadPoolExecutor(clients) as pool:
        replies = tuple(pool.map(partial(_reply, contender, server.url, run), asked))
    wall, cpu = time.perf_counter() - began, server.cpu_seconds() - used
    peak = server.peak_mebibytes()
    return Round(contender.name, clients, phase, replies, wall, cpu, peak, server.ready_seconds)


def _reply(contender: Contender, url: str, run: Run, asked: Asked) -> Reply:
    body = contender.body(asked, run.max_tokens)
    reply = ask(url, body) if contender.is_tandem else complete(url, body, partial(_count, run.tokenizer))
    _check_prompt(contender, asked, reply.prompt_tokens)
    return reply


def _warm_up(contender: Contender, server: Running, run: Run) -> None:
    """The first request pays for what libraries set up on first use; it also shows that the same tokens are read."""
    _reply(contender, server.url, run, run.warm)
    if not contender.is_tandem:
        _check_prompt(contender, run.warm, prompt_tokens(server.url, contender.body(run.warm, 1)))


def _check_prompt(contender: Contender, asked: Asked, tokens: int | None) -> None:
    if tokens is not None and tokens != asked.tokens:
        raise SystemExit(f"{contender.name} read {tokens} tokens instead of {asked.tokens}: {asked.question}")


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _environment(own: Mapping[str, str], threads: int) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    return clean | dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"HF_HUB_OFFLINE": "1"} | dict(own)

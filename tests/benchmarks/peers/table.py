"""Rounds -> Markdown: medians over all answers of a contender, and its ratio to llama.cpp's server in the same run."""

import statistics
from collections.abc import Callable, Sequence

from peers.client import Reply
from peers.contenders import LLAMA
from peers.rounds import Phase, Round

PHASES: tuple[Phase, ...] = ("cold", "known")


def tables(rounds: Sequence[Round], max_tokens: int) -> str:
    """A table for each number of clients and each phase."""
    return "\n\n".join(
        _table(clients, phase, rounds, max_tokens)
        for clients in sorted({item.clients for item in rounds})
        for phase in PHASES
    )


def equal_length(replies: Sequence[Reply], max_tokens: int) -> float | None:
    """Seconds an answer of `max_tokens` tokens takes at the median first token and speed: answers differ in length."""
    speed = _speed(replies)
    return None if speed is None else _median(replies, lambda reply: reply.first_token) + (max_tokens - 1) / speed


def _table(clients: int, phase: Phase, rounds: Sequence[Round], max_tokens: int) -> str:
    here = [item for item in rounds if (item.clients, item.phase) == (clients, phase)]
    names = list(dict.fromkeys(item.name for item in here))
    baseline = next((name for name in names if name.startswith(LLAMA)), None)
    to = _figures([item for item in here if item.name == baseline], max_tokens) if baseline else None
    answers = len(here[0].replies) * sum(item.name == names[0] for item in here)
    lines = [
        f"{clients} client{'s' if clients > 1 else ''}, {phase} passages, medians of {answers} answers\n",
        f"| | first token | first text | whole answer | tokens | tokens/s | {max_tokens} tokens would take |"
        f" CPU s an answer | answers a minute | peak MiB | times {baseline or LLAMA}: first token, same length |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        own = [item for item in here if item.name == name]
        lines.append(f"| {name} | {_row(own, max_tokens)} | {_ratios(_figures(own, max_tokens), to)} |")
    return "\n".join(lines)


def _row(rounds: Sequence[Round], max_tokens: int) -> str:
    replies = [reply for item in rounds for reply in item.replies]
    speed, equal = _speed(replies), equal_length(replies, max_tokens)
    cells = [
        f"{_median(replies, lambda reply: reply.first_token):.2f} s",
        f"{_median(replies, lambda reply: reply.first_text):.2f} s",
        f"{_median(replies, lambda reply: reply.total):.2f} s",
        f"{_median(replies, lambda reply: reply.tokens):.0f}",
        "-" if speed is None else f"{speed:.1f}",
        "-" if equal is None else f"{equal:.2f} s",
        f"{sum(item.cpu for item in rounds) / len(replies):.2f}",
        f"{60 * len(replies) / sum(item.wall for item in rounds):.1f}",
        f"{max(item.peak for item in rounds):,.0f}",
    ]
    return " | ".join(cells)


def _figures(rounds: Sequence[Round], max_tokens: int) -> tuple[float, float | None]:
    replies = [reply for item in rounds for reply in item.replies]
    return _median(replies, lambda reply: reply.first_token), equal_length(replies, max_tokens)


def _ratios(own: tuple[float, float | None], to: tuple[float, float | None] | None) -> str:
    if to is None:
        return "-"
    return ", ".join("-" if a is None or b is None else f"{a / b:.2f}" for a, b in zip(own, to, strict=True))


def _median(replies: Sequence[Reply], figure: Callable[[Reply], float]) -> float:
    return statistics.median(map(figure, replies))


def _speed(replies: Sequence[Reply]) -> float | None:
    speeds = [reply.speed for reply in replies if reply.speed is not None]
    return statistics.median(speeds) if speeds else None

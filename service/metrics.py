"""Prometheus metrics of one process: what was asked, how it was answered, how long it took, what waits.

Labels have few values, whatever is asked: the template of a route and never an address, the mode, the class of the
status. The registry is our own, so nothing that a library registers for itself appears here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.observation import Observation

# Seconds. Retrieval is tens of milliseconds, an answer of a small model on a CPU some seconds.
FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SLOW = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

# The time at which each counter began would be a third of the text, and nobody asks for it.
disable_created_metrics()  # type: ignore[no-untyped-call]

# A name, what it means, and its present value; None leaves it out.
Gauge = tuple[str, str, float | None]


class Metrics:
    """Counts what ended; `gauges` are read when someone looks."""

    def __init__(self, gauges: Callable[[], Iterable[Gauge]]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "tandem_requests", "Requests that ended.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "tandem_request_seconds", "From a request to its last byte.", ["route"], buckets=SLOW, registry=registry
        )
        self._turned_away = Counter(
            "tandem_turned_away", "Requests that were told to come back.", ["reason"], registry=registry
        )
        self._answers = Counter("tandem_answers", "Answers by their outcome.", ["mode", "outcome"], registry=registry)
        self._tokens = Counter("tandem_tokens", "Tokens read and written.", ["mode", "kind"], registry=registry)
        self._first = Histogram(
            "tandem_first_token_seconds", "To the first token.", ["mode"], buckets=SLOW, registry=registry
        )
        self._retrieval = Histogram(
            "tandem_retrieval_seconds", "To the passages.", ["mode"], buckets=FAST, registry=registry
        )
        registry.register(_Gauges(gauges))
        ProcessCollector(registry=registry)

    def count(self, observation: Observation) -> None:
        """Count a request that has ended, with the answers that it made."""
        route = observation.route
        self._requests.labels(_method(observation.method), route, f"{observation.status // 100}xx").inc()
        self._seconds.labels(route).observe(observation.seconds)
        if observation.turned_away:
            self._turned_away.labels(observation.turned_away).inc()
        for answer in observation.answers:
            cancelled = "cancelled" if answer.finish_reason == "cancelled" else "answered"
            self._answers.labels(answer.mode, "refused" if answer.refused else cancelled).inc()
            self._tokens.labels(answer.mode, "prompt").inc(answer.prompt_tokens)
            self._tokens.labels(answer.mode, "completion").inc(answer.completion_tokens)
            if answer.first_token_ms is not None:
                self._first.labels(answer.mode).observe(answer.first_token_ms / 1000)
            if answer.index_generation is not None:
                self._retrieval.labels(answer.mode).observe(answer.retrieve_ms / 1000)

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    def __init__(self, gauges: Callable[[], Iterable[Gauge]]) -> None:
        self._read = gauges

    def describe(self) -> Iterable[Metric]:
        """Nothing: the values are not to be read when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield _build_info()
        for name, meaning, value in self._read():
            if value is not None:
                yield GaugeMetricFamily(f"tandem_{name}", meaning, value=value)


def _build_info() -> Metric:
    info = GaugeMetricFamily("tandem_build_info", "The version that runs.", labels=["version"])
    info.add_metric([version("tandem-qa")], 1)
    return info


def _method(method: str) -> str:
    # A client may send any word as a method.
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"

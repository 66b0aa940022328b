"""OpenTelemetry traces, for those who name an endpoint: a span for each request, and in it retrieval and generation.

Spans are made when a request has ended, from the times that were noted of it, so that nothing is measured twice and
nothing slows an answer down. Without the `otlp_endpoint` setting this module is not used and nothing is sent anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from indexer.errors import TandemError
from service.observation import Observation

NANOSECONDS = 1_000_000_000


class Tracer:
    """Sends the spans of ended requests in batches, from a thread of its own."""

    def __init__(self, processor: Any) -> None:
        """`processor` is a SpanProcessor of the OpenTelemetry SDK; `load_tracer` makes the one that sends."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        # Resource() itself, not create(): what the environment or the machine says is not sent.
        resource = Resource({"service.name": "tandem", "service.version": version("tandem-qa")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("tandem")

    def export(self, observation: Observation) -> None:
        """Make the spans of a request that has ended. Names and values follow OpenTelemetry's HTTP conventions."""
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        start = int(observation.started * NANOSECONDS)
        end = start + int(observation.seconds * NANOSECONDS)
        parent = TraceContextTextMapPropagator().extract({"traceparent": observation.parent})
        span = self._tracer.start_span(
            f"{observation.method} {observation.route}",
            context=parent,
            kind=SpanKind.SERVER,
            attributes=_request_attributes(observation),
            start_time=start,
        )
        if observation.status >= 500:
            span.set_status(StatusCode.ERROR)
        inside = set_span_in_context(span)
        for answer in observation.answers:
            # The answerer starts when the request has been read and checked, a millisecond after it arrived.
            retrieved = start + int(answer.retrieve_ms * NANOSECONDS / 1000)
            if answer.index_generation is not None:
                self._tracer.start_span("retrieve", context=inside, start_time=start).end(retrieved)
            first = retrieved if answer.first_token_ms is None else start + int(answer.first_token_ms * 1e6)
            attributes: Mapping[str, Any] = {
                "tandem.mode": answer.mode,
                "tandem.refused": answer.refused,
                "gen_ai.usage.input_tokens": answer.prompt_tokens,
                "gen_ai.usage.output_tokens": answer.completion_tokens,
            }
            generate = self._tracer.start_span("generate", context=inside, attributes=attributes, start_time=retrieved)
            generate.add_event("first token", timestamp=first)
            generate.end(start + int(answer.total_ms * 1e6))
        span.end(end)

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        self._provider.shutdown()


def load_tracer(endpoint: str) -> Tracer | None:
    """What sends to `endpoint`, an address such as http://127.0.0.1:4318/v1/traces; None for an empty one.

    Raises TandemError when the extra that holds the exporter is not installed.
    """
    if not endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TandemError(
            f"Traces are to be sent to {endpoint}, and what sends them is not installed ({error.name}).",
            expected="The extra `tracing`.",
            do="Run `pip install 'tandem-qa[tracing]'`, or leave the otlp_endpoint setting empty.",
        ) from None
    return Tracer(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=5)))


def _request_attributes(observation: Observation) -> dict[str, Any]:
    return {
        "http.request.method": observation.method,
        "http.route": observation.route,
        "http.response.status_code": observation.status,
        "tandem.request_id": observation.id,
    }

"""Traces over OpenTelemetry, in the W3C's form. Off until `start`; only that needs more than the standard library.

A run keeps the `traceparent` of the call that asked for it, so each of its attempts, whoever published it and how
often, belongs to the caller's trace.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from onceonly_jobs.errors import ConfigError

HEADER = "traceparent"
Kind = Literal["server", "client", "consumer"]

_NO_SPAN: AbstractContextManager[Any] = nullcontext()
_provider: Any = None


def traceparent() -> str | None:
    """The current span, as the header's value; None where there is none. Imports nothing, so it costs nothing:
    a program that has not imported OpenTelemetry has no span."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    span = trace.get_current_span().get_span_context()
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}" if span.is_valid else None


def inject(headers: MutableMapping[str, str]) -> None:
    """Let a request carry the current span, where there is one. A header that is set already stays."""
    current = traceparent()
    if current is not None and not any(name.lower() == HEADER for name in headers):
        headers[HEADER] = current


def start(component: str) -> None:
    """Send this process's spans where OpenTelemetry's own variables say (OTEL_EXPORTER_OTLP_ENDPOINT and others).

    Once per process, after a fork. A provider that the program has set already is used as it is.
    Raises ConfigError where the packages are missing.
    """
    prepare()
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    given = trace.get_tracer_provider()
    if isinstance(given, TracerProvider):
        use(given)
        return
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    provider = TracerProvider(
        resource=Resource.create({} if named else {"service.name": f"onceonly-{component}"})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    use(provider)


def prepare() -> None:
    """Import what `start` needs, which takes a while. Raises ConfigError where it is missing."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"ONCEONLY_OTEL: {missing.name} is not installed: pip install 'onceonly-jobs[otel]'"
        ) from None


def use(provider: Any) -> None:
    """Make spans with this provider; None: make none."""
    global _provider
    _provider = provider


def flush() -> None:
    """Send what is still held, for a process that is about to end."""
    if _provider is not None and hasattr(_provider, "force_flush"):
        _provider.force_flush(2000)


def started() -> bool:
    """Whether this process makes spans."""
    return _provider is not None


def span(
    name: str, kind: Kind, *, parent: str | None = None, attributes: dict[str, Any] | None = None
) -> AbstractContextManager[Any]:
    """A span for the length of a `with` block, or nothing while traces are off.

    A client's belongs to the current span, the others to `parent`, a traceparent that came from elsewhere; without
    one they begin a trace. Exceptions leave their type only: what they say may be nobody's business.
    """
    if _provider is None:
        return _NO_SPAN
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = None
    if kind != "client":
        context = TraceContextTextMapPropagator().extract({HEADER: parent or ""}, context=Context())
    made: AbstractContextManager[Any] = _provider.get_tracer("onceonly_jobs").start_as_current_span(
        name,
        context=context,
        kind=SpanKind[kind.upper()],
        attributes=attributes or {},
        record_exception=False,
        set_status_on_exception=False,
    )
    return made


def failed(current: Any, why: str) -> None:
    """Mark a span as failed. A span of traces that are off is None."""
    if current is not None:
        from opentelemetry.trace import Status, StatusCode

        current.set_status(Status(StatusCode.ERROR))
        current.set_attribute("error.type", why)

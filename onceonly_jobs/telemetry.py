"""Logs: one line per event on stderr, from structlog and from the standard library alike; secrets are hidden."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any, Literal

import structlog

from onceonly_jobs.redaction import Redactor
from onceonly_jobs.tracing import traceparent

Format = Literal["console", "json"]

_BOUND = frozenset(("key", "run_id", "run", "job", "attempt"))

_NOISY = {
    "alembic": logging.WARNING,
    "amqp": logging.WARNING,
    "asyncio": logging.WARNING,
    "celery.redirected": logging.WARNING,
    "celery.worker.strategy": logging.WARNING,  # a line per received task
    "celery.utils.functional": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "kombu": logging.WARNING,
    "urllib3": logging.WARNING,
}


def configure_logging(
    level: str, component: str, format: Format = "console", secrets: Iterable[str] = ()
) -> None:
    """Send this process's logs to stderr at the given level, each line marked with the component.

    A line has what is bound in its context: request_id, tenant, key, run_id, run, job, and the trace's ids.
    secrets: values to hide wherever they turn up, beside all that looks like one.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _named(component),
        structlog.stdlib.ExtraAdder(),
        _plain,
        _traced,
        _timestamp(format),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(shared, format, Redactor(secrets)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, least in _NOISY.items():
        logging.getLogger(name).setLevel(least if root.level > logging.DEBUG else logging.NOTSET)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger(
        "uvicorn.access"
    ).disabled = True  # our own line per request says more, and not the query


def _plain(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Drops the second, coloured form of uvicorn's messages."""
    event.pop("color_message", None)
    return event


def _named(component: str) -> structlog.typing.Processor:
    """Marks a line with the component where it is ours, else with the library it comes from."""

    def mark(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event = structlog.stdlib.add_logger_name(logger, method, event)
        if event["logger"].startswith("onceonly_jobs"):
            event["logger"] = component
        return event

    return mark


def _traced(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Adds the ids of the current span."""
    current = traceparent()
    if current is not None:
        _, event["trace_id"], event["span_id"], _ = current.split("-")
    return event


def _without_repeats(
    logger: Any, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Drops what is bound in the context where a reader finds it in the message."""
    said = str(event.get("event", ""))
    return {name: value for name, value in event.items() if name not in _BOUND or str(value) not in said}


def _timestamp(format: Format) -> structlog.typing.Processor:
    if format == "json":
        return structlog.processors.TimeStamper(fmt="iso", utc=True)
    return structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)


def _formatter(
    shared: list[structlog.typing.Processor], format: Format, redact: Redactor
) -> logging.Formatter:
    def hide(logger: Any, method: str, line: Any) -> str:
        return redact(str(line))  # of the finished line, so that nothing is overlooked

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(format), hide],
    )


def _rendering(format: Format) -> list[structlog.typing.Processor]:
    if format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    return [
        _without_repeats,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            exception_formatter=structlog.dev.plain_traceback,  # the rich one shows local variables: secrets too
        ),
    ]

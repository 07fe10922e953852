"""Logs: one readable line per event on stderr, from structlog and from the standard library alike."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

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
    "uvicorn.access": logging.WARNING,  # a line per request
}


def configure_logging(level: str, component: str) -> None:
    """Send this process's logs to stderr at the given level, each line marked with the component."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _named(component),
        structlog.stdlib.ExtraAdder(),
        _plain,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
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
    handler.setFormatter(_formatter(shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, least in _NOISY.items():
        logging.getLogger(name).setLevel(least if root.level > logging.DEBUG else logging.NOTSET)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


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


def _formatter(shared: list[structlog.typing.Processor]) -> logging.Formatter:
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        pad_event_to=0,
        exception_formatter=structlog.dev.plain_traceback,  # the rich one shows local variables: secrets too
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )

"""A worker's metrics and traces: its main process shows what the children of its pool count, each child traces."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

from celery import Celery, signals

from onceonly_jobs import metrics, tracing
from onceonly_jobs.config import Settings
from onceonly_jobs.metrics import Exporter

logger = logging.getLogger(__name__)


def show_to_operators(app: Celery, settings: Settings) -> None:
    """Start metrics and traces with the worker, where the settings ask for them."""
    if settings.worker_metrics_port:
        _show_metrics(app, settings)
    if settings.otel:
        _trace(app)


def start_exporter(settings: Settings, port: int) -> Exporter | None:
    """`/metrics` on this port. A port that is taken is no reason not to work: None, and a warning."""
    metrics.put(metrics.BUILD, version("onceonly-jobs"), value=1)
    try:
        return Exporter(settings.metrics_host, port, settings.metrics_token)
    except OSError as error:
        logger.warning("no metrics on %s:%d: %s", settings.metrics_host, port, error)
        return None


def _show_metrics(app: Celery, settings: Settings) -> None:
    shared: list[Path | None] = []
    exporters: list[Exporter] = []

    def sharing(instance: Any, **_: Any) -> None:
        if instance.app is app:  # before the first child, and before anything is counted
            shared.append(metrics.share_between_processes())

    def ready(sender: Any, **_: Any) -> None:
        exporter = start_exporter(settings, settings.worker_metrics_port) if sender.app is app else None
        if exporter is not None:
            exporters.append(exporter)

    def forked(**_: Any) -> None:
        for exporter in exporters:  # a child that replaces another one
            exporter.leave()

    def ended(sender: Any, **_: Any) -> None:
        while shared:
            metrics.forget(shared.pop())

    signals.celeryd_init.connect(sharing, weak=False)
    signals.worker_ready.connect(ready, weak=False)
    signals.worker_process_init.connect(forked, weak=False)
    signals.worker_shutdown.connect(ended, weak=False)


def _trace(app: Celery) -> None:
    def starting(instance: Any, **_: Any) -> None:
        if instance.app is app:
            tracing.prepare()  # here, once: a child that takes long to start is believed dead

    def forked(**_: Any) -> None:
        tracing.start("worker")

    def ready(sender: Any, **_: Any) -> None:
        if sender.app is app and "prefork" not in type(sender.pool).__module__:
            tracing.start("worker")

    def ending(**_: Any) -> None:
        tracing.flush()

    signals.celeryd_init.connect(starting, weak=False)
    signals.worker_process_init.connect(forked, weak=False)
    signals.worker_ready.connect(ready, weak=False)
    signals.worker_process_shutdown.connect(ending, weak=False)
    signals.worker_shutdown.connect(ending, weak=False)

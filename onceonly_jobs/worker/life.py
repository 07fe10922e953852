"""The life of a worker: it shows itself while it serves, and drains when it is told to end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection
from typing import Any

from celery import Celery, bootsteps, signals

from onceonly_jobs.worker.presence import Presence
from onceonly_jobs.worker.runtime import Runtime


class Drain(bootsteps.StartStopStep):  # type: ignore[misc]
    """Drains a worker that ends otherwise than by the signals that Celery tells of: on SIGHUP, by remote control."""

    requires = ("celery.worker.components:Pool",)  # which waits for its children, after this

    def start(self, worker: Any) -> None:
        worker.app.onceonly.shared.serve()  # a program may have had a worker of this app before

    def close(self, worker: Any) -> None:
        runtime = worker.app.onceonly
        if not runtime.shared.draining:
            runtime.shared.drain(runtime.settings.drain_s)


def live(app: Celery, runtime: Runtime, jobs: Collection[str]) -> None:
    """Connect a worker's signals. jobs: the names of those that it serves."""
    present: list[Presence] = []
    hangups = signal.getsignal(signal.SIGHUP)  # before Celery handles them

    def ready(sender: Any, **_: Any) -> None:
        if sender.app is app:
            present.append(Presence(runtime, sender, jobs))
            present[0].start()
            if threading.current_thread() is threading.main_thread():  # else its program gets the signals
                _drain_at_once(runtime)
                if hangups == signal.SIG_IGN:  # as under nohup, which Celery does not look at
                    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def received(sender: Any, **_: Any) -> None:
        for presence in present:
            presence.note_message()

    def ending(sig: str, how: str, **_: Any) -> None:
        # In a signal handler. The first signal leaves its runs their time; a second one, or SIGQUIT, does not.
        runtime.shared.drain(runtime.settings.drain_s if how == "Warm" else 0)

    def ended(sender: Any, **_: Any) -> None:
        while present:
            present.pop().close()

    signals.worker_ready.connect(ready, weak=False)
    signals.task_received.connect(received, weak=False)
    signals.worker_shutting_down.connect(ending, weak=False)
    signals.worker_shutdown.connect(ended, weak=False)


def _drain_at_once(runtime: Runtime) -> None:
    """On SIGQUIT. Celery's own handler waits for the pool, and tells of the signal only then.

    A handler that does not hear of its end is to be stopped meanwhile.
    """
    celerys, pid = signal.getsignal(signal.SIGQUIT), os.getpid()
    if not callable(celerys):
        return

    def ending(*args: Any, celerys: Callable[..., Any] = celerys) -> None:
        if os.getpid() == pid:
            runtime.shared.drain(0)
        celerys(*args)

    signal.signal(signal.SIGQUIT, ending)

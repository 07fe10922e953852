"""Starting quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """For imports: nothing is collected meanwhile, and what is there afterwards is never looked through again.

    Modules stay, so that every collection among them is in vain: together a fifth of the time that a part of the
    system takes to start. Frozen, as Python's documentation advises before a fork, they also stay shared with a
    worker's children.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

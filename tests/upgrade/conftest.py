"""A deployment of the version before."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.versions import Deployment, deployment

_numbers = itertools.count(1)


@pytest.fixture
def ours(servers: Any, template: str, tmp_path: Path) -> Iterator[Deployment]:
    """Of the version before: its schema in a database of its own, and no part that runs yet."""
    name = f"onceonly_upgrade_{os.getpid()}_{next(_numbers)}"
    with deployment(servers, name, tmp_path) as running:
        yield running

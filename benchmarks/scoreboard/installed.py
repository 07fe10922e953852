"""The peers' packages, each in an environment of its own: together, they would hold each other at old versions."""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Protocol


class Peer(Protocol):
    """What is to be known of a peer to have it."""

    @property
    def ours(self) -> bool: ...
    @property
    def adapter(self) -> str: ...
    @property
    def packages(self) -> tuple[str, ...]: ...


def python_with(peer: Peer, directory: Path) -> str:
    """A Python that can import the peer, below this directory; installs what is missing."""
    if peer.ours:
        return sys.executable
    home = directory / peer.adapter
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *peer.packages], check=True)
    return str(python)


def version_of(peer: Peer, python: str) -> str:
    """The version that is measured."""
    if peer.ours:
        return version("onceonly-jobs")
    name = peer.packages[0].partition("[")[0]
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()

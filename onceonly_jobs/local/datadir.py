"""The data directory: private, and the place where passwords and ports are remembered."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from onceonly_jobs.errors import ConfigError


def open_data_dir(path: Path) -> Path:
    """The directory as an absolute path, made when missing (mode 0700). Raises ConfigError when unusable."""
    path = path.resolve()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # An existing directory with other things in it may be shared: its mode is not ours to change.
        if not any(path.iterdir()) and path.stat().st_uid == os.geteuid():
            path.chmod(0o700)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"data directory {path}: not a directory") from None
    except OSError as error:
        raise ConfigError(f"data directory {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"data directory {path}: not writable")
    return path


def write_private(path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner only."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def recall(path: Path) -> dict[str, Any]:
    """What was remembered in a private JSON file; empty when there is none."""
    try:
        remembered = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(remembered, dict):
        raise ConfigError(f"cannot read {path}: not a JSON object")
    return remembered


def remember(path: Path, values: dict[str, Any]) -> None:
    """Keep these values in a private JSON file."""
    write_private(path, json.dumps(values, indent=1) + "\n")

"""The supervisor's terminal: each child's lines under its name."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import TextIO

_COLOURS = (36, 32, 33, 35, 34, 96, 92, 93)
_LONGEST_LINE = 65_536


class Output:
    """Writes whole lines, the name before each; in colour on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colour = stream.isatty()
        self._names: dict[str, str] = {}

    def line(self, name: str, text: str) -> None:
        # A reader that went away (`up | head`), or a full disk, must not stop the servers, nor keep them from ending.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(f"{self._prefix(name)} {text}\n")
            self._stream.flush()

    def _prefix(self, name: str) -> str:
        if name not in self._names:
            padded = f"{name:<8} |"
            colour = _COLOURS[len(self._names) % len(_COLOURS)]
            self._names[name] = f"\x1b[{colour}m{padded}\x1b[0m" if self._colour else padded
        return self._names[name]


class Pipe:
    """A child's standard output and error, read by the event loop and given on line by line."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._rest = b""
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        asyncio.get_running_loop().add_reader(self._reading, self._read)
        self._open = True

    def close(self) -> None:
        """Show what is still in the pipe, and listen no more, whoever else holds its other end."""
        for _ in range(64):
            if not self._open or not self._read():
                break
        self._end()

    def _read(self) -> bool:
        """Pass on what there is now; whether there was any."""
        try:
            data = os.read(self._reading, 65_536)
        except BlockingIOError:
            return False
        if not data:
            self._end()
            return False
        # A line without an end is cut, so it cannot fill the memory.
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            whole, self._rest = [*whole, self._rest], b""
        for line in whole:
            self._show(line.decode(errors="replace").rstrip("\r"))
        return True

    def _end(self) -> None:
        if not self._open:
            return
        self._open = False
        asyncio.get_running_loop().remove_reader(self._reading)
        os.close(self._reading)
        if self._rest:
            self._show(self._rest.decode(errors="replace"))

"""Run a program as an ordinary user, for PostgreSQL refuses root. A script that execs: it leaves no process.

    python -I privilege.py UID GID [--reach DIRECTORY]... -- PROGRAM ARGUMENT...

A data directory or a virtual environment below /root cannot be reached by another user. Opening /root would
change a permission that is not ours, so the program keeps one Linux capability instead, and only where a path
needs it: to pass and read (CAP_DAC_READ_SEARCH), or CAP_DAC_OVERRIDE where that is not enough or not granted.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_SETPCAP = 8

_PR_SET_KEEPCAPS = 8
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def launcher(uid: int, gid: int, reach: list[Path]) -> list[str]:
    """The words to put before a command so that it runs as this user and reaches these paths."""
    words = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(uid), str(gid)]
    for path in reach:
        words += ["--reach", str(path)]
    return [*words, "--"]


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _permitted() -> int:
    """The capabilities this process may use, as bits."""
    data = (_Data * 2)()
    header = _Header(_CAPABILITY_VERSION_3, 0)
    _checked(_libc().capget(ctypes.byref(header), ctypes.byref(data)), "capget")
    return int(data[0].permitted)


def _hold(effective: int, permitted: int) -> None:
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)(_Data(effective, permitted, effective & permitted), _Data(0, 0, 0))
    _checked(_libc().capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def _keep_only(capability: int | None) -> None:
    """Hold this capability, also after exec, and no other."""
    if capability is None:
        _hold(0, 0)
        return
    bit = 1 << capability
    _heed_capabilities_in_access()
    _hold(bit, bit)
    _checked(_libc().prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0), "prctl")


def _heed_capabilities_in_access() -> None:
    """Let access(2) say what open(2) would do: by default it leaves the capabilities of ordinary users out.

    PostgreSQL asks it for its own programs. Without CAP_SETPCAP it stays as it is, which is enough where only
    the data directory is out of reach.
    """
    permitted = _permitted()
    if permitted & (1 << CAP_SETPCAP):
        _hold(1 << CAP_SETPCAP, permitted)
        _libc().prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)


def _needed(program: Path, reach: list[Path], executable_by_all: bool) -> int | None:
    """The least capability that gets the current user to the paths. Called after the drop, without any."""
    if all(os.access(path, os.X_OK) for path in (program, *reach)):
        return None
    may_search = _permitted() & (1 << CAP_DAC_READ_SEARCH)  # containers usually grant only the other one
    return CAP_DAC_READ_SEARCH if executable_by_all and may_search else CAP_DAC_OVERRIDE


def drop(uid: int, gid: int, program: Path, reach: list[Path]) -> None:
    """Become this user, keeping at most the one capability that the paths need."""
    executable_by_all = bool(program.stat().st_mode & 0o001)
    linux = sys.platform == "linux"
    if linux:
        _checked(_libc().prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl")
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if linux:
        _keep_only(_needed(program, reach, executable_by_all))


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    uid, gid, *options = arguments[:split]
    command = arguments[split + 1 :]
    reach = [Path(path) for path in options[1::2]]
    drop(int(uid), int(gid), Path(command[0]), reach)
    os.execv(command[0], command)  # noqa: S606 - an exec without a shell is the point


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"cannot run as an ordinary user: {error}")

"""Free TCP ports on this machine."""

from __future__ import annotations

import errno
import random
import socket
import sys
from collections import deque

from onceonly_jobs.errors import ConfigError

LOOPBACK = "127.0.0.1"

# Below the ports that the system gives to outgoing connections (from 32768 on Linux, 49152 elsewhere), so one
# that was free at the last start is most likely free at the next.
_CHOICE = range(20_000, 32_000)

_claims: deque[socket.socket] = deque()
_MOST_CLAIMS = 64
"""By then, the server for which the first of them was chosen listens."""


def _listen(host: str, port: int) -> None:
    """Listen and stop again. Raises OSError where that cannot be."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen()  # on Linux, two sockets with SO_REUSEADDR can both bind; only one can listen


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen here now."""
    try:
        _listen(host, port)
    except OSError:
        return False
    return True


def check_can_listen(host: str, port: int) -> None:
    """Raises ConfigError, with what to do, where a server could not listen here."""
    try:
        _listen(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} on {host} is in use: choose another with --port") from None
        raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None


def _claim(port: int) -> bool:
    """Whether none of our other processes has just chosen this one: until a server listens, it looks free to all.

    A name in Linux's abstract namespace says so, which lasts as long as this process, and is as far known as the port.
    """
    if sys.platform != "linux":
        return True
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0onceonly-jobs-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    if len(_claims) > _MOST_CLAIMS:
        _claims.popleft().close()
    return True


def free_port(preferred: int | None = None, host: str = LOOPBACK) -> int:
    """The preferred port where it is free, else a random free one."""
    if preferred and is_free(preferred, host):
        return preferred
    chooser = random.SystemRandom()
    for _ in range(100):
        port = chooser.choice(_CHOICE)
        if is_free(port, host) and _claim(port):
            return port
    with socket.create_server((host, 0)) as anything:
        return int(anything.getsockname()[1])

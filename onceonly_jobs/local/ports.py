"""Free TCP ports on this machine."""

from __future__ import annotations

import errno
import random
import socket

from onceonly_jobs.errors import ConfigError

LOOPBACK = "127.0.0.1"

# Below the ports that the system gives to outgoing connections (from 32768 on Linux, 49152 elsewhere), so one
# that was free at the last start is most likely free at the next.
_CHOICE = range(20_000, 32_000)


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


def free_port(preferred: int | None = None, host: str = LOOPBACK) -> int:
    """The preferred port where it is free, else a random free one."""
    if preferred and is_free(preferred, host):
        return preferred
    chooser = random.SystemRandom()
    for _ in range(100):
        port = chooser.choice(_CHOICE)
        if is_free(port, host):
            return port
    with socket.create_server((host, 0)) as anything:
        return int(anything.getsockname()[1])

"""Which addresses a request of a tenant may reach: the public ones, not this network's own."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading

from onceonly_jobs.domain.addresses import Allowed, is_public
from onceonly_jobs.worker.outcomes import Fail, Retry

__all__ = ["Forbidden", "addresses_of", "is_public", "public_address"]

PUBLIC_ONLY = Allowed()


class Forbidden(Exception):
    """A host that a tenant's request may not reach."""


def public_address(host: str, port: int, allowed: Allowed = PUBLIC_ONLY) -> str:
    """An address of the host, each of whose addresses is public or allowed.

    The request has to go to this very address: a name may resolve to another one a moment later.
    Raises Fail for a host of this network, Retry when the name can't be resolved now.
    """
    try:
        return addresses_of(host, port, allowed)[0]
    except Forbidden as error:
        raise Fail("forbidden_target", str(error)) from None
    except OSError as error:
        raise Retry(message=f"{host}: {error}") from error


def addresses_of(
    host: str, port: int, allowed: Allowed = PUBLIC_ONLY, timeout_s: float | None = None
) -> list[str]:
    """The host's addresses, each of which may be reached.

    One that may not is enough to refuse the host: else a name with two addresses would be a lottery.
    Raises Forbidden; OSError when the name can't be resolved now, TimeoutError being one.
    """
    found = _resolved(host, port) if timeout_s is None else _resolved_within(timeout_s, host, port)
    check(host, found, allowed)
    return found


def check(host: str, addresses: list[str], allowed: Allowed) -> None:
    """Nothing, when each of the host's addresses may be reached. Raises Forbidden."""
    for address in addresses:
        if not allowed.permits(ipaddress.ip_address(address.split("%")[0])):
            raise Forbidden(f"{host} is not a public address")


def _resolved(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _resolved_within(timeout_s: float, host: str, port: int) -> list[str]:
    """The same, in time: getaddrinfo has no time-out of its own, and can't be interrupted."""
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_resolved(host, port))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"{host}: the name was not resolved in time") from None
    if isinstance(answer, Exception):
        raise answer
    return answer

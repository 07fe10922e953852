"""Which addresses a request of a tenant may reach: the public ones, not this network's own."""

from __future__ import annotations

import ipaddress
import socket

from onceonly_jobs.worker.outcomes import Fail, Retry

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def public_address(host: str, port: int) -> str:
    """An address of the host, all of whose addresses are public.

    The request has to go to this very address: a name may resolve to another one a moment later.
    Raises Fail for a host of this network, Retry when the name can't be resolved now.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Retry(message=f"{host}: {error}") from error
    addresses = [str(address[0]) for *_, address in found]
    for address in addresses:
        if not is_public(ipaddress.ip_address(address.split("%")[0])):
            raise Fail("forbidden_target", f"{host} is not a public address")
    return addresses[0]


def is_public(address: Address) -> bool:
    """Whether the address, and any other that it stands for, is on the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast

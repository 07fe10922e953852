"""Which addresses are on the public internet, and which others an operator has opened."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

WORDS: dict[str, tuple[str, ...]] = {
    "loopback": ("127.0.0.0/8", "::1/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"),
}
"""Names for networks that are often opened. Link-local addresses are in none of them."""

METADATA = (
    "169.254.0.0/16",  # AWS, Google Cloud, Azure, Oracle, OpenStack, ECS tasks
    "fd00:ec2::/32",  # AWS
    "fd20:ce::/32",  # Google Cloud
    "100.100.100.200/32",  # Alibaba Cloud
    "168.63.129.16/32",  # Azure's WireServer, in the middle of public addresses
    "192.0.0.192/32",  # Oracle Cloud
)
"""Where clouds hand out credentials. No word opens them, only a network that is written out."""


def _networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


_WORDS = {word: _networks(texts) for word, texts in WORDS.items()}
_METADATA = _networks(METADATA)


@dataclass(frozen=True, slots=True)
class Allowed:
    """The addresses that may be reached beside the public ones; by default none."""

    words: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Allowed:
        """What a comma-separated list of `loopback`, `private` and CIDRs opens.

        Raises ValueError naming the part that is none of these.
        """
        parts = [part for part in (part.strip() for part in text.split(",")) if part]
        words = tuple(part for part in parts if part in WORDS)
        return cls(words, tuple(_network(part) for part in parts if part not in WORDS))

    def permits(self, address: Address) -> bool:
        """Whether the address is public or opened."""
        return is_public(address) or self._opens(_unmapped(address))

    def _opens(self, address: Address) -> bool:
        if _within(address, self.networks):
            return True
        opened = any(_within(address, _WORDS[word]) for word in self.words)
        return opened and not _within(address, _METADATA)


def is_public(address: Address) -> bool:
    """Whether the address, and any other that it stands for, is on the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in GLOBAL_UNICAST:  # Python calls ::127.0.0.1 and fec0::1 global
            return False
    return address.is_global and not address.is_multicast and not _within(address, _METADATA)


def _unmapped(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _within(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is not `loopback`, `private` or a network like 10.1.0.0/16: {error}"
        ) from None

"""Who can reach an address, and whose it is."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence

_IPV6_SITE_BITS = 64  # a host may have any address in such a network


def is_loopback(host: str) -> bool:
    """Only this machine. A name other than localhost may mean anything, so it is not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def counted_as(address: str) -> str:
    """An IPv4 address, also within IPv6, or the network that one host of IPv6 has to itself."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _IPV6_SITE_BITS), strict=False))


def is_network(text: str) -> bool:
    """An address, or a network like 10.0.0.0/8."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def as_seen(networks: Sequence[str]) -> list[str]:
    """With those of IPv4 also as a socket of both protocols (`::`) tells of them, within IPv6."""
    known = [ipaddress.ip_network(network) for network in networks]
    mapped = [f"::ffff:{one.network_address}/{96 + one.prefixlen}" for one in known if one.version == 4]
    return [*networks, *mapped]


def within(networks: Sequence[str]) -> Callable[[str], bool]:
    """Whether an address, as `counted_as` gives it, lies in one of them."""
    known = [ipaddress.ip_network(network) for network in networks]

    def is_within(address: str) -> bool:
        try:
            found = ipaddress.ip_network(address)
        except ValueError:
            return False
        return any(network.version == found.version and network.overlaps(found) for network in known)

    return is_within

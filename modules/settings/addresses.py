"""What an address says by itself, without a look-up: whether it is this machine's, and how it is written in a URL."""

from __future__ import annotations

import ipaddress

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def bare(host: str) -> str:
    """An address without the brackets that IPv6 has in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def in_url(host: str) -> str:
    """An address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether a name or address, with brackets or without, is one of this machine to itself."""
    name = bare(host).lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = parse(name)
    return address is not None and address.is_loopback


def parse(text: str) -> IPAddress | None:
    """The IP address that `text` is; an IPv4 address in an IPv6 one is that. None for anything else."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address

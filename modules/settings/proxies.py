"""The proxies that the environment names: whether they can be used, what never goes through them, and which one did."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import os
from collections.abc import Mapping, MutableMapping
from urllib.parse import urlsplit

from modules.errors import UserError
from modules.settings.addresses import bare, is_loopback, parse

log = logging.getLogger(__name__)

DIRECT = ("localhost", ".localhost", "127.0.0.1", "127.0.0.0/8", "::1")
"""This machine under its own names, in the spellings that clients know: many read no networks, and some no leading dot."""
_SCHEMES = ("http", "https", "socks5", "socks5h")


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Check the proxies that `environment` names, and keep this machine's own addresses from them, whatever NO_PROXY says.

    For every HTTP client of this process and of those it starts. Raises UserError naming the variable that cannot be used.
    """
    named = {kind: found for kind in ("http", "https", "all") if (found := _named(kind, environment))}
    excluded = _entries(environment)
    if not named or "*" in excluded:
        return
    for variable, value in named.values():
        _check(variable, value)
    kept = [name for entry in excluded if (name := _readable(entry))]
    both = ",".join(dict.fromkeys((*kept, *DIRECT)))
    environment["NO_PROXY"] = environment["no_proxy"] = both


def through(address: str, environment: Mapping[str, str] = os.environ) -> str:
    """ " through the proxy ADDRESS (VARIABLE)" where a request to `address` goes through one, for an error; else ""."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    excluded = _entries(environment)
    found = _named(parts.scheme, environment) or _named("all", environment)
    if found is None or is_loopback(host) or any(_is_of(host, entry) for entry in excluded):
        return ""
    variable, value = found
    return f" through the proxy {_without_password(value)} ({variable})"


def _named(kind: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """(variable, value) that counts for http, https, all or no: clients take the one in small letters first."""
    for variable in (f"{kind}_proxy", f"{kind}_proxy".upper()):
        if value := environment.get(variable, "").strip():
            return variable, value
    return None


def _entries(environment: Mapping[str, str]) -> list[str]:
    """What NO_PROXY names."""
    found = _named("no", environment)
    return [entry.strip() for entry in found[1].split(",") if entry.strip()] if found else []


def _is_of(host: str, entry: str) -> bool:
    """Whether an entry of NO_PROXY means `host`: a name with all below it, an address, a network, or everything."""
    address = parse(host)
    if address is not None and "/" in entry:
        try:
            return address in ipaddress.ip_network(bare(entry), strict=False)
        except ValueError:
            return False
    name = bare(entry).lower().removeprefix("*").removeprefix(".")
    return entry == "*" or host.lower() == name or host.lower().endswith(f".{name}")


def _check(variable: str, value: str) -> None:
    try:
        parts = urlsplit(_as_url(value))
        usable = parts.scheme.lower() in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
        parts = None
    if not usable or parts is None:
        raise UserError(
            f"{variable} is set to {_without_password(value)}, which is not a proxy that can be used here. "
            "Write http://HOST:PORT or socks5://HOST:PORT, or unset it."
        )
    if parts.scheme.lower().startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise UserError(
            f"{variable} names a SOCKS proxy, and the package for it is missing. "
            f"Run `pip install socksio`, set {variable} to the http:// address of the proxy, or unset it."
        )


def _as_url(value: str) -> str:
    return value if "://" in value else f"http://{value}"


def _without_password(value: str) -> str:
    scheme, _, rest = _as_url(value).partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _readable(entry: str) -> str | None:
    """An entry of NO_PROXY as all clients can read it; some end with an error at a network of IPv6, or at brackets."""
    name = bare(entry).removesuffix("/128") if ":" in entry else entry
    if ":" in name and "/" in name and parse(name.partition("/")[0]) is not None:
        log.warning("NO_PROXY: %s is left out, because not every HTTP client reads networks of IPv6; name addresses.", entry)
        return None
    if name.startswith("["):
        return None
    return name

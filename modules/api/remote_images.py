"""Pictures that a request names by an http address: fetched from public addresses alone, wherever names and redirects lead."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING

from modules.errors import UserError

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 32 * 1024 * 1024
MAX_REDIRECTS = 3
SECONDS = 20.0
_TRANSLATED = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96", "::ffff:0:0:0/96")))
"""Stand for IPv4 addresses, private ones too."""


async def fetch(url: str, where: str) -> bytes:
    """The bytes at `url`: http or https, at most MAX_BYTES, after at most MAX_REDIRECTS. `where` names the field at fault.

    Every host is looked up once, and the connection goes to the very address that was checked: a name that leads to this
    machine or its network is refused, whenever it does so. Raises UserError.
    """
    import httpx

    try:
        async with asyncio.timeout(SECONDS), httpx.AsyncClient(trust_env=False, timeout=SECONDS) as client:
            target = httpx.URL(url)
            for _ in range(MAX_REDIRECTS + 1):
                answer = await _get(client, target, where)
                if isinstance(answer, bytes):
                    return answer
                target = target.join(answer)
    except TimeoutError:
        raise UserError(f"The picture could not be fetched within {SECONDS:g} seconds.", param=where) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise UserError(f"The picture could not be fetched: {error or type(error).__name__}", param=where) from None
    raise UserError(f"The address of the picture redirects more than {MAX_REDIRECTS} times.", param=where)


async def _get(client: httpx.AsyncClient, target: httpx.URL, where: str) -> bytes | str:
    """The bytes of one answer, or the address it redirects to."""
    if target.scheme not in ("http", "https") or not target.host:
        raise UserError("A picture must be a data: URL (data:image/png;base64,…) or an http address.", param=where)
    address = await _public_address(target.host, target.port or (443 if target.scheme == "https" else 80), where)
    request = client.build_request(
        "GET",
        target.copy_with(host=address),
        headers={"Host": target.netloc.decode("ascii")},
        extensions={"sni_hostname": target.host},
    )
    reply = await client.send(request, stream=True)
    try:
        if reply.has_redirect_location:
            return reply.headers["location"]
        if reply.is_error:
            raise UserError(f"The picture could not be fetched: {target.host} answers {reply.status_code}.", param=where)
        data = bytearray()
        async for piece in reply.aiter_bytes():
            data += piece
            if len(data) > MAX_BYTES:
                raise UserError(f"The picture is larger than {MAX_BYTES // 1024**2} MiB.", param=where)
        return bytes(data)
    finally:
        await reply.aclose()


async def _public_address(host: str, port: int, where: str) -> str:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(ipaddress.ip_address(address.split("%")[0])) for address in addresses):
        raise UserError(
            f"Pictures are fetched from public addresses of the internet alone, and {host} is none. Send a data: URL.",
            param=where,
        )
    return addresses[0]


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is of the internet at large: not of this machine, its network, a cloud's metadata or a group."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if any(address in network for network in _TRANSLATED) or address.sixtofour is not None or address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast

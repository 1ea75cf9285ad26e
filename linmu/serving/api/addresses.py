"""Which addresses a server may be sent to: public ones, whatever form hides another one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
COMPATIBLE = IPv6Network("::/96")  # IPv4 in the last 32 bits, as it was written in 1995


def is_public(text: str) -> bool:
    """Whether an address is one of the public network, and so is every address that it carries within."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        inner = carried(address)
        wrapped = address.ipv4_mapped is not None or address in NAT64[0]  # whose own kind is not public to Python
        return all(map(_is_public, inner)) and (wrapped or _is_public(address))
    return _is_public(address)


def carried(address: IPv6Address) -> list[IPv4Address]:
    """IPv4 addresses that packets to an IPv6 address may end up at."""
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in (*NAT64, COMPATIBLE)):
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [item for item in found if item is not None]


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    odd = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_link_local
    return address.is_global and not address.is_private and not odd

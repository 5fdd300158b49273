# SPDX-License-Identifier: Apache-2.0
"""Which proxy the environment names for an address. Pure, apart from the look at the environment.

Owns the meaning of ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``, in capitals or,
where those are not set, in small letters. Invariant: no proxy is asked
for this machine, by its name or its address.

What ``NO_PROXY`` has, by commas:

=====================================  =========================================================
``*``                                  everything
``10.0.0.0/8``, ``fd00::/8``           addresses; names are not resolved
``10.1.2.3``, ``fd00::1``              one address, also in brackets
``a.example``                          that host, and all whose names end in ``.a.example``
``.a.example``, ``*.a.example``        only these
any of the last two with ``:PORT``     that port only; an IPv6 address needs brackets then
=====================================  =========================================================

Source: golang.org/x/net/http/httpproxy, which containerd and docker use. ``ALL_PROXY`` is curl's.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import urlsplit

from firstread.registry.endpoint import is_loopback

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORTS: Final = {"http": "80", "https": "443"}


@dataclass(frozen=True, slots=True)
class _Excepted:
    """One entry of ``NO_PROXY``: a network, or the end of a name; and a port, if it has one."""

    network: _Network | None = None
    ending: str = ""  # with its dot
    itself: bool = False  # the name without the dot fits as well
    port: str = ""

    def fits(self, host: str, address: _Address | None, port: str) -> bool:
        if self.port not in ("", port):
            return False
        if self.network is not None:
            return address is not None and address in self.network
        return host.endswith(self.ending) or (self.itself and host == self.ending[1:])


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies of an environment.

    Args:
        by_scheme: of the address that is asked for; ``""`` for all others.
        excepted: addresses that need no proxy.
    """

    by_scheme: Mapping[str, str] = field(repr=False)
    excepted: tuple[_Excepted, ...] | None  # None: everything

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return what an environment says."""

        def value(name: str) -> str:
            # A CGI program gets the header "Proxy" of a request in this variable.
            forged = name == "HTTP_PROXY" and bool(environment.get("REQUEST_METHOD"))
            given = "" if forged else environment.get(name, "")
            return given or environment.get(name.lower(), "")

        named = {"http": value("HTTP_PROXY"), "https": value("HTTPS_PROXY"), "": value("ALL_PROXY")}
        entries = [entry.strip().lower() for entry in value("NO_PROXY").split(",")]
        excepted = None if "*" in entries else tuple(filter(None, map(_parsed, entries)))
        return cls(named, excepted)

    def of(self, url: str) -> str:
        """Return the URL of the proxy to ask for `url`, or ``""``."""
        parts = urlsplit(url)
        proxy = self.by_scheme.get(parts.scheme) or self.by_scheme[""]
        if not proxy or self.excepted is None or is_loopback(parts.netloc):
            return ""
        host = (parts.hostname or "").strip()
        address = _address(host)
        port = str(parts.port or _PORTS.get(parts.scheme, ""))
        if any(entry.fits(host, address, port) for entry in self.excepted):
            return ""
        return proxy if "://" in proxy else f"http://{proxy}"


def _parsed(entry: str) -> _Excepted | None:
    """Return what an entry means; one that is damaged means nothing."""
    if "/" in entry:
        try:
            int(entry.rpartition("/")[2])  # no other form of a mask
            return _Excepted(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            return None
    host, colon, port = entry.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")) or entry.endswith("]"):
        host, port = entry, ""
    host = host.removeprefix("[").removesuffix("]")
    if (address := _address(host)) is not None:
        return _Excepted(ipaddress.ip_network(address), port=port)
    ending = host[1:] if host.startswith("*.") else host
    if not ending.strip("."):
        return None
    return _Excepted(
        ending=f".{ending.removeprefix('.')}", itself=not ending.startswith("."), port=port
    )


def _address(host: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address

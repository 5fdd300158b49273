# SPDX-License-Identifier: Apache-2.0
"""Addresses of registries: which URL a host has, and which URLs are of one host.

Sends nothing; `connections` does.
"""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urljoin, urlsplit, urlunsplit

from firstread.errors import SourceError
from firstread.oci.reference import DEFAULT_HOST
from firstread.registry.hosts import DOCKER_HUB, Endpoint, read_hosts
from firstread.registry.options import AccessOptions
from firstread.units import KiB

MAX_HOST: Final = 253  # characters; more has no name (RFC 1035, 2.3.4)
MAX_URL: Final = 16 * KiB  # characters of an address that a server names; signed ones have 2 KiB


def is_loopback(host: str) -> bool:
    """Tell whether `host` (with or without a port) is this machine, going by its name alone."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def origin(url: str) -> tuple[str, str, int]:
    """Return (scheme, host, port) of a URL.

    Raises:
        SourceError: it is not one of HTTP that names a host.
    """
    try:
        parts = urlsplit(url)
        usual = {"http": 80, "https": 443}[parts.scheme]
        port, host = parts.port or usual, parts.hostname or ""
    except (ValueError, KeyError) as exc:
        raise SourceError("the registry names an address that is not valid") from exc
    if not host:
        raise SourceError("the registry names an address without a host")
    if len(host) > MAX_HOST or len(parts.netloc) > 4 * MAX_HOST:
        raise SourceError(f"the registry names a host of more than {MAX_HOST} characters")
    return parts.scheme, host, port


def is_address(url: str) -> bool:
    """Return whether a URL is one of HTTP that names a host."""
    try:
        origin(url)
    except SourceError:
        return False
    return True


def follow(url: str, target: str) -> str:
    """Return the URL that a Location header of an answer from `url` points to.

    A registry behind a proxy that ends TLS may call itself http; for the same host we keep
    the scheme that we came by, so that no credentials are sent in the clear.

    Raises:
        SourceError: it is not a URL of HTTP, or longer than `MAX_URL`.
    """
    if len(target) > MAX_URL:
        raise SourceError(f"the registry names an address of more than {MAX_URL} characters")
    try:
        joined = urlsplit(urljoin(url, target))
        here = urlsplit(url)
        if joined.netloc == here.netloc and here.scheme == "https":
            joined = joined._replace(scheme="https")
        text = urlunsplit(joined)
    except ValueError as exc:
        raise SourceError("the registry names an address that is not valid") from exc
    origin(text)
    return text


def shown(url: str) -> str:
    """Return the host of a URL, and its port, for messages: never what may be a password."""
    return urlsplit(url).netloc.rpartition("@")[2]


def default_endpoint(host: str, options: AccessOptions) -> Endpoint:
    """Return the registry itself, as we reach it if nothing says otherwise."""
    wants_tls = options.ca_file is not None or options.insecure_tls
    plain = options.plain_http or (is_loopback(host) and not wants_tls)
    name = DOCKER_HUB if host == DEFAULT_HOST else host
    return Endpoint("http" if plain else "https", name)


def endpoints_of(host: str, options: AccessOptions) -> tuple[Endpoint, ...]:
    """Return the endpoints of a registry in the order of asking; the last is the server.

    Raises:
        UsageError: a ``hosts.toml`` is not valid.
    """
    return read_hosts(options.hosts_dirs, host, default_endpoint(host, options))

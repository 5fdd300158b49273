# SPDX-License-Identifier: Apache-2.0
"""Where metrics are served: ``HOST:PORT``. `firstread.control.metricserver` serves them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from firstread.errors import UsageError, from_os_error

FIRST_PORT = 1024  # that needs no CAP_NET_BIND_SERVICE


def check_address(address: str) -> None:
    """Check that metrics can be served at ``HOST:PORT``, before anything is started.

    Raises:
        UsageError: it is not such an address.
        NodeError: it cannot be listened on.
    """
    host, port = split_address(address)
    if 0 < port < FIRST_PORT:
        raise UsageError(
            f"metrics cannot be served at {address}: ports below {FIRST_PORT} need a privilege"
            " that the daemon gives up",
            hint="choose another port",
        )
    with listening_at(address), socket.create_server((host, port)):
        pass


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; no host is this machine. Raises: UsageError."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{address!r} is not HOST:PORT")
    try:
        host.encode("idna")
    except UnicodeError as exc:  # a part of it is empty, or has over 63 characters
        raise UsageError(f"{address!r} is not HOST:PORT") from exc
    return host or "127.0.0.1", int(port)


@contextlib.contextmanager
def listening_at(address: str) -> Iterator[None]:
    """Make an OSError of the block a NodeError that names the address."""
    try:
        yield
    except OSError as exc:
        raise from_os_error(exc, f"cannot serve metrics at {address}") from exc

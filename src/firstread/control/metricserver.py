# SPDX-License-Identifier: Apache-2.0
"""A server of metrics over TCP, which anybody may reach.

Invariant: whatever clients do, it has few threads and descriptors of its process, and none for
long; the server that comes with prometheus_client has no limits.
"""

from __future__ import annotations

import contextlib
import http.server
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from firstread.control.boundedthreads import BoundedThreadsMixIn
from firstread.errors import UsageError, from_os_error

log = logging.getLogger("metrics")

FIRST_PORT = 1024  # that needs no CAP_NET_BIND_SERVICE
MAX_CONNECTIONS = 16  # at a time over TCP, a thread each; whoever comes then is hung up on
PATIENCE_S = 10.0  # with a client that sends or reads nothing


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
    with _listening_at(address), socket.create_server((host, port)):
        pass


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; no host is this machine. Raises: UsageError."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{address!r} is not HOST:PORT")
    return host or "127.0.0.1", int(port)


@contextlib.contextmanager
def _listening_at(address: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise from_os_error(exc, f"cannot serve metrics at {address}") from exc


def serve_metrics(address: str, text: Callable[[], bytes]) -> None:
    """Serve metrics in a thread at ``HOST:PORT``.

    Args:
        address: where.
        text: makes them, in the text format.

    Raises:
        UsageError: `address` is not one.
        NodeError: it cannot be listened on.
    """
    host, port = split_address(address)
    with _listening_at(address):
        server = _Server((host, port), text)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Server(BoundedThreadsMixIn, socketserver.TCPServer):
    """Serves `text` over TCP to a few clients at a time."""

    allow_reuse_address = True
    max_connections = MAX_CONNECTIONS
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], text: Callable[[], bytes]) -> None:
        self.text = text
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection broke", exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE_S

    def do_GET(self) -> None:
        data = self.server.text()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is inherited
        log.debug(format, *args)

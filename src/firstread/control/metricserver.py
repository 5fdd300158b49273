# SPDX-License-Identifier: Apache-2.0
"""A server of metrics over TCP, which anybody may reach.

Invariant: whatever clients do, it has few threads and descriptors of its process, and none for
long; the server that comes with prometheus_client has no limits.
"""

from __future__ import annotations

import http.server
import io
import logging
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from firstread.control.boundedthreads import BoundedThreadsMixIn, Incoming
from firstread.control.metricaddress import listening_at, split_address

log = logging.getLogger("metrics")

MAX_CONNECTIONS = 16  # at a time over TCP, a thread each; whoever comes then is hung up on
PATIENCE_S = 10.0  # with a client that sends no whole request, or reads nothing


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
    with listening_at(address):
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

    def setup(self) -> None:
        super().setup()
        incoming = Incoming(self.connection)
        incoming.until = time.monotonic() + self.timeout
        self.rfile = io.BufferedReader(incoming)

    def do_GET(self) -> None:
        data = self.server.text()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is inherited
        log.debug(format, *args)

# SPDX-License-Identifier: Apache-2.0
"""Servers of this process that answer while a test runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer
from typing import TypeVar

from firstread.testing.patience import PATIENCE_S

S = TypeVar("S", bound=BaseServer)


class QuietServer(ThreadingHTTPServer):
    """An HTTP server whose clients may hang up: that is part of the game."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


class QuietHandler(BaseHTTPRequestHandler):
    """Answers requests, and says nothing about them."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(server: S) -> Iterator[S]:
    """Have a server answer in a thread while the block runs; close it then."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE_S)

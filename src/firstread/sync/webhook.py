# SPDX-License-Identifier: Apache-2.0
"""The HTTP endpoint that registries notify of pushes.

Owns the server: who may ask, how long a request may be, and the answers. Invariants: what does not
show the secret costs no more than a comparison; every request ends in bounded time and memory, and
few are served at a time.

================================  ==================================================================
``POST /notifications``           202 taken, 400 no notification, 401 without the secret, 411, 413,
                                  503 the queue is full: registries try again
``GET /healthz``                  200
``GET /metrics``                  Prometheus' text format
================================  ==================================================================
"""

from __future__ import annotations

import contextlib
import hmac
import http.server
import io
import json
import logging
import socket
import socketserver
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from firstread.control.boundedthreads import BoundedThreadsMixIn, Incoming
from firstread.errors import (
    BusyError,
    FirstreadError,
    ImageError,
    NodeError,
    UsageError,
    from_os_error,
)
from firstread.units import MiB

log = logging.getLogger("webhook")

MAX_BODY: Final = 1 * MiB  # bytes of a notification
MAX_CONNECTIONS: Final = 32  # at a time
REQUEST_S: Final = 15.0  # for a whole request to arrive, however slowly it does
LEAST_SECRET: Final = 16  # characters
MAX_SECRET: Final = 4096  # bytes
QUIET_S: Final = 10.0  # after a line of the log about a bad request
RETRY_S: Final = 30  # for a registry to wait when the queue is full

Take = Callable[[bytes], int]
"""Takes the body of a notification; returns how many images it adds to the queue."""


class Secret:
    """What a registry shows in ``Authorization``, alone or as ``Bearer SECRET``.

    It is read again for each request, so that a new one needs no restart.

    Args:
        path: of the file whose first line it is.

    Raises:
        UsageError: it is too short, or no text that a header can have.
        NodeError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read()

    def is_shown(self, authorization: str | None) -> bool:
        """Return whether a header has it; the time that takes tells nothing of it."""
        shown = (authorization or "").removeprefix("Bearer ").encode(errors="replace")
        return hmac.compare_digest(shown, self._read())

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                line = file.read(MAX_SECRET).partition(b"\n")[0].strip()
        except OSError as exc:
            raise from_os_error(exc, "cannot read the secret") from exc
        if len(line) < LEAST_SECRET or not line.isascii() or not line.decode().isprintable():
            raise UsageError(
                f"the first line of {self._path} is no secret of {LEAST_SECRET} characters or more",
                hint="openssl rand -hex 32 makes one",
            )
        return line


class WebhookServer(BoundedThreadsMixIn, socketserver.TCPServer):
    """Serves the endpoint.

    Args:
        address: host and port.
        secret: that registries show.
        take: takes notifications.
        metrics: gives the metrics.
        tls: encrypts connections; None for plain HTTP.

    Raises:
        NodeError: it cannot listen there.
    """

    allow_reuse_address = True
    max_connections = MAX_CONNECTIONS
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        secret: Secret,
        take: Take,
        metrics: Callable[[], bytes],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.secret, self.take, self.metrics, self.tls = secret, take, metrics, tls
        self._quiet_until = 0.0
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            super().__init__(address, Handler)
        except OSError as exc:
            raise from_os_error(exc, f"cannot listen at {address[0]}:{address[1]}") from exc

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, in a thread of its own."""
        if self.tls is not None:
            request.settimeout(REQUEST_S)
            with self.tls.wrap_socket(request, server_side=True) as encrypted:
                super().finish_request(encrypted, client_address)
        else:
            super().finish_request(request, client_address)

    def tell(self, text: str) -> None:
        """Log what went wrong, but no more than a line in `QUIET_S`: anybody can cause it."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET_S
            log.warning("%s", text)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection broke", exc_info=True)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one connection, a request on each."""

    server: WebhookServer

    def setup(self) -> None:
        super().setup()
        self._incoming = Incoming(self.connection)
        self._incoming.until = time.monotonic() + REQUEST_S
        self.rfile = io.BufferedReader(self._incoming)
        self._left = 0  # bytes of a body that nobody has read

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer(200, b"ok\n")
        elif self.path == "/metrics":
            self._answer(200, self.server.metrics(), "text/plain; version=0.0.4")
        else:
            self._answer(404, b"not found\n")

    def do_POST(self) -> None:
        self._left = min(self._length() or 0, MAX_BODY)
        try:
            if self.path.partition("?")[0] != "/notifications":
                self._answer(404, b"not found\n")
            elif not self.server.secret.is_shown(self.headers.get("Authorization")):
                self.server.tell(f"a request of {self.client_address[0]} lacks the secret")
                self._answer(401, b"unauthorized\n")
            elif (body := self._body()) is not None:
                taken = self.server.take(body)
                self._answer(202, json.dumps({"queued": taken}).encode(), "application/json")
        except ImageError as exc:
            self.server.tell(f"a notification is not valid: {exc}")
            self._answer(400, f"{exc}\n".encode())
        except BusyError as exc:
            self.server.tell(f"a notification is not taken: {exc}")
            self._answer(503, f"{exc}\n".encode())
        except FirstreadError as exc:
            self.server.tell(f"a notification cannot be taken: {exc}")
            self._answer(500, b"see the log\n")

    def finish(self) -> None:
        """Read what an answer did not wait for, or closing would take the answer back."""
        with contextlib.suppress(OSError, ValueError):
            self.rfile.read(self._left)
        super().finish()

    def _body(self) -> bytes | None:
        """Return the body of the request; None if an answer has said why not."""
        length = self._length()
        if length is None:
            self._answer(411, b"say Content-Length\n")
        elif length > MAX_BODY:
            self._answer(413, f"more than {MAX_BODY} bytes\n".encode())
        else:
            body = self.rfile.read(length)
            self._left = 0
            return body if len(body) == length else None
        return None

    def _length(self) -> int | None:
        """Return the length that the request states for its body; None if it states none."""
        text = self.headers.get("Content-Length", "")[:19]
        return int(text) if text.isascii() and text.isdecimal() else None

    def _answer(self, status: int, data: bytes, media_type: str = "text/plain") -> None:
        self.connection.settimeout(REQUEST_S)
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(data)))
        if status == 503:
            self.send_header("Retry-After", str(RETRY_S))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is inherited
        log.debug(format, *args)


def tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return what encrypts connections with a certificate.

    Raises:
        NodeError: the files cannot be read, or do not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as exc:  # ssl.SSLError is one
        raise NodeError(f"cannot use the certificate in {certificate}: {exc.strerror}") from exc
    return context

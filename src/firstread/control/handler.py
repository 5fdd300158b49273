# SPDX-License-Identifier: Apache-2.0
"""One connection of the control socket: HTTP in, documents out.

Owns how requests are read and errors become documents; `firstread.control.routes` owns what can be
asked. Invariant: what a client asked for and does not take is undone.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import logging
import queue
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from firstread.control.boundedthreads import Incoming
from firstread.control.routes import ROUTES, Call
from firstread.documents import encode
from firstread.errors import (
    BusyError,
    FirstreadError,
    NotFoundError,
    UsageError,
    from_shortage,
)
from firstread.mounts.pulls import GoneError
from firstread.nesting import MAX_DEPTH, is_deep
from firstread.redact import redact
from firstread.units import MiB

if TYPE_CHECKING:
    from firstread.control.server import ControlServer

log = logging.getLogger("control")

MAX_REQUEST_BYTES = 1 * MiB
ANSWER_S = 600.0  # for a client that does not read what it asked for
QUIET_S = 5.0  # without an event, before a look whether the client is still there


class _Client:
    """The client of a connection, while it waits for its answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._poll = select.poll()
        self._poll.register(connection, 0)  # a hang-up; not a client that only sends nothing more

    def check(self) -> None:
        """Raise GoneError if it has hung up."""
        if self._poll.poll(0):
            raise GoneError("the client has hung up")


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one connection."""

    server: ControlServer

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self._incoming = Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        self._incoming.until = time.monotonic() + self.server.request_s
        super().handle_one_request()

    def do_GET(self) -> None:
        if self.path == "/events":
            self._events()
        elif self.path == "/metrics":
            text = self.server.metrics()
            self.server.answered(self.connection)  # no retirement waits for a client that is slow
            self._send(200, text, "text/plain; version=0.0.4")
        else:
            self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.server.expects(self.connection)
        undo: list[Callable[[], None]] = []
        try:
            status, document = 200, self._document(undo)
        except GoneError:
            self.close_connection = True
            return
        except FirstreadError as exc:
            status, document = 400, exc.to_dict()
        except (KeyError, TypeError, ValueError, RecursionError) as exc:
            status, document = 400, UsageError(f"the daemon got a wrong request: {exc}").to_dict()
        except Exception as exc:
            log.exception("a request failed")
            error = FirstreadError(redact(f"internal error: {exc}"))
            status, document = 500, (from_shortage(exc, "the daemon") or error).to_dict()
        try:
            self._send(status, encode(document).encode(), "application/json")
        except OSError:
            # The client died, or was interrupted, while it waited for its mount.
            with contextlib.suppress(FirstreadError):
                for step in undo:
                    step()
            raise
        self.server.answered(self.connection)

    def _document(self, undo: list[Callable[[], None]]) -> object:
        """Return the answer to a request; add to `undo` what to do if the client is gone."""
        server, body = self.server, self._body()
        route = ROUTES.get((self.command, self.path))
        if route is None:
            raise NotFoundError(f"the daemon knows no {self.path}", hint="it has another version")
        client = _Client(self.connection)
        call = Call(server.node, body, client, server.complete, self._taking_long)
        try:
            return route(call) or {}
        finally:
            undo.append(call.undo)

    def _body(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= MAX_REQUEST_BYTES:
            self.close_connection = True  # what comes next is not a request
            raise UsageError("the request is too large")
        text = self.rfile.read(length).decode() or "{}"
        if is_deep(text):
            raise UsageError(f"the request is nested more than {MAX_DEPTH} deep")
        document = json.loads(text)
        if not isinstance(document, dict):
            raise UsageError("the request is not an object")
        return document

    def _send(self, status: int, data: bytes, media_type: str) -> None:
        self.connection.settimeout(ANSWER_S)
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @contextlib.contextmanager
    def _taking_long(self) -> Iterator[None]:
        if not self.server.long.acquire(blocking=False):
            limit = self.server.max_long
            raise BusyError(f"{limit} watch events or verify the cache", hint="end some of them")
        try:
            yield
        finally:
            self.server.long.release()

    def _events(self) -> None:
        try:
            with self._taking_long():
                self._tell_events()
        except BusyError as exc:
            self._send(503, encode(exc.to_dict()).encode(), "application/json")

    def _tell_events(self) -> None:
        listener = self.server.feed.listen()
        self.server.answered(self.connection)
        try:
            self.connection.settimeout(ANSWER_S)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.send_header("Connection", "close")
            self.end_headers()
            while True:
                try:
                    line = encode(listener.get(timeout=QUIET_S)) + "\n"
                except queue.Empty:
                    line = "\n"  # finds out whether the client is still there
                self.wfile.write(line.encode())
                self.wfile.flush()
        except OSError:
            self.close_connection = True
        finally:
            self.server.feed.leave(listener)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is inherited
        log.debug(format, *args)

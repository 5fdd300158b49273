# SPDX-License-Identifier: Apache-2.0
"""The control socket: HTTP and JSON over a Unix socket, one thread a connection.

Owns the translation of requests into calls of `Node`, and of errors into documents. The socket is
the supervisor's, so a request that comes while the fetcher restarts waits. Invariant: what takes
long ends when its client has hung up, and is limited, so that some threads are free for the rest.

==========================  ====================================================================
``GET /status``             the document of ``firstread status --json``
``GET /metrics``            the same as Prometheus reads it
``GET /events``             what happens, as JSON lines, until the client leaves
``POST /mount``             ``image directory access policy holder policies login
                            command`` → `Node.mount`
``POST /login``             ``scope login`` → `Network.login`
``POST /umount``            ``directory lazy``
``POST /release``           ``holder``
``POST /pin``               ``directory``
``POST /pull``              ``image access policy`` → digest and config
``GET /cache``              the document of ``firstread cache ls --json``
``POST /cache/prune``       ``keep_bytes dry_run`` → `Attended.prune`
``POST /cache/verify``      ``repair`` → `Attended.verify`
==========================  ====================================================================
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
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import msgspec

from firstread.errors import BusyError, FirstreadError, NotFoundError, UsageError
from firstread.node.boundedthreads import BoundedThreadsMixIn
from firstread.node.mounts import Access
from firstread.node.node import Node
from firstread.node.policy import Asked
from firstread.node.pulls import GoneError
from firstread.node.stats import Feed
from firstread.oci.logins import Credentials
from firstread.oci.reference import parse_reference
from firstread.private import is_ours
from firstread.redact import redact
from firstread.units import MiB

log = logging.getLogger("control")

MAX_REQUEST_BYTES = 1 * MiB
MAX_CONNECTIONS = 512  # at a time, a thread each; whoever comes then is told so
MAX_LONG = 64  # of them, that watch events or verify the cache; see `firstread.node.node.WAITING`
REQUEST_S = 30.0  # for a whole request to arrive, however slowly it does
ANSWER_S = 600.0  # for a client that does not read what it asked for

Answer = dict[str, Any]


class ControlServer(BoundedThreadsMixIn, socketserver.BaseServer):
    """Serves the control socket.

    Args:
        listener: the listening socket.
        node: what is controlled.
        feed: of events.
        status: completes the status with what the node does not know.
        metrics: gives the metrics in Prometheus' text format.
    """

    max_connections = MAX_CONNECTIONS

    def __init__(
        self,
        listener: socket.socket,
        node: Node,
        feed: Feed,
        status: Callable[[Answer], Answer],
        metrics: Callable[[], bytes],
    ) -> None:
        super().__init__(listener.getsockname(), _Handler)
        self.socket = listener
        self._unanswered: set[Any] = set()  # connections
        self._closed = threading.Event()
        self.long = threading.BoundedSemaphore(MAX_LONG)
        self.node, self.feed, self.complete, self.metrics = node, feed, status, metrics
        self.request_s = REQUEST_S

    def fileno(self) -> int:
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, _ = self.socket.accept()
        connection.settimeout(REQUEST_S)
        return connection, ("control", 0)

    def retire(self) -> None:
        """Begin to accept nothing more: what comes from now on waits for another process."""

        def stop() -> None:
            self.shutdown()
            self._closed.set()

        threading.Thread(target=stop, name="retire", daemon=True).start()

    def retired(self) -> bool:
        """Return whether nothing more is accepted, and every command that has come is answered."""
        return self._closed.is_set() and not self._unanswered

    def expects(self, connection: Any) -> None:
        """Note that a client waits for an answer."""
        self._unanswered.add(connection)

    def answered(self, connection: Any) -> None:
        """Note that it does not wait any more, or never did: it only watches."""
        self._unanswered.discard(connection)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Accept root and ourselves only."""
        return is_ours(request)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.expects(request)
        super().process_request(request, client_address)

    def refuse(self, request: Any) -> None:
        log.warning("refused a connection: there are %d", MAX_CONNECTIONS)
        error = BusyError(f"the daemon serves {MAX_CONNECTIONS} requests", hint="try again")
        data = json.dumps(error.to_dict()).encode()
        with contextlib.suppress(OSError):
            request.settimeout(0)
            request.send(b"HTTP/1.0 503 Busy\r\nContent-Length: %d\r\n\r\n" % len(data) + data)

    def shutdown_request(self, request: Any) -> None:
        self.answered(request)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection broke", exc_info=True)


class _Incoming(io.RawIOBase):
    """What a client sends, as long as it has time to."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.until = 0.0  # monotonic seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Client:
    """The client of a connection, while it waits for its answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._poll = select.poll()
        self._poll.register(connection, 0)  # hung up: not for one that only sends nothing more

    def check(self) -> None:
        """Raise GoneError if it has hung up."""
        if self._poll.poll(0):
            raise GoneError("the client has hung up")


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ControlServer

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self._incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        self._undo: Callable[[], None] = lambda: None  # what its client will not hear of
        self._incoming.until = time.monotonic() + self.server.request_s
        super().handle_one_request()

    def do_GET(self) -> None:
        if self.path == "/events":
            self._events()
        elif self.path == "/metrics":
            self._send(200, self.server.metrics(), "text/plain; version=0.0.4")
        elif self.path == "/status":
            self._answer(lambda _: self.server.complete(self.server.node.status()))
        elif self.path == "/cache":
            self._answer(lambda _: self.server.node.cache.listing())
        else:
            self._answer(self._unknown)

    def do_POST(self) -> None:
        node = self.server.node
        actions: dict[str, Callable[[Answer], Answer | None]] = {
            "/mount": self._mount,
            "/umount": lambda r: node.umount(r["directory"], lazy=r.get("lazy", False)),
            "/release": lambda r: node.release(r["holder"]),
            "/pin": lambda r: node.pin(r["directory"]),
            "/login": lambda r: node.network.login(r["scope"], _credentials(r["login"])),
            "/pull": self._pull,
            "/cache/prune": lambda r: node.cache.prune(int(r["keep_bytes"]), dry_run=r["dry_run"]),
            "/cache/verify": self._verify,
        }
        self._answer(actions.get(self.path, self._unknown))

    def _mount(self, request: Answer) -> Answer:
        node, image, given = self.server.node, request["image"], request.get("login")
        holder = request.get("holder", "")
        if holder and not node.holds(holder):
            self._undo = lambda: node.release(holder)
        with node.network.trying(image, _credentials(given)) if given else nullcontext():
            answer = node.mount(
                image,
                request.get("directory"),
                _access(request),
                policy=request.get("policy", "missing"),
                holder=holder,
                asked=msgspec.convert(request.get("policies", {}), Asked),
                command=str(request.get("command", "")),
                waiter=_Client(self.connection),
            )
        if request.get("directory") is not None:
            self._undo = lambda: node.umount(answer["mountpoint"])
        return answer

    def _pull(self, request: Answer) -> Answer:
        image = self.server.node.pull(
            parse_reference(request["image"]),
            _access(request),
            request.get("policy", "missing"),
            waiter=_Client(self.connection),
        )
        return {"digest": image.digest, "config": image.config}

    def _verify(self, request: Answer) -> Answer:
        with self._taking_long():
            check = _Client(self.connection).check
            return self.server.node.cache.verify(repair=request["repair"], check=check)

    @contextlib.contextmanager
    def _taking_long(self) -> Iterator[None]:
        if not self.server.long.acquire(blocking=False):
            raise BusyError(f"{MAX_LONG} watch events or verify the cache", hint="end some of them")
        try:
            yield
        finally:
            self.server.long.release()

    def _unknown(self, _: Answer) -> Answer:
        raise NotFoundError(f"the daemon knows no {self.path}", hint="it has another version")

    def _answer(self, action: Callable[[Answer], Answer | None]) -> None:
        self.server.expects(self.connection)
        try:
            status, document = 200, action(self._request()) or {}
        except GoneError:
            self.close_connection = True
            return
        except FirstreadError as exc:
            status, document = 400, exc.to_dict()
        except (KeyError, TypeError, ValueError) as exc:
            status, document = 400, UsageError(f"the daemon got a wrong request: {exc}").to_dict()
        except Exception as exc:
            log.exception("a request failed")
            status, document = 500, FirstreadError(redact(f"internal error: {exc}")).to_dict()
        try:
            self._send(status, json.dumps(document).encode(), "application/json")
        except OSError:
            # The client died, or was interrupted, while it waited for its mount.
            with contextlib.suppress(FirstreadError):
                self._undo()
            raise
        self.server.answered(self.connection)

    def _request(self) -> Answer:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= MAX_REQUEST_BYTES:
            self.close_connection = True  # what comes next is not a request
            raise UsageError("the request is too large")
        document = json.loads(self.rfile.read(length)) if length else {}
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

    def _events(self) -> None:
        try:
            with self._taking_long():
                self._tell_events()
        except BusyError as exc:
            self._send(503, json.dumps(exc.to_dict()).encode(), "application/json")

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
                    line = json.dumps(listener.get(timeout=5)) + "\n"
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


def _access(request: Answer) -> Access:
    return msgspec.convert(request.get("access", {}), Access)


def _credentials(login: Answer) -> Credentials:
    return Credentials.of(str(login["username"]), str(login["password"]))

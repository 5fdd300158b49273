# SPDX-License-Identifier: Apache-2.0
"""The control socket: HTTP and JSON over a Unix socket, one thread a connection.

Owns the connections: who may connect, how many at a time, and which still wait for an answer. The
socket is the supervisor's, so a request that comes while the fetcher restarts waits. Invariant:
what takes long ends when its client hangs up, and is limited, so that some threads are free for
the rest.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from typing import Any

from firstread.control.boundedthreads import BoundedThreadsMixIn
from firstread.control.handler import Handler
from firstread.documents import encode
from firstread.errors import BusyError
from firstread.fetch.stats import Feed
from firstread.mounts.node import Node
from firstread.mounts.nodestatus import NodeStatus
from firstread.private import is_ours

log = logging.getLogger("control")

MAX_CONNECTIONS = 512  # at a time, a thread each; further clients are told so
MAX_LONG = 64  # of them, that watch events or verify the cache; see `mounts.network.WAITING`
REQUEST_S = 30.0  # for a whole request to arrive, however slowly it does


class ControlServer(BoundedThreadsMixIn, socketserver.BaseServer):
    """Serves the control socket.

    Args:
        listener: the listening socket.
        node: what is controlled.
        feed: of events.
        status: adds to the status what the node does not know.
        metrics: gives the metrics in Prometheus' text format.
    """

    max_connections = MAX_CONNECTIONS
    max_long = MAX_LONG

    def __init__(
        self,
        listener: socket.socket,
        node: Node,
        feed: Feed,
        status: Callable[[NodeStatus], object],
        metrics: Callable[[], bytes],
    ) -> None:
        super().__init__(listener.getsockname(), Handler)
        self.socket = listener
        self._unanswered: set[Any] = set()  # connections
        self._closed = threading.Event()
        self.long = threading.BoundedSemaphore(MAX_LONG)
        self.node, self.feed, self.complete, self.metrics = node, feed, status, metrics
        self.request_s = REQUEST_S

    def fileno(self) -> int:
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, _ = super().get_request()  # which has no address
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

    def refuse(self, request: Any, why: BusyError) -> None:
        log.warning("refused a connection: %s", why)
        data = encode(why.to_dict()).encode()
        with contextlib.suppress(OSError):
            request.settimeout(0)
            request.send(b"HTTP/1.0 503 Busy\r\nContent-Length: %d\r\n\r\n" % len(data) + data)

    def shutdown_request(self, request: Any) -> None:
        self.answered(request)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection broke", exc_info=True)

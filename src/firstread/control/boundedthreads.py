# SPDX-License-Identifier: Apache-2.0
"""Servers that have a thread for each connection, a limit of them, and of the time of a request."""

from __future__ import annotations

import errno
import io
import socket
import socketserver
import threading
import time
from typing import Any

from firstread.errors import BusyError, from_shortage

PAUSE_S = 0.1
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


class BoundedThreadsMixIn(socketserver.ThreadingMixIn):
    """A thread for each connection, `max_connections` at a time; others are refused."""

    daemon_threads = True
    max_connections: int

    def __init__(self, *arguments: Any) -> None:
        self._room = threading.BoundedSemaphore(self.max_connections)
        super().__init__(*arguments)

    def refuse(self, request: Any, why: BusyError) -> None:
        """Answer a connection that there is no room for; it is closed afterwards."""

    def get_request(self) -> Any:
        """Accept a connection; while no file can be opened, it waits, and costs no core."""
        try:
            return self.socket.accept()  # type: ignore[attr-defined]  # of the server
        except OSError as exc:
            if exc.errno in _SHORT:
                time.sleep(PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
                return
            except BaseException as exc:
                self._room.release()  # there is no thread that would
                why = from_shortage(exc, "the daemon")
                if why is None:
                    raise
        else:
            why = BusyError(f"the daemon serves {self.max_connections} requests", hint="try again")
        self.refuse(request, why)
        self.shutdown_request(request)  # type: ignore[attr-defined]  # of the server

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()


class Incoming(io.RawIOBase):
    """What a client sends, however slowly, until its time is up.

    Attributes:
        until: end of its time, monotonic seconds.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.until = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)

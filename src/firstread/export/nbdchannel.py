# SPDX-License-Identifier: Apache-2.0
"""The bytes of a connection, plain or over TLS, with limits on the time that a peer may take.

Owns the change from plain to TLS. Invariant: no byte that came before it counts as one that came
through it, since nothing takes more from the socket than it is asked for until then. One thread
receives; one at a time sends, at the same time.

Timeouts are the kernel's (``SO_RCVTIMEO``, ``SO_SNDTIMEO``): those of Python cost a call of poll(2)
for each piece.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from typing import Final

PATIENCE_S: Final = 30.0  # for the rest of a message that has begun, or for a piece to be taken
_TAKEN = 64 * 1024  # bytes at a time in transmission: many requests
_TIMEVAL = struct.Struct("ll")


class Channel:
    """A connection without encryption.

    Args:
        connection: of the client; owned.

    Attributes:
        greedy: take what comes, however little is asked for.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self.greedy = False
        self._deadline: float | None = None
        connection.setblocking(True)
        self._set_patience(socket.SO_SNDTIMEO, PATIENCE_S)
        self.receive_until(None)

    def receive_until(self, deadline: float | None) -> None:
        """Receive nothing after a deadline, in monotonic seconds; None for no deadline."""
        self._deadline = deadline
        left = PATIENCE_S if deadline is None else max(0.001, deadline - time.monotonic())
        self._set_patience(socket.SO_RCVTIMEO, min(left, PATIENCE_S))

    def _set_patience(self, option: int, seconds: float) -> None:
        value = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, option, value)

    def receive(self, count: int) -> bytes:
        """Return the next `count` bytes; wait for the first as long as it takes.

        Raises:
            EOFError: the peer has closed the connection.
            TimeoutError: the rest does not come.
            OSError: the connection broke.
        """
        while (missing := count - len(self._buffer)) > 0:
            try:
                data = self._receive(max(missing, _TAKEN) if self.greedy else missing)
            except BlockingIOError:
                if not self._buffer and self._deadline is None:
                    continue
                raise TimeoutError from None
            if not data:
                raise EOFError
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def send(self, data: memoryview | bytes) -> None:
        """Send all of `data`.

        Raises:
            TimeoutError: the peer does not take it.
            OSError: the connection broke.
        """
        try:
            self._socket.sendall(data)
        except BlockingIOError:
            raise TimeoutError from None

    def _receive(self, most: int) -> bytes:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TimeoutError
        return self._socket.recv(most)

    def over_tls(self, context: ssl.SSLContext) -> Channel:
        """Shake hands; return the encrypted channel, which owns the socket.

        Raises:
            OSError: the client has no acceptable certificate, or does not speak TLS.
        """
        channel = _TlsChannel(self._socket, context)
        channel.receive_until(self._deadline)
        channel.shake_hands()
        return channel

    def shut(self) -> None:
        """End the connection, from any thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has ended

    def close(self) -> None:
        """Close the socket, when no thread uses it any more."""
        self._socket.close()


class _TlsChannel(Channel):
    """TLS over memory, since one `ssl.SSLSocket` must not send and receive at the same time."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(connection)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._lock = threading.Lock()  # of these, and of the order of what is sent

    def shake_hands(self) -> None:
        while True:
            try:
                with self._lock:
                    try:
                        self._tls.do_handshake()
                    finally:
                        self._flush()
                return
            except ssl.SSLWantReadError:
                self._take()

    def _receive(self, most: int) -> bytes:
        while True:
            with self._lock:
                try:
                    return self._tls.read(most)
                except ssl.SSLWantReadError:
                    self._flush()
                except ssl.SSLZeroReturnError:
                    return b""
            self._take()

    def _take(self) -> None:
        """Take ciphertext from the socket."""
        data = super()._receive(_TAKEN)
        if not data:
            raise EOFError
        self._incoming.write(data)

    def send(self, data: memoryview | bytes) -> None:
        with self._lock:
            left = memoryview(data)
            while left:
                left = left[self._tls.write(left) :]
            self._flush()

    def _flush(self) -> None:
        if data := self._outgoing.read():
            super().send(data)

# SPDX-License-Identifier: Apache-2.0
"""One request over the control socket: HTTP/1.0, a connection for each.

Owns the socket and the bytes on it. It speaks HTTP itself: http.client would cost every command
more time to import than the daemon takes to answer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from firstread import errors
from firstread.errors import FirstreadError, NodeError
from firstread.private import is_ours

_TIMEVAL = struct.Struct("@ll")


class _HungUpError(NodeError):
    """The fetcher died while it had our request. Users are told of a NodeError."""


HungUpError = _HungUpError


class Exchange:
    """Asks at one control socket.

    Args:
        path: of the socket.
        timeout_s: for each step of an answer; None to wait however long it takes.
    """

    def __init__(self, path: Path, timeout_s: float | None) -> None:
        self._path, self._timeout_s = path, timeout_s
        self._connection: socket.socket | None = None  # that waits for an answer
        self._left = False

    def hang_up(self) -> None:
        """Make the request of another thread fail soon, and all further ones."""
        self._left = True
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def alive(self) -> bool:
        """Return whether a daemon listens."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                self._connect(sock)
                return True
        except TimeoutError:
            return True  # it is busy
        except OSError:
            return False

    def closed_to_us(self) -> bool:
        """Return whether this user may not ask a daemon, so that nobody can tell if one listens."""
        try:
            self._path.stat()
        except PermissionError:
            return True
        except OSError:
            return False
        return not os.access(self._path, os.W_OK, effective_ids=True)

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Send a request; return the body of the answer.

        Raises:
            HungUpError: the fetcher died meanwhile.
            FirstreadError: the daemon's own error, or NodeError if there is no daemon.
        """
        try:
            with self._send(method, path, body) as answer:
                status, length = _read_head(answer)
                data = _read_body(answer, length)
        except ConnectionRefusedError as exc:
            raise self._gone(exc) from exc
        except ConnectionError as exc:
            if self._left:
                raise NodeError("we hung up on the daemon") from exc
            raise HungUpError("the daemon hung up", hint="its log says why") from exc
        except TimeoutError as exc:
            raise NodeError(
                f"the daemon gives no answer within {self._timeout_s:g} s",
                hint="its log may say why; restart it: reads of its mounts wait meanwhile",
            ) from exc
        except OSError as exc:
            raise self._gone(exc) from exc
        if status != 200:
            raise _error(json.loads(data))
        return data

    def lines(self, path: str, *, begun: bool) -> Iterator[bytes]:
        """Yield the lines of an answer that does not end, until the daemon hangs up.

        Args:
            path: of the answer.
            begun: it has answered before: that it hangs up first is no error either.

        Raises:
            FirstreadError: as `ask`.
        """
        try:
            with self._send("GET", path) as answer:
                status, length = _read_head(answer)
                if status != 200:
                    raise _error(json.loads(_read_body(answer, length)))
                begun = True
                yield from (line for line in answer if line.strip() and line.endswith(b"\n"))
        except OSError as exc:
            if not (begun and isinstance(exc, ConnectionError)):
                raise self._gone(exc) from exc

    def _send(self, method: str, path: str, body: bytes = b"") -> BinaryIO:
        """Send a request; return the connection, to read the answer from."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            self._connection = connection
            if self._left:
                raise ConnectionAbortedError
            self._connect(connection)
            head = f"{method} {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
            with contextlib.suppress(BrokenPipeError):  # one who refuses has said so already
                connection.sendall(head.encode() + body)
            return connection.makefile("rb")

    def _connect(self, sock: socket.socket) -> None:
        """Connect to the daemon; wait if many others do.

        A socket with a timeout of Python's is non-blocking below: its connect fails at once where
        the backlog is full. The kernel's own timeout of sending holds for connect too, unix(7).
        """
        if self._timeout_s is not None:
            seconds, rest = divmod(self._timeout_s, 1)
            limit = _TIMEVAL.pack(int(seconds), max(1, int(rest * 1e6)))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            sock.connect(str(self._path))
        except BlockingIOError as exc:
            raise TimeoutError("it accepts no connection") from exc
        if not is_ours(sock):
            raise PermissionError(errno.EPERM, "another user listens there")
        sock.settimeout(self._timeout_s)

    def _gone(self, exc: OSError) -> NodeError:
        if self.closed_to_us():
            return NodeError(f"this user may not ask at {self._path}", hint="run it as root")
        why = exc.strerror or exc
        return NodeError(
            f"no daemon answers at {self._path}: {why}", hint="start one: firstread daemon"
        )


def _read_head(answer: BinaryIO) -> tuple[int, int]:
    """Read the head of an answer; return its status and the length of its body."""
    words = answer.readline().split()
    if len(words) < 2:
        raise ConnectionError("it hung up")
    length = 0
    while (line := answer.readline()).strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    if not line:
        raise ConnectionError("it hung up")
    return int(words[1]), length


def _read_body(answer: BinaryIO, length: int) -> bytes:
    data = answer.read(length)
    if len(data) < length:
        raise ConnectionError("it hung up")
    return data


def _error(document: dict[str, Any]) -> FirstreadError:
    """Return an error of the daemon as an exception of its kind."""
    kind = getattr(errors, str(document.get("error")), FirstreadError)
    if not (isinstance(kind, type) and issubclass(kind, FirstreadError)):
        kind = FirstreadError
    context = {name: document.get(name) for name in ("hint", "image", "layer")}
    return kind(document.get("message", "the daemon failed"), **context)

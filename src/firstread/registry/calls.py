# SPDX-License-Identifier: Apache-2.0
"""How long a thread may wait for others: until a cancellation, a deadline, or too little comes.

Owns `Call`, the work of a thread for somebody, and `Pace`, how slowly an answer may come. Knows
sockets, no HTTP. Invariant: whatever a peer sends or does not send, a wait ends in the time that
its call and its pace leave it, and soon after somebody cancelled the call.

Name look-ups are the exception: nobody can cancel or time getaddrinfo(3); resolv.conf(5) bounds it.
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

T = TypeVar("T")

MAX_ADDRESSES: Final = 16  # of a name, that are tried


class CancelledCallError(OSError):
    """Nobody waits for what this thread does."""


class TooSlowError(TimeoutError):
    """The answer takes more time than it may."""


class Call:
    """The work of a thread for somebody, who may cancel it, or set a deadline.

    Args:
        seconds: that it may take.
        parent: call that this is a part of; its end is the end of this.
    """

    def __init__(self, seconds: float = math.inf, parent: Call | None = None) -> None:
        until = time.monotonic() + seconds
        self.until: float = min(until, parent.until) if parent is not None else until
        self._parent = parent
        self._over = threading.Event()
        self._socket: socket.socket | None = None
        self._parts: set[Call] = set()
        self._lock = threading.Lock()
        if parent is not None:
            parent._take(self)

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._over.is_set()

    @property
    def is_late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() >= self.until

    def cancel(self) -> None:
        """Make it fail soon. Without effect on one that has ended."""
        with self._lock:
            self._over.set()
            parts = list(self._parts)
            if self._socket is not None:
                with contextlib.suppress(OSError):  # it broke by itself
                    # Not the method of SSLSocket, which takes apart what a reader is using.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        for part in parts:
            part.cancel()

    def uses(self, sock: socket.socket | None) -> None:
        """Note the socket that it waits for now. Raises CancelledCallError if it was cancelled."""
        with self._lock:
            self._socket = sock
        if sock is not None:
            self.check()

    def check(self) -> None:
        """Raise CancelledCallError if it was cancelled, TooSlowError if its time is over."""
        if self._over.is_set():
            raise CancelledCallError("cancelled")
        if self.is_late:
            raise TooSlowError("the time is over")

    def pause(self, seconds: float) -> bool:
        """Wait; return whether it is over: cancelled, or it would be by the end of the wait."""
        if time.monotonic() + seconds >= self.until:
            return True
        return self._over.wait(seconds)

    def end(self) -> None:
        """Note that it needs nothing any more."""
        self.uses(None)
        if self._parent is not None:
            with self._parent._lock:
                self._parent._parts.discard(self)

    def _take(self, part: Call) -> None:
        with self._lock:
            self._parts.add(part)
        if self._over.is_set():
            part.cancel()


_here = threading.local()


def current() -> Call | None:
    """Return the call that this thread is at."""
    call: Call | None = getattr(_here, "call", None)
    return call


@contextlib.contextmanager
def calling(call: Call) -> Iterator[None]:
    """Make what this thread does in the block part of `call`."""
    before = current()
    _here.call = call
    try:
        yield
    finally:
        _here.call = before
        call.end()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give all waits of this thread in the block so many seconds, together."""
    with calling(Call(seconds, current())):
        yield


def given_up() -> bool:
    """Return whether nobody waits for this thread any more."""
    call = current()
    return call is not None and (call.cancelled or call.is_late)


def pause(seconds: float, closed: threading.Event) -> bool:
    """Wait; return whether nobody waits for this thread any more.

    Args:
        seconds: to wait.
        closed: set when the repository is closed.
    """
    call = current()
    if call is None:
        return closed.wait(seconds)
    return call.pause(seconds) or closed.is_set()


class Pace:
    """How slowly an answer may come.

    Args:
        each_s: seconds until the next bytes.
        whole_s: seconds until all of its head.
    """

    def __init__(self, each_s: float, whole_s: float) -> None:
        self._each_s, self._whole_s = each_s, whole_s
        self._until = time.monotonic() + whole_s
        self._least_rate = 0.0
        self._waited = self._count = 0.0

    def begin_head(self) -> None:
        """The request has been sent: the time for the head begins."""
        self._until = time.monotonic() + self._whole_s
        self._waited = self._count = 0.0

    @property
    def has_begun(self) -> bool:
        """Whether anything came yet."""
        return self._count > 0

    def begin_body(self, each_s: float, least_rate: float) -> None:
        """The head has come: from now on `least_rate` bytes/s over any `each_s` are enough."""
        self._each_s, self._least_rate, self._until = each_s, least_rate, math.inf
        self._waited = self._count = 0.0

    def left(self) -> float:
        """Return the seconds to wait at most for the next bytes. Raises TooSlowError."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TooSlowError("the head of the answer does not end")
        return min(self._each_s, left)

    def note(self, seconds: float, count: int) -> None:
        """Note bytes that have come, and the time of the wait for them. Raises TooSlowError.

        Only time spent waiting counts: the peer is not to blame for a slow reader.
        """
        self._waited += seconds
        self._count += count
        if self._waited >= self._each_s:
            if self._count < self._least_rate * self._waited:
                raise TooSlowError(f"less than {self._least_rate:g} bytes/s")
            self._waited = self._count = 0.0


class PacedSocket(socket.socket):
    """A socket whose reads end when the call of their thread does, and keep to a pace."""

    pace: Pace | None = None

    def recv(self, *args: Any) -> bytes:
        return self._paced(super().recv, args, len)

    def recv_into(self, *args: Any) -> int:
        return self._paced(super().recv_into, args, int)

    def _paced(self, receive: Callable[..., T], args: Any, size: Callable[[T], int]) -> T:
        call, pace = current(), self.pace
        if call is None and pace is None:
            return receive(*args)
        begun = time.monotonic()
        left = pace.left() if pace is not None else math.inf
        if call is not None:
            call.uses(self)
            left = min(left, call.until - begun)
        if left != math.inf and left != self.gettimeout():  # setting it is a system call
            self.settimeout(max(left, 0.001))
        try:
            received = receive(*args)
        except TimeoutError:
            if call is not None:
                call.check()
            if pace is not None and pace.has_begun:
                pace.left()
            raise
        if call is not None:
            call.check()  # cancelling it makes the socket look as if the peer had hung up
        if pace is not None:
            pace.note(time.monotonic() - begun, size(received))
        return received


class PacedTlsSocket(PacedSocket, ssl.SSLSocket):
    """The same with TLS; a cancelled call ends the handshake, too."""

    def do_handshake(self, block: bool = False) -> None:
        if (call := current()) is not None:
            call.uses(self)
        super().do_handshake(block)


def paced(sock: object) -> PacedSocket | None:
    """Return the paced socket that a socket reads from: itself, or one below nested TLS."""
    while sock is not None and not isinstance(sock, PacedSocket):
        sock = getattr(sock, "socket", None)
    return sock


def connect(
    address: tuple[str, int],
    timeout_s: float | None,
    options: Iterable[tuple[int, int, int | bytes]],
) -> PacedSocket:
    """Return a socket that is connected to a host and port, by the first address that answers.

    Args:
        address: host, without brackets, and port.
        timeout_s: for each of its addresses; None for no limit.
        options: of the socket: level, name, value.

    Raises:
        OSError: no address answers; as those of the socket module.
    """
    call, error = current(), OSError("the name has no address")
    found = socket.getaddrinfo(*address, 0, socket.SOCK_STREAM)
    for family, kind, protocol, _, where in found[:MAX_ADDRESSES]:
        sock = PacedSocket(family, kind, protocol)
        try:
            for option in options:
                sock.setsockopt(*option)
            left = math.inf if timeout_s is None else timeout_s
            if call is not None:
                call.uses(sock)
                left = min(left, max(0.001, call.until - time.monotonic()))
            sock.settimeout(None if left == math.inf else left)
            sock.connect(where)
            if call is not None:
                call.check()
        except OSError as exc:
            sock.close()
            error = exc
            if isinstance(exc, CancelledCallError | TooSlowError):
                break
        else:
            return sock
    raise error

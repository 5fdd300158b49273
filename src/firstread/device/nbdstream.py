# SPDX-License-Identifier: Apache-2.0
"""The stream between an NBD device and us: requests in, replies out, one socket after the other.

Owns the socket, and how it is replaced when it has ended or a process before has left it. Does not
mount. Invariants: a socket is replaced only after the kernel's receiver has left the old one; what
was asked for over an old socket and not answered is answered over the new one.

Facts about the kernel's side (Linux 6.1 to 7.3, drivers/block/nbd.c):

* A reply counts by the cookie of its request, and may come over another socket than the request
  went. The request is then sent again only when its timeout finds that its socket was replaced, so
  nobody waits for that if the next process knows what was asked for.
* A reply that was begun and not finished leaves its request in flight.
* A reply to what is not asked for any more ends the connection, and is not read.
* The receiver looks for its socket anew for each piece of a reply: replaced between two pieces, the
  rest would come from the new one, from another place. It shuts the socket down when it leaves it,
  and nobody else does as long as our end takes requests and none is too old. So we shut down our
  sending side alone, and read to the end: behind that the receiver has gone.
* The kernel sends a request at once or not at all, so one read(2) has one.
* One half of a cookie is a number below 128, the place of the request; a new one there makes the
  one before void. A cookie comes big-endian, but in Linux 6.1 in the machine's byte order.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import termios
import threading
import time
from collections.abc import Callable
from fcntl import ioctl
from typing import Any, cast

from firstread.device import nbdnetlink
from firstread.device import nbdwire as wire
from firstread.device.connection import DENIED, Connection
from firstread.device.flattree import FlatTree
from firstread.device.fusejournal import Unanswered
from firstread.device.fuseprotocol import ROOT_NODE
from firstread.device.fusereads import SectorReader
from firstread.device.nbdwire import Command, Error, Request

log = logging.getLogger("device")

TIMEOUT_S = 60
"""For a request to be answered, as the kernel has it. A socket is replaced at half of that."""

LEAST_PATIENCE_S = 30
"""That requests wait in the kernel for a socket, at least: a fetcher takes less to start."""

MOST_BYTES = 32 << 20  # of a request: the kernel's own limit
USUAL_BYTES = 1 << 20  # at most, of most
_TAKEN_S = 5.0  # for the kernel to take a reply
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.02, 1.0  # between attempts to replace a socket
_TICK_S = 0.001
_PLACES = 128  # the kernel's queue depth
_NOTHING = bytes(wire.REQUEST.size)
_BROKEN = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})


class NbdStream(Connection):
    """See `Connection`; the descriptor is a stream socket, whose other end is the kernel's.

    Attributes:
        index: of the device.
        backend: name that it was connected with.
        renewed: has somebody else hold the socket that takes the place of one; raises OSError.
        patience_s: that requests wait in the kernel for a socket, if it is more than the least.
    """

    index = -1
    backend = ""
    renewed: Callable[[Connection], None]
    patience_s = 0.0

    _is_broken = False  # the socket has ended, or is another process's
    _has_ended = False  # the device
    _connected = 0.0  # when we got the socket, by the monotonic clock

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # Where a request stands until it is dealt with, in memory that outlives this process.
        self._message = self._journal.message[: wire.REQUEST.size]
        self._sending = threading.Lock()  # of replies, each as a whole, and of the socket
        # Requests that went over another socket: answered already, or sent again, maybe.
        self._doubtful: set[int] = set()

    def connect(self) -> None:
        """Connect a free device to what the tree shows; serve it afterwards.

        Raises:
            OSError: there is none.
        """
        with self._renew() as theirs:
            self.index = nbdnetlink.connect(
                theirs.fileno(), self._size, self.backend, TIMEOUT_S, self._dead_timeout_s
            )

    def let_fail(self) -> None:
        """Fail the reads that wait, and have the kernel fail others once the socket has ended."""
        with contextlib.suppress(OSError):  # the device has ended
            nbdnetlink.wait_no_longer(self.index, self.backend)
        for unique in list(self._waiting):
            self._fail(unique, DENIED)

    @property
    def _dead_timeout_s(self) -> int:
        return max(LEAST_PATIENCE_S, round(self.patience_s))

    @property
    def _size(self) -> int:
        return cast(FlatTree, self._tree).size

    def _take_over(self) -> None:
        self._is_broken = True

    def _take_all(self, reader: SectorReader) -> None:
        buffer = memoryview(bytearray(USUAL_BYTES))
        while not self._has_ended:
            if self._is_broken:
                self._leave()
                if self._has_ended or not self._reconnect():
                    return
                self._repeat(reader, buffer)
            while not self._is_broken and (request := self._next()) is not None:
                self._handle(request, reader, buffer)
                if not self._is_broken:
                    self._message[:] = _NOTHING  # it is answered, or recorded
            self._is_broken = True

    # -- requests ------------------------------------------------------------------------------

    def _next(self) -> Request | None:
        """Return the next request; None at the end of the socket."""
        try:
            size = os.readv(self._fd, [self._message])
        except OSError as exc:
            if exc.errno in _BROKEN:
                return None
            raise
        return self._current() if size == wire.REQUEST.size else None

    def _current(self) -> Request | None:
        magic, *fields = wire.REQUEST.unpack(self._message)
        return Request(*fields) if magic == wire.REQUEST_MAGIC else None

    def _handle(self, request: Request, reader: SectorReader, buffer: memoryview) -> None:
        self.requests += 1
        if request.command == Command.READ:
            if self._waiting:
                self._void(request.cookie)
            self._serve(_unanswered(request), reader, buffer)
        elif request.command == Command.DISCONNECT:
            self._has_ended = True
        else:
            self._fail(request.cookie, OSError(errno.EINVAL, "nothing but reads is offered"))

    def _serve(self, read: Unanswered, reader: SectorReader, buffer: memoryview) -> None:
        if read.size > MOST_BYTES or read.offset + read.size > self._size:
            self._fail(read.unique, OSError(errno.EINVAL, "too long, or beyond the end"))
            return
        try:
            room = buffer if read.size <= len(buffer) else memoryview(bytearray(read.size))
            self._read(read, reader, room)
        except Exception as exc:  # noqa: BLE001 - it is logged there
            self._give_up(read.unique, exc)

    def _void(self, cookie: int) -> None:
        """Forget the request whose place another one has now."""
        with self._lock:
            known = {*self._waiting, *(read.unique for read in self._journal.records())}
            for unique in known - {cookie}:
                if _place(unique) == _place(cookie):
                    self._waiting.pop(unique, None)
                    self._journal.remove(unique)
                    self._doubtful.discard(unique)

    # -- sockets -------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Have the kernel leave the socket; record what it has asked for and nobody dealt with."""
        request = self._current()
        self._hang_up()
        while True:
            if request is not None and request.command == Command.READ:
                self._void(request.cookie)
                with self._lock:
                    self._journal.add(_unanswered(request))
            elif request is not None and request.command == Command.DISCONNECT:
                self._has_ended = True
            self._message[:] = _NOTHING
            request = self._next()
            if request is None:
                return

    def _hang_up(self) -> None:
        with self._sending, contextlib.suppress(OSError), _socket(self._fd) as ours:
            ours.shutdown(socket.SHUT_WR)

    def _reconnect(self) -> bool:
        """Give the device another socket; False if it has ended."""
        pause = _LEAST_PAUSE_S
        while True:
            if time.monotonic() - self._connected < pause:  # not again and again
                time.sleep(pause)
            try:
                with self._renew() as theirs:
                    self.renewed(self)  # first: requests come as soon as the kernel has it
                    kernels, wait_s = theirs.fileno(), self._dead_timeout_s
                    nbdnetlink.reconnect(self.index, self.backend, kernels, wait_s)
                self._is_broken = False
                return True
            except OSError as exc:
                if not self.backend or nbdnetlink.backend_of(self.index) != self.backend:
                    return False
                if pause == _LEAST_PAUSE_S:
                    log.warning("reads of %s wait: %s", self._name, exc)
            pause = min(2 * pause, _MOST_PAUSE_S)

    def _renew(self) -> socket.socket:
        """Put a new socket in the place of ours; return the kernel's end of it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with self._sending, ours:
            os.dup2(ours.fileno(), self._fd, inheritable=False)
            self._connected = time.monotonic()
        return theirs

    def _repeat(self, reader: SectorReader, buffer: memoryview) -> None:
        """Answer what was asked for over sockets before, and what had no socket meanwhile."""
        with self._lock:
            left = [read for read in self._journal.records() if read.unique not in self._waiting]
            ready = [waiting for waiting in self._waiting.values() if not waiting.left]
            self._unfinished += len(ready)
            self._doubtful.update(self._waiting)
        for read in left:
            self._doubtful.add(read.unique)
            self._serve(read, reader, buffer)
            if self._is_broken:
                break
        for waiting in ready:
            self._done.put(waiting)

    def _await_taken(self) -> None:
        """Wait until the kernel has taken what we have sent, or has hung up. With the lock held."""
        poll, unread = select.poll(), bytearray(4)
        poll.register(self._fd, 0)
        until = time.monotonic() + _TAKEN_S
        while time.monotonic() < until:
            ioctl(self._fd, termios.TIOCOUTQ, unread)
            if not any(unread):
                return
            if poll.poll(0):
                self._is_broken = True
                return
            time.sleep(_TICK_S)

    # -- reads that wait -----------------------------------------------------------------------

    def _is_restless(self) -> bool:
        return bool(self._waiting) or super()._is_restless()

    def _look_around(self) -> None:
        """Replace the socket before a request that went over it is too old."""
        old = time.monotonic() - TIMEOUT_S / 2
        with self._lock:
            is_due = any(self._connected <= w.since < old for w in self._waiting.values())
        if is_due:
            self._hang_up()

    def _send(self, unique: int, error: int, data: bytes | memoryview = b"") -> bool:
        reply = wire.simple_reply(unique, Error.IO if error else 0)
        length = len(reply) + len(data)
        with self._sending:
            if self._is_broken:  # the socket may be one that the kernel never gets
                return False
            sent = self._write([reply, data], length)
            self._is_broken = sent < length
            if sent and unique in self._doubtful:
                # Alone: if the kernel does not expect it, it hangs up, and loses what is behind it.
                self._doubtful.discard(unique)
                self._await_taken()
                return True
            return sent == length

    def _write(self, parts: list[bytes | memoryview], length: int) -> int:
        """Send parts of a reply; return how many bytes of it went out before the socket ended."""
        sent = 0
        try:
            sent = os.writev(self._fd, parts)
            while sent < length:  # a signal came, or an end
                sent += os.write(self._fd, memoryview(b"".join(parts))[sent:])
        except OSError as exc:
            if exc.errno not in _BROKEN:
                raise
        return sent


def _place(cookie: int) -> int:
    """Return what names the place in a cookie."""
    low = cookie & 0xFFFFFFFF
    return low if low < _PLACES else cookie >> 32


def _unanswered(request: Request) -> Unanswered:
    return Unanswered(request.cookie, ROOT_NODE, request.offset, request.length, 0)


def _socket(fd: int) -> socket.socket:
    return socket.socket(fileno=os.dup(fd))

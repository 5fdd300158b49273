# SPDX-License-Identifier: Apache-2.0
"""One FUSE mount's connection to the kernel.

Owns what is FUSE's own: how requests and answers look, signals to readers, and how the requests of
a process that has died come again (`fuseprotocol.resend`, or the `FuseJournal` before Linux 6.9).
Does not mount.

Facts about a connection (Linux 6.18; tests/privileged/test_device_fuse.py shows them):

* Whoever has the descriptor may read requests and answer those that others have read.
* read(2) gives ENODEV once the file system is unmounted and nobody uses it any more.
* Read-ahead goes on when its reader is gone, and others may wait for the same pages. So a request
  is never failed because its reader has died, and `Read.pid` is 0.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from typing import Any

from firstread.device import fuseprotocol as fuse
from firstread.device.connection import Connection
from firstread.device.fusejournal import Unanswered
from firstread.device.fuseprotocol import Request
from firstread.device.fusereads import SectorReader
from firstread.device.fusesignals import Signalled, is_being_killed
from firstread.device.vigil import Vigil

log = logging.getLogger("device")

READ_AHEAD_BYTES = fuse.MOST_BYTES
_ENDED = frozenset({errno.ENODEV, errno.EBADF})
_AGAIN = frozenset({errno.EINTR, errno.EAGAIN, errno.ENOENT})
_GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.EBADF})  # of an answer: nobody waits for it
KILLED = InterruptedError(errno.EINTR, "the reader is being killed")


class FuseConnection(Connection):
    """See `Connection`; the descriptor is one of /dev/fuse."""

    _left: list[Unanswered] | None = None  # of another process; None: the kernel resends

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._signalled = Signalled()
        self._room = threading.Condition(self._lock)  # in the journal

    def _take_over(self) -> None:
        try:
            os.write(self._fd, fuse.resend())
        except OSError:  # before Linux 6.9
            self._left = self._journal.records()
        else:
            self._journal.clear()

    def _take_all(self, reader: SectorReader) -> None:
        buffer = memoryview(bytearray(fuse.MOST_BYTES))
        message = self._journal.message
        self._repeat(reader, buffer)
        vigil = Vigil(self._fd)
        while True:
            self._await_room()
            vigil.keep()
            try:
                size = os.readv(self._fd, [message])
            except OSError as exc:
                if exc.errno in _AGAIN:
                    continue
                if exc.errno not in _ENDED:
                    raise
                break
            vigil.came()
            if size < fuse.BODY:
                break  # never a request
            self.requests += 1
            request = fuse.parse_request(message)
            self._handle(request, message[fuse.BODY : size], reader, buffer)
            vigil.answered()

    def _await_room(self) -> None:
        """Return once a READ can be kept: until then it waits in the kernel, and others with it."""
        if not self._journal.has_room():
            log.warning("reads of %s wait: no more are taken until some go on", self._name)
            with self._room:
                self._room.wait_for(self._journal.has_room)

    def _repeat(self, reader: SectorReader, buffer: memoryview) -> None:
        """Answer the requests that another process left, unless the kernel resends them."""
        if self._left is None:
            return
        for request in self._left:
            try:
                self._read(request, reader, buffer)
                self._interrupt(request.unique)  # its INTERRUPT may be gone
            except Exception as exc:  # noqa: BLE001 - it is logged there
                self._give_up(request.unique, exc)
        message = self._journal.message
        last, size = fuse.parse_request(message), fuse.length_of(message)
        if size >= fuse.BODY and last.unique not in {left.unique for left in self._left}:
            self._handle(last, message[fuse.BODY : size], reader, buffer)
        self._left = None

    def _handle(
        self, request: Request, body: memoryview, reader: SectorReader, buffer: memoryview
    ) -> None:
        try:
            if request.opcode == fuse.READ:
                offset, size = fuse.parse_read(body)
                size = min(size, fuse.MOST_BYTES)
                read = Unanswered(request.unique, request.node, offset, size, request.pid)
                self._read(read, reader, buffer)
            elif request.opcode == fuse.INTERRUPT:
                self._interrupt(fuse.parse_interrupt(body))
            elif request.opcode == fuse.INIT:
                self._init(request, body)
            elif request.opcode not in fuse.UNANSWERED:
                self._answer(request.unique, self._tree.answer(request, body))
        except Exception as exc:  # noqa: BLE001 - it is logged there
            self._give_up(request.unique, exc)

    def _init(self, request: Request, body: memoryview) -> None:
        hello = fuse.parse_init(body)
        if hello.is_too_old():
            log.error("FUSE 7.%d of this kernel is too old", hello.minor)
            raise OSError(errno.EPROTO, "too old")
        self._answer(request.unique, fuse.init(hello, READ_AHEAD_BYTES, many=self._tree.has_many))

    # -- signals -------------------------------------------------------------------------------

    def _interrupt(self, unique: int) -> None:
        """Note that the reader of a READ has heard a signal."""
        waiting = self._waiting.get(unique)
        if waiting is not None and is_being_killed(waiting.request.pid):
            self._fail(unique, KILLED)
        elif waiting is not None:
            self._signalled.add(unique, waiting.request.pid)
            if unique not in self._waiting:
                self._signalled.discard(unique)  # it was answered meanwhile
            self._done.put(None)

    def _is_restless(self) -> bool:
        return bool(self._signalled) or super()._is_restless()

    def _look_around(self) -> None:
        for unique in self._signalled.killed():
            self._fail(unique, KILLED)

    # -- answers -------------------------------------------------------------------------------

    def _send(self, unique: int, error: int, data: bytes | memoryview = b"") -> bool:
        try:
            if error:
                os.writev(self._fd, [fuse.error(unique, error)])
            else:
                os.writev(self._fd, [fuse.header(unique, len(data)), data])
        except OSError as exc:
            if exc.errno not in _GONE:
                raise
        return True

    def _forget(self, unique: int) -> bool:
        is_noted = super()._forget(unique)
        if is_noted:
            self._signalled.discard(unique)
            with self._room:
                self._room.notify()
        return is_noted

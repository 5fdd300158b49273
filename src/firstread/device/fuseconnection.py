# SPDX-License-Identifier: Apache-2.0
"""One FUSE mount's connection to the kernel: requests in, answers out.

Owns two threads: one reads requests from a descriptor of /dev/fuse, the other answers the READs
that had to wait. Does not mount. Invariants: a request is answered once, whole or with an errno;
one that dies with this process is the next one's (`fuseprotocol.resend`, or the `FuseJournal`
before Linux 6.9). `Connection.answered` does not block and asks for nothing: callers hold locks.

Facts about a connection (Linux 6.18; tests/privileged/test_device_fuse.py shows them):

* Whoever has the descriptor may read requests and answer those that others have read.
* read(2) gives ENODEV once the file system is unmounted and nobody uses it any more.
* Read-ahead goes on when its reader is gone, and others may wait for the same pages. So a request
  is never failed because its reader has died, and `Read.pid` is 0.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence

from firstread.device import fuseprotocol as fuse
from firstread.device.fusejournal import FuseJournal, Unanswered
from firstread.device.fuseprotocol import Request
from firstread.device.fusereads import SectorReader
from firstread.device.fusesignals import Signalled, is_being_killed
from firstread.device.fusetree import Tree
from firstread.device.fusewaiting import Waiting
from firstread.erofs.extents import Extent
from firstread.errors import FirstreadError

log = logging.getLogger("device")

READ_AHEAD_BYTES = fuse.MOST_BYTES
LOOK_S = 1.0  # between looks at readers that heard a signal, and between retries
_ENDED = frozenset({errno.ENODEV, errno.EBADF})
_AGAIN = frozenset({errno.EINTR, errno.EAGAIN, errno.ENOENT})
_GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.EBADF})  # of an answer: nobody waits for it
_SHORT = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)  # a resource that this process lacks for now
DENIED = OSError(errno.EIO, "denied")  # the fetcher has said why
KILLED = InterruptedError(errno.EINTR, "the reader is being killed")


Ask = Callable[["Connection", Waiting, Sequence[Extent]], None]
"""Asks for parts of a READ, all or none; raises OSError or NodeError. Does not block."""


class Connection:
    """A connection.

    Args:
        name: of what is mounted, for the log.
        fd: of /dev/fuse; owned, and closed at the end.
        tree: what the kernel sees.
        reader: makes a reader of its sectors for one thread.
        journal: of the mount.
        ask: for absent parts.
        ended: is told when the file system is gone, while the descriptor is still open.

    Attributes:
        requests: of the kernel so far.
    """

    def __init__(
        self,
        name: str,
        fd: int,
        tree: Tree,
        reader: Callable[[], SectorReader],
        journal: FuseJournal,
        ask: Ask,
        ended: Callable[[Connection], None],
    ) -> None:
        self._name, self._fd, self._tree, self._reader = name, fd, tree, reader
        self._journal, self._ask, self._ended = journal, ask, ended
        self.requests = 0
        self._left: list[Unanswered] | None = None  # of another process; None: the kernel resends
        self._done: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()  # None: look around
        self._is_over = self._finishes = False  # the connection; there is a thread for it
        self._users = 1  # of the descriptor: the threads
        self._is_started = False
        self._waiting: dict[int, Waiting] = {}  # by unique, until it is answered
        self._signalled = Signalled()
        self._parked: list[Waiting] = []  # those that this process lacks a resource for
        self._unfinished = 0  # READs of which all parts are answered
        self._lock = threading.Lock()  # of these, and of the journal's records
        self._room = threading.Condition(self._lock)  # in the journal

    def start(self) -> None:
        """Serve from now on, in a thread."""
        self._is_started = True
        threading.Thread(target=self._run, name="fuse", daemon=True).start()

    def go_on(self) -> None:
        """Serve what another process has served, from now on; once is enough."""
        if not self._is_started:
            self._ask_again()  # first: a connection that has started may close its descriptor
            self.start()

    def _ask_again(self) -> None:
        """Recover the requests that the process before has read and not answered."""
        try:
            os.write(self._fd, fuse.resend())
        except OSError:  # before Linux 6.9
            self._left = self._journal.records()
        else:
            self._journal.clear()

    def _run(self) -> None:
        reader = self._reader()
        buffer = memoryview(bytearray(fuse.MOST_BYTES))
        message = self._journal.message
        self._repeat(reader, buffer)
        while True:
            self._await_room()
            try:
                size = os.readv(self._fd, [message])
            except OSError as exc:
                if exc.errno in _AGAIN:
                    continue
                if exc.errno not in _ENDED:
                    raise
                break
            if size < fuse.BODY:
                break  # never a request
            self.requests += 1
            request = fuse.parse_request(message)
            self._handle(request, message[fuse.BODY : size], reader, buffer)
        reader.close()
        self.abandon()

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
            self._read(request, reader, buffer)
            self._interrupt(request.unique)  # its INTERRUPT may be gone
        message = self._journal.message
        last, size = fuse.parse_request(message), fuse.length_of(message)
        if size >= fuse.BODY and last.unique not in {left.unique for left in self._left}:
            self._handle(last, message[fuse.BODY : size], reader, buffer)
        self._left = None

    def abandon(self) -> None:
        """End a connection without a file system."""
        self._is_over = True
        self._done.put(None)
        self._release()

    def _release(self) -> None:
        """Close the descriptor behind the last thread: another file gets its number then."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        self._ended(self)
        os.close(self._fd)

    def _handle(
        self, request: Request, body: memoryview, reader: SectorReader, buffer: memoryview
    ) -> None:
        try:
            if request.opcode == fuse.READ:
                offset, size = fuse.parse_read(body)
                read = Unanswered(request.unique, request.node, offset, size, request.pid)
                self._read(read, reader, buffer)
            elif request.opcode == fuse.INTERRUPT:
                self._interrupt(fuse.parse_interrupt(body))
            elif request.opcode == fuse.INIT:
                self._init(request, body)
            elif request.opcode not in fuse.UNANSWERED:
                self._answer(request.unique, self._tree.answer(request, body))
        except (OSError, FirstreadError) as exc:
            self._fail(request.unique, exc)
        except Exception:  # the next process would get the request again, and die of it, too
            log.exception("a request to %s fails", self._name)
            self._fail(request.unique, DENIED)

    def _init(self, request: Request, body: memoryview) -> None:
        hello = fuse.parse_init(body)
        if hello.is_too_old():
            log.error("FUSE 7.%d of this kernel is too old", hello.minor)
            raise OSError(errno.EPROTO, "too old")
        self._answer(request.unique, fuse.init(hello, READ_AHEAD_BYTES, many=self._tree.has_many))

    # -- reads ---------------------------------------------------------------------------------

    def _read(self, request: Unanswered, reader: SectorReader, buffer: memoryview) -> None:
        try:
            size = min(request.size, fuse.MOST_BYTES)
            parts = self._tree.extents(request.node, request.offset, size)
        except (OSError, FirstreadError) as exc:
            self._fail(request.unique, exc)
        else:
            self._attempt(Waiting(request, parts), reader, buffer)

    def _attempt(self, waiting: Waiting, reader: SectorReader, buffer: memoryview) -> None:
        """Answer a READ, or see to it that it will be."""
        unique = waiting.request.unique
        try:
            missing = reader.read(waiting.parts, buffer, waiting.slots)
            if missing:
                waiting.note_vain(missing, reader)
                self._wait(waiting, missing)
            else:
                self._answer(unique, buffer[: sum(part.length for part in waiting.parts)])
        except (OSError, FirstreadError) as exc:
            cause = exc if isinstance(exc, OSError) else exc.__cause__
            if isinstance(cause, OSError) and cause.errno in _SHORT:
                self._park(waiting, exc)
            else:
                self._fail(unique, exc)

    def _wait(self, waiting: Waiting, missing: Sequence[Extent]) -> None:
        """Ask for the missing parts of a READ.

        Raises:
            OSError, FirstreadError: nothing is asked for.
        """
        asked = {part.slot for part in missing} - waiting.slots
        waiting.left = len(missing)
        waiting.slots |= asked
        self._note(waiting)
        try:
            self._ask(self, waiting, missing)
        except (OSError, FirstreadError):
            waiting.slots -= asked  # nobody will allow them
            raise

    def _park(self, waiting: Waiting, error: Exception) -> None:
        """Retry a READ later."""
        self._note(waiting)
        with self._lock:
            if not (waiting.parked or self._parked):
                log.warning("reads of %s wait: %s", self._name, error)
            waiting.parked = True
            self._parked.append(waiting)
        self._done.put(None)

    def _note(self, waiting: Waiting) -> None:
        """Note that a READ waits."""
        with self._lock:
            is_first, self._finishes = not self._finishes, True
            self._users += is_first
            self._waiting[waiting.request.unique] = waiting
            self._journal.add(waiting.request)
        while is_first:  # without that thread nobody would answer it
            with contextlib.suppress(RuntimeError):  # no more threads just now
                threading.Thread(target=self._finish_all, name="fuse-reads", daemon=True).start()
                return
            time.sleep(LOOK_S)

    def answered(self, waiting: Waiting, *, allow: bool) -> None:
        """Note the answer to one part of a READ; with the last one, have the READ answered."""
        with self._lock:
            waiting.left -= 1
            waiting.failed |= not allow
            if waiting.left:
                return
            self._unfinished += 1
        self._done.put(waiting)

    def is_settled(self) -> bool:
        """Return whether every READ is answered of which all parts are."""
        return not self._unfinished or self._is_over

    def _finish_all(self) -> None:
        """Answer READs that have waited, until the connection ends."""
        looked = 0.0
        while not self._is_over:
            restless = bool(self._signalled or self._parked)
            try:
                waiting = self._done.get(timeout=LOOK_S if restless else None)
            except queue.Empty:
                waiting = None
            if waiting is not None:
                self._finish(waiting)
                with self._lock:
                    self._unfinished -= 1
            if time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                for unique in self._signalled.killed():
                    self._fail(unique, KILLED)
                self._retry_parked()
        self._release()

    def _finish(self, waiting: Waiting) -> None:
        unique = waiting.request.unique
        if unique not in self._waiting:
            return  # its reader was killed
        if waiting.failed:
            self._fail(unique, DENIED)
            return
        self._retry(waiting)

    def _retry(self, waiting: Waiting) -> None:
        reader = self._reader()
        buffer = memoryview(bytearray(sum(part.length for part in waiting.parts)))
        try:
            self._attempt(waiting, reader, buffer)
        finally:
            reader.close()

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

    def _retry_parked(self) -> None:
        with self._lock:
            parked, self._parked = self._parked, []
        for waiting in parked:
            if waiting.request.unique in self._waiting:
                self._retry(waiting)

    # -- answers -------------------------------------------------------------------------------

    def _answer(self, unique: int, data: bytes | memoryview) -> None:
        self._write(unique, [fuse.header(unique, len(data)), data])

    def _fail(self, unique: int, error: OSError | FirstreadError) -> None:
        number = error.errno if isinstance(error, OSError) else None
        if number in (None, errno.EIO) and error is not DENIED:
            log.warning("a request to %s fails: %s", self._name, error)
        self._write(unique, [fuse.error(unique, number or errno.EIO)])

    def _write(self, unique: int, parts: list[bytes | memoryview]) -> None:
        try:
            os.writev(self._fd, parts)
        except OSError as exc:
            if exc.errno not in _GONE:
                raise
        if unique in self._waiting:  # once the answer is out: a death before it loses nothing
            with self._lock:
                self._waiting.pop(unique, None)
                self._journal.remove(unique)
                self._room.notify()
            self._signalled.discard(unique)

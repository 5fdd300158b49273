# SPDX-License-Identifier: Apache-2.0
"""A mount's connection to the kernel: READs in, answers out, whatever the protocol.

Owns the READs that have to wait, and two threads: one takes requests, the other answers the READs
that had to wait. Does not know how messages look. Invariants: a READ is answered once, whole or
with an errno; one that dies with this process is the next one's, from the journal.
`Connection.answered` does not block and asks for nothing: callers hold locks.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from firstread.device.fusejournal import FuseJournal, Unanswered
from firstread.device.fusereads import SectorReader
from firstread.device.fusetree import Tree
from firstread.device.waiting import Waiting
from firstread.erofs.extents import Extent
from firstread.errors import FirstreadError, from_shortage

log = logging.getLogger("device")

LOOK_S = 1.0  # between looks at readers that heard a signal, and between retries
_SHORT = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)  # a resource that this process lacks for now
DENIED = OSError(errno.EIO, "denied")  # the fetcher has said why


Ask = Callable[["Connection", Waiting, Sequence[Extent]], None]
"""Asks for parts of a READ, all or none; raises OSError or NodeError. Does not block."""


class Connection(ABC):
    """A connection.

    Args:
        name: of what is mounted, for the log.
        fd: to the kernel; owned, and closed at the end.
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
        self._done: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()  # None: look around
        self._is_over = self._finishes = False  # the connection; there is a thread for it
        self._users = 1  # of the descriptor: the threads
        self._is_started = False
        self._waiting: dict[int, Waiting] = {}  # by unique, until it is answered
        self._parked: list[Waiting] = []  # those that this process lacks a resource for
        self._unfinished = 0  # READs of which all parts are answered
        self._lock = threading.Lock()  # of these, and of the journal's records

    def start(self) -> None:
        """Serve from now on, in a thread.

        Raises:
            BusyError: this process can have no more threads.
        """
        try:
            threading.Thread(target=self._run, name="requests", daemon=True).start()
        except RuntimeError as exc:
            raise from_shortage(exc) or exc from exc
        self._is_started = True

    def go_on(self) -> None:
        """Serve what another process has served, from now on; once is enough. As `start`."""
        if not self._is_started:
            self._take_over()  # first: a connection that has started may close its descriptor
            self.start()

    def _run(self) -> None:
        reader = self._reader()
        self._take_all(reader)
        reader.close()
        self.abandon()

    @abstractmethod
    def _take_over(self) -> None:
        """Prepare to answer the requests that the process before has read and not answered."""

    @abstractmethod
    def _take_all(self, reader: SectorReader) -> None:
        """Take requests until the connection ends."""

    @abstractmethod
    def _send(self, unique: int, error: int, data: bytes | memoryview = b"") -> bool:
        """Answer a request, with an errno or with data; False if that has to be done again."""

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

    # -- reads ---------------------------------------------------------------------------------

    def _read(self, request: Unanswered, reader: SectorReader, buffer: memoryview) -> None:
        """Answer a READ, or see to it that it will be; `buffer` has room for all of it."""
        try:
            parts = self._tree.extents(request.node, request.offset, request.size)
        except (OSError, FirstreadError) as exc:
            self._fail(request.unique, exc)
            return
        with contextlib.suppress(OSError, FirstreadError):  # the same again below, if it matters
            if not reader.read(parts, buffer):
                self._answer(request.unique, buffer[: _length(parts)])
                return
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
                self._answer(unique, buffer[: _length(waiting.parts)])
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
                threading.Thread(target=self._finish_all, name="reads", daemon=True).start()
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
            try:
                waiting = self._done.get(timeout=LOOK_S if self._is_restless() else None)
            except queue.Empty:
                waiting = None
            if waiting is not None:
                self._finish(waiting)
                with self._lock:
                    self._unfinished -= 1
            if time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                self._look_around()
                self._retry_parked()
        self._release()

    def _is_restless(self) -> bool:
        """Return whether to look around though nothing happens."""
        return bool(self._parked)

    @abstractmethod
    def _look_around(self) -> None:
        """Look after READs that wait, every `LOOK_S` while it is restless."""

    def _finish(self, waiting: Waiting) -> None:
        unique = waiting.request.unique
        if unique not in self._waiting or waiting.left:
            return  # its reader was killed, or it is asked for again
        if waiting.failed:
            self._fail(unique, DENIED)
            return
        self._retry(waiting)

    def _retry(self, waiting: Waiting) -> None:
        reader = self._reader()
        buffer = memoryview(bytearray(_length(waiting.parts)))
        try:
            self._attempt(waiting, reader, buffer)
        finally:
            reader.close()

    def _retry_parked(self) -> None:
        with self._lock:
            parked, self._parked = self._parked, []
        for waiting in parked:
            if waiting.request.unique in self._waiting:
                self._retry(waiting)

    # -- answers -------------------------------------------------------------------------------

    def _answer(self, unique: int, data: bytes | memoryview) -> None:
        if self._send(unique, 0, data):
            self._forget(unique)

    def _fail(self, unique: int, error: OSError | FirstreadError) -> None:
        number = error.errno if isinstance(error, OSError) else None
        if number in (None, errno.EIO) and error is not DENIED:
            log.warning("a request to %s fails: %s", self._name, error)
        if self._send(unique, number or errno.EIO):
            self._forget(unique)

    def _give_up(self, unique: int, error: Exception) -> None:
        """Fail a request that could not be served, whatever the error.

        The next process would get the request again, and die of it, too.
        """
        if not isinstance(error, OSError | FirstreadError):
            log.error("a request to %s fails", self._name, exc_info=error)
            error = DENIED
        self._fail(unique, error)

    def _forget(self, unique: int) -> bool:
        """Forget a READ once its answer is out: a death before it loses nothing.

        Returns:
            whether it waited, or has a record.
        """
        is_noted = unique in self._waiting or unique in self._journal
        if is_noted:
            with self._lock:
                self._waiting.pop(unique, None)
                self._journal.remove(unique)
        return is_noted


def _length(parts: Sequence[Extent]) -> int:
    return sum(part.length for part in parts) if len(parts) != 1 else parts[0].length

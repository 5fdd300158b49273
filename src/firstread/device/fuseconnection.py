# SPDX-License-Identifier: Apache-2.0
"""One FUSE mount's connection to the kernel: requests in, answers out.

Owns the loop over a descriptor of /dev/fuse, and the requests that wait for absent bytes. Does not
mount. Invariants: a request is answered once, whole or with an errno; one that dies with this
process is the next one's (`fuseprotocol.resend`).

Facts about a connection (Linux 6.18; tests/privileged/test_device_fuse.py shows them):

* Whoever has the descriptor may read requests and answer those that others have read.
* read(2) gives ENODEV once the file system is unmounted and nobody uses it any more.
* A killed reader waits for the answer to what it reads by itself, deaf to SIGKILL; only INTERRUPT
  tells. For read-ahead it does not wait. INTERRUPT comes for any signal, but a read of a file must
  not fail with EINTR, so only a reader that is being killed gets that answer.
* Read-ahead goes on when its reader is gone, and others may wait for the same pages. So a request
  is never failed because its reader has died, and `Read.pid` is 0.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from firstread.device import fuseprotocol as fuse
from firstread.device.base import Read
from firstread.device.fuseprotocol import Request
from firstread.device.fusereads import SectorReader
from firstread.device.fusetree import FuseTree
from firstread.erofs.extents import Extent, extents
from firstread.errors import FirstreadError

log = logging.getLogger("device")

READ_AHEAD_BYTES = fuse.MOST_BYTES
ATTEMPTS = 3  # to read what was allowed; somebody may have emptied it meanwhile
_ENDED = frozenset({errno.ENODEV, errno.EBADF})
_AGAIN = frozenset({errno.EINTR, errno.EAGAIN, errno.ENOENT})
_GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.EBADF})  # of an answer: nobody waits for it
_SIGKILL_BIT = 1 << 8
DENIED = OSError(errno.EIO, "denied")  # the fetcher has said why


@dataclass(slots=True, eq=False)
class Waiting:
    """A READ that waits for absent bytes.

    Args:
        unique: of the request.
        pid: thread that reads.
        parts: of the file.
        slots: that were asked for.
        left: parts that are not answered yet.
        attempt: how often it was asked for.
        failed: a part was denied.
    """

    unique: int
    pid: int
    parts: Sequence[Extent]
    slots: set[int] = field(default_factory=set)
    left: int = 0
    attempt: int = 0
    failed: bool = False


Ask = Callable[["Connection", Waiting, Extent], Read]
"""Makes a numbered `Read` of a part."""


class Connection:
    """A connection.

    Args:
        name: of what is mounted, for the log.
        fd: of /dev/fuse; owned, and closed at the end.
        tree: of the image.
        reader: makes a reader of its sectors for one thread.
        number: makes a numbered read of a part that is waited for.
        ask: takes the read. Does not block.
        ended: is told when the file system is gone.

    Attributes:
        requests: of the kernel so far.
    """

    def __init__(
        self,
        name: str,
        fd: int,
        tree: FuseTree,
        reader: Callable[[], SectorReader],
        number: Ask,
        ask: Callable[[Read], None],
        ended: Callable[[Connection], None],
    ) -> None:
        self._name, self._fd, self._tree, self._reader = name, fd, tree, reader
        self._number, self._ask, self._ended = number, ask, ended
        self._waiting: dict[int, Waiting] = {}  # by unique
        self.requests = 0
        self._users = 1  # of the descriptor: the loop, and threads that answer
        self._lock = threading.Lock()  # of these, and of what waits

    def start(self) -> None:
        """Serve from now on, in a thread."""
        threading.Thread(target=self._run, name="fuse", daemon=True).start()

    def ask_again(self) -> None:
        """Have the kernel send what another process has read and not answered (Linux >= 6.9)."""
        try:
            os.write(self._fd, fuse.resend())
        except OSError as exc:
            log.warning("reads that waited for another process may hang: %s", exc)

    def _run(self) -> None:
        reader = self._reader()
        buffer = memoryview(bytearray(fuse.MOST_BYTES))
        message = memoryview(bytearray(fuse.REQUEST_BYTES))
        while True:
            try:
                size = os.readv(self._fd, [message])
            except OSError as exc:
                if exc.errno in _AGAIN:
                    continue
                if exc.errno not in _ENDED:
                    raise
                break
            self.requests += 1
            request = fuse.parse_request(message)
            self._handle(request, message[fuse.BODY : size], reader, buffer)
        reader.close()
        self.abandon()

    def abandon(self) -> None:
        """End a connection without a file system."""
        with self._lock:
            self._waiting.clear()  # nobody waits any more
        self._release()
        self._ended(self)

    def _release(self) -> None:
        """Close the descriptor, once no thread is about to answer: another file gets its number."""
        with self._lock:
            self._users -= 1
            if not self._users:
                os.close(self._fd)

    def _handle(
        self, request: Request, body: memoryview, reader: SectorReader, buffer: memoryview
    ) -> None:
        try:
            if request.opcode == fuse.READ:
                self._read(request, body, reader, buffer)
            elif request.opcode == fuse.INTERRUPT:
                self._interrupt(fuse.parse_interrupt(body))
            elif request.opcode == fuse.INIT:
                self._init(request, body)
            elif request.opcode not in fuse.UNANSWERED:
                self._answer(request.unique, self._tree.answer(request, body))
        except (OSError, FirstreadError) as exc:
            self._fail(request.unique, exc)

    def _init(self, request: Request, body: memoryview) -> None:
        hello = fuse.parse_init(body)
        if hello.is_too_old():
            log.error("FUSE 7.%d of this kernel is too old", hello.minor)
            raise OSError(errno.EPROTO, "too old")
        self._answer(request.unique, fuse.init(hello, READ_AHEAD_BYTES))

    # -- reads ---------------------------------------------------------------------------------

    def _read(
        self, request: Request, body: memoryview, reader: SectorReader, buffer: memoryview
    ) -> None:
        offset, size = fuse.parse_read(body)
        inode = self._tree.inode(request.node)
        parts = extents(self._tree.image, inode, offset, min(size, fuse.MOST_BYTES))
        missing = reader.read(parts, buffer)
        if missing:
            self._wait(Waiting(request.unique, request.pid, parts), missing)
        else:
            self._answer(request.unique, buffer[: sum(part.length for part in parts)])

    def _wait(self, waiting: Waiting, missing: Sequence[Extent]) -> None:
        """Ask for the missing parts of a request.

        Raises:
            OSError, FirstreadError: a file cannot be opened; nothing is asked for.
        """
        reads: list[Read] = []
        waiting.left, waiting.attempt = len(missing), waiting.attempt + 1
        waiting.slots.update(part.slot for part in missing)
        with self._lock:
            self._waiting[waiting.unique] = waiting
        try:
            reads += [self._number(self, waiting, part) for part in missing]
        except (OSError, FirstreadError):
            with self._lock:
                self._waiting.pop(waiting.unique, None)
            raise
        for read in reads:
            self._ask(read)

    def answered(self, waiting: Waiting, *, allow: bool) -> None:
        """Note the answer to one part of a request; with the last one, answer the request."""
        with self._lock:
            waiting.left -= 1
            waiting.failed |= not allow
            if waiting.left or self._waiting.pop(waiting.unique, None) is None:
                return
            self._users += 1
        try:
            if waiting.failed:
                self._fail(waiting.unique, DENIED)
            else:
                self._finish(waiting)
        except (OSError, FirstreadError) as exc:
            self._fail(waiting.unique, exc)
        finally:
            self._release()

    def _finish(self, waiting: Waiting) -> None:
        buffer = memoryview(bytearray(sum(part.length for part in waiting.parts)))
        reader = self._reader()
        try:
            missing = reader.read(waiting.parts, buffer, waiting.slots)
        finally:
            reader.close()
        if not missing:
            self._answer(waiting.unique, buffer)
        elif waiting.attempt < ATTEMPTS:
            self._wait(waiting, missing)
        else:
            raise OSError(errno.EIO, "what was allowed is absent")

    def _interrupt(self, unique: int) -> None:
        with self._lock:
            waiting = self._waiting.get(unique)
            if waiting is None or not _is_being_killed(waiting.pid):
                return
            del self._waiting[unique]
        self._fail(unique, InterruptedError(errno.EINTR, "killed"))

    # -- answers -------------------------------------------------------------------------------

    def _answer(self, unique: int, data: bytes | memoryview) -> None:
        self._write([fuse.header(unique, len(data)), data])

    def _fail(self, unique: int, error: OSError | FirstreadError) -> None:
        number = error.errno if isinstance(error, OSError) else None
        if number in (None, errno.EIO) and error is not DENIED:
            log.warning("a request to %s fails: %s", self._name, error)
        self._write([fuse.error(unique, number or errno.EIO)])

    def _write(self, parts: list[bytes | memoryview]) -> None:
        try:
            os.writev(self._fd, parts)
        except OSError as exc:
            if exc.errno not in _GONE:
                raise


def _is_being_killed(pid: int) -> bool:
    """Return whether SIGKILL is on its way to a thread. Source: proc_pid_status(5)."""
    try:
        with open(f"/proc/{pid}/status") as status:
            masks = [line.split()[1] for line in status if line.startswith(("SigPnd", "ShdPnd"))]
    except OSError:
        return False
    return any(int(mask, 16) & _SIGKILL_BIT for mask in masks)

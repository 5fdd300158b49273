# SPDX-License-Identifier: Apache-2.0
"""Checks sectors against their ids before reads see them, and all of them when asked.

Owns the threads that read and digest sector files, the reads that wait for it, and what becomes of
a damaged sector: it is emptied, and fetched like any absent one. Two kinds of files are looked at:
sectors that are present and doubted, because they were here before their image was mounted, and
files that a power loss made doubtful and that lie aside; those, if they are good, are copied into
the sector's file.

Invariant: a sector is checked by one thread at a time, and held in the cache meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from firstread.errors import FirstreadError
from firstread.node.cache import Cache
from firstread.node.filling import Waiter, Wanted
from firstread.node.inspection import Outcome
from firstread.node.opener import HeldUpError, Opener
from firstread.sectors.check import is_sector, is_whole
from firstread.sectors.store import SectorStore
from firstread.units import MiB

log = logging.getLogger("check")

COPY_BYTES = 1 * MiB


class Checks:
    """The checks of a node.

    Args:
        store: of the sector files.
        cache: of the same.
        answer: lets reads go on.
        again: takes reads anew, of a sector that turned out to be damaged.
        deny: lets reads fail, of a sector that cannot be checked: this machine's fault, which no
            source can help.
        prove: is told the size of a sector that its content has shown.

    Attributes:
        checked, damaged: sectors so far.
    """

    def __init__(
        self,
        store: SectorStore,
        cache: Cache,
        answer: Callable[[Sequence[Waiter]], None],
        again: Callable[[Sequence[Waiter]], None],
        deny: Callable[[Sequence[Waiter], Exception, Wanted], None],
        prove: Callable[[bytes, int], None] = lambda *_: None,
    ) -> None:
        self.checked = self.damaged = 0
        # When sectors that this process has checked or fetched were written last, in ns.
        self._trusted: dict[bytes, int] = {}
        self._store, self._cache = store, cache
        self._answer, self._again, self._deny, self._prove = answer, again, deny, prove
        self._waiters: dict[bytes, list[Waiter]] = {}  # of the sectors that are being checked
        self._aside = store.aside()
        self._lock = threading.Lock()
        self._opener = Opener("aside")
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="check")

    def is_aside(self, sector_id: bytes) -> bool:
        """Return whether there is a doubtful file of a sector, and it can be looked at now."""
        return sector_id in self._aside and not self._opener.is_held_up

    def trust(self, sector_id: bytes, fd: int) -> None:
        """Note that a sector was checked or came whole; `fd`: its file. Needs no other then."""
        if sector_id in self._aside:
            with self._lock:
                self._aside.discard(sector_id)
            self._cache.remove_aside(sector_id)
        self._trusted[sector_id] = os.fstat(fd).st_mtime_ns

    def forget(self, sector_id: bytes) -> None:
        """Note that a sector is not here any more."""
        self._trusted.pop(sector_id, None)

    def is_trusted(self, sector_id: bytes) -> bool:
        """Return whether a sector was checked or came whole, and nobody has written to it since."""
        written = self._trusted.get(sector_id)
        return written is not None and self._store.written_ns(sector_id) == written

    def note_aside(self, ids: Sequence[bytes]) -> None:
        """Note that the files of sectors were set aside."""
        with self._lock:
            self._aside |= set(ids)

    def read(self, waiter: Waiter, sector: Wanted) -> None:
        """Check a sector for a read that waits for it. Does not block.

        Raises:
            OSError: too many files are open.
        """
        self._submit(self._check, waiter, sector)

    def decide(self, waiter: Waiter, sector: Wanted) -> None:
        """Find out whether a sector is whole, of which images state different sizes; then `again`.

        Raises:
            OSError: as `read`.
        """
        self._submit(self._decide, waiter, sector)

    def _submit(
        self, action: Callable[[Wanted, int], None], waiter: Waiter, sector: Wanted
    ) -> None:
        sector_id = sector.entry.id
        with self._lock:
            if sector_id in self._waiters:
                self._waiters[sector_id].append(waiter)
                return
            fd = os.dup(waiter[0].fd)  # it raises no events, and it is the file that is mounted
            self._waiters[sector_id] = [waiter]
        self._pool.submit(self._guarded, action, sector, fd)

    def _decide(self, sector: Wanted, fd: int) -> None:
        if is_whole(fd, sector.entry.id, sector.geometry.frame_size):
            self._prove(sector.entry.id, os.fstat(fd).st_size)

    def sweep(self, sector: Wanted, *, repair: bool) -> Outcome:
        """Check a sector that nobody waits for, as the disk has it.

        Args:
            sector: which.
            repair: empty it if it is damaged; its image is mounted.
        """
        if not self._store.size(sector.entry.id):
            return "partial"
        fd = self._store.open(sector.entry.id)  # first: it may wait, and no read is to wait for it
        try:
            return self._sweep(sector, fd, repair=repair)
        finally:
            os.close(fd)

    def _sweep(self, sector: Wanted, fd: int, *, repair: bool) -> Outcome:
        entry = sector.entry
        with self._lock:
            if entry.id in self._waiters:
                return "busy"
            self._waiters[entry.id] = []
        try:
            with self._cache.holding(entry.id) as held:
                if not held:
                    return "busy"
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                if os.fstat(fd).st_size < entry.size:
                    # Not whole, unless this image is wrong about its size.
                    good = is_whole(fd, entry.id, sector.geometry.frame_size)
                    return "good" if good else "partial"
                good = self._is_good(sector, fd)
                if good and self._cache.clock.is_doubted(entry.id):
                    self._cache.filled(entry.id, fd)
                if good or not repair:
                    return "good" if good else "damaged"
                self._cache.doubt(entry.id)
                return "emptied" if self._repair(sector) else "damaged"
        finally:
            self._again(self._done(entry.id))

    def _guarded(self, action: Callable[[Wanted, int], None], sector: Wanted, fd: int) -> None:
        try:
            action(sector, fd)
        except Exception as exc:
            log.exception("a check of sector %s failed", sector.entry.id.hex())
            self._deny(self._done(sector.entry.id), exc, sector)
        finally:
            os.close(fd)
            self._again(self._done(sector.entry.id))

    def _done(self, sector_id: bytes) -> list[Waiter]:
        with self._lock:
            return self._waiters.pop(sector_id, [])

    def _check(self, sector: Wanted, fd: int) -> None:
        entry = sector.entry
        if self.is_aside(entry.id):
            if not self._recall(sector, fd):
                return
            self._cache.doubt(entry.id)  # look at what was copied, too
        with self._cache.holding(entry.id) as held:
            if not held or os.fstat(fd).st_size < entry.size:
                return
            if self._cache.clock.is_doubted(entry.id) and not self._is_good(sector, fd):
                self._repair(sector)
                return
            self._cache.filled(entry.id, fd)
            self.trust(entry.id, fd)
            self._answer(self._done(entry.id))

    def _is_good(self, sector: Wanted, fd: int) -> bool:
        """Return whether the file is the sector, whatever size an image gives it.

        Raises:
            NodeError: it cannot be read now; it may be right.
        """
        good = is_whole(fd, sector.entry.id, sector.geometry.frame_size)
        self.checked += 1
        self.damaged += not good
        return good

    def _repair(self, sector: Wanted) -> bool:
        """Empty a damaged sector that is held and doubted; return whether that was possible."""
        log.error("sector %s is damaged on the disk: fetching it again", sector.entry.id.hex())
        self.forget(sector.entry.id)
        if self._cache.condemn(sector.entry.id):
            return True
        log.error("sector %s is damaged and in use", sector.entry.id.hex())
        return False

    def _recall(self, sector: Wanted, fd: int) -> bool:
        """Take back the doubtful file of a sector, if it is good; return whether it was."""
        entry = sector.entry
        with self._lock:
            self._aside.discard(entry.id)
        try:
            source = self._opener.do(lambda: self._store.open_aside(entry.id), os.close)
        except HeldUpError:
            self.note_aside([entry.id])
            return False  # reads of it are fetched while it is held up
        except FirstreadError as exc:
            if not isinstance(exc.__cause__, FileNotFoundError):
                self.note_aside([entry.id])  # the next read tries again
                raise
            return False  # it was removed to make room
        try:
            good = is_sector(source, entry.id, entry.size, sector.geometry.frame_size)
        except FirstreadError:
            os.close(source)
            self.note_aside([entry.id])
            raise
        try:
            if good:
                self._cache.recall(entry.id)
                room = self._cache.admit(entry.id, entry.size)
                try:
                    _copy(source, fd, entry.size)
                finally:
                    self._cache.leave(entry.id, room)
        except (FirstreadError, OSError) as exc:
            log.warning("cannot take sector %s back: %s", entry.id.hex(), exc)
            return False
        finally:
            os.close(source)
            self._cache.remove_aside(entry.id)
        self.checked += 1
        if not good:
            self.damaged += 1
            log.warning("sector %s did not reach the disk before the reboot", entry.id.hex())
        return good


def _copy(source: int, target: int, size: int) -> None:
    """Grow `target` by what is missing of `source`, up to `size` bytes."""
    position = os.fstat(target).st_size
    while position < size:
        data = os.pread(source, min(COPY_BYTES, size - position), position)
        if not data:
            raise OSError("the file became shorter")
        position += os.pwrite(target, data, position)

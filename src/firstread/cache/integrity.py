# SPDX-License-Identifier: Apache-2.0
"""Checks sectors against their ids before reads see them, and all of them when asked.

Owns the threads that read and digest sector files, the reads that wait for that, and what becomes
of a damaged sector: it is emptied, and fetched like any absent one. It looks at two kinds of files:
sectors that are present and doubted, because they were here before their image was mounted, and
unverified files, which a reboot left and which lie aside; the good ones of those are copied into
the sector's file.

Invariant: one thread at a time checks a sector, and holds it meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence

from firstread.cache.inspection import Outcome
from firstread.cache.nodecache import Cache
from firstread.cache.pending import PendingRead
from firstread.errors import FirstreadError
from firstread.opener import HeldUpError, Opener
from firstread.sectors.check import is_sector, is_whole
from firstread.sectors.sectorstore import SectorStore
from firstread.sectors.source import Wanted
from firstread.threads import SteadyPool
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
        fail: lets reads fail, of a sector that cannot be checked, or takes them again if that may
            pass: this machine's fault, which no source can help.
        prove: is told the size of a sector that its content has shown.

    Attributes:
        checked, damaged: sectors so far.
    """

    def __init__(
        self,
        store: SectorStore,
        cache: Cache,
        answer: Callable[[Sequence[PendingRead]], None],
        again: Callable[[Sequence[PendingRead]], None],
        fail: Callable[[Sequence[PendingRead], Exception, Wanted], None],
        prove: Callable[[bytes, int], None] = lambda *_: None,
    ) -> None:
        self.checked = self.damaged = 0
        self._store, self._presence = store, cache.presence
        self._admission, self._disposal = cache.admission, cache.disposal
        self._answer, self._again, self._fail, self._prove = answer, again, fail, prove
        self._pending: dict[bytes, list[PendingRead]] = {}  # of the sectors that are being checked
        self._broken: set[bytes] = set()  # sectors whose damage is counted, and that are still here
        self._lock = threading.Lock()
        self._opener = Opener("unverified")
        self._pool = SteadyPool(os.cpu_count() or 1, "check")

    def has_unverified(self, sector_id: bytes) -> bool:
        """Return whether an unverified file of a sector lies aside, and can be looked at now."""
        return sector_id in self._presence.unverified and not self._opener.is_held_up

    def read(self, read: PendingRead, sector: Wanted) -> None:
        """Check a sector for a read that waits for it. Does not block.

        Raises:
            OSError: too many files are open.
        """
        self._submit(self._check, read, sector)

    def decide(self, read: PendingRead, sector: Wanted) -> None:
        """Find out whether a sector is whole, of which images state different sizes; then `again`.

        Raises:
            OSError: as `read`.
        """
        self._submit(self._decide, read, sector)

    def _submit(
        self, action: Callable[[Wanted, int], None], read: PendingRead, sector: Wanted
    ) -> None:
        sector_id = sector.entry.id
        with self._lock:
            if sector_id in self._pending:
                self._pending[sector_id].append(read)
                return
            fd = os.dup(read.fd)  # it raises no events, and it is the file that is mounted
            self._pending[sector_id] = [read]
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
        if not self._presence.size(sector.entry.id):
            return "partial"
        fd = self._store.open(sector.entry.id)  # first: it may wait, and no read is to wait for it
        try:
            return self._sweep(sector, fd, repair=repair)
        finally:
            os.close(fd)

    def _sweep(self, sector: Wanted, fd: int, *, repair: bool) -> Outcome:
        sector_id = sector.entry.id
        with self._lock:
            if sector_id in self._pending:
                return "busy"
            self._pending[sector_id] = []
        try:
            with self._presence.holding(sector_id) as held:
                return self._look(sector, fd, repair=repair) if held else "busy"
        finally:
            self._again(self._done(sector_id))

    def _look(self, sector: Wanted, fd: int, *, repair: bool) -> Outcome:
        presence, entry = self._presence, sector.entry
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if os.fstat(fd).st_size < entry.size:
            # Not whole, unless this image is wrong about its size.
            good = is_whole(fd, entry.id, sector.geometry.frame_size)
            return "good" if good else "partial"
        good = self._is_good(sector, fd)
        if good and presence.is_doubted(entry.id):
            presence.present(entry.id, fd)
        if good or not repair:
            return "good" if good else "damaged"
        presence.doubt(entry.id)
        return "emptied" if self._repair(sector) else "damaged"

    def _guarded(self, action: Callable[[Wanted, int], None], sector: Wanted, fd: int) -> None:
        try:
            action(sector, fd)
        except Exception as exc:
            log.exception("a check of sector %s failed", sector.entry.id.hex())
            self._fail(self._done(sector.entry.id), exc, sector)
        finally:
            os.close(fd)
            self._again(self._done(sector.entry.id))

    def _done(self, sector_id: bytes) -> list[PendingRead]:
        with self._lock:
            return self._pending.pop(sector_id, [])

    def _check(self, sector: Wanted, fd: int) -> None:
        presence, entry = self._presence, sector.entry
        if self.has_unverified(entry.id) and not self._recall(sector, fd):
            return
        with presence.holding(entry.id) as held:
            if not held or os.fstat(fd).st_size < entry.size:
                return
            if presence.is_doubted(entry.id) and not self._is_good(sector, fd):
                self._repair(sector)
                return
            presence.present(entry.id, fd)
            self._answer(self._done(entry.id))

    def _is_good(self, sector: Wanted, fd: int) -> bool:
        """Return whether the file is the sector, whatever size an image gives it.

        Raises:
            NodeError: it cannot be read now; it may be right.
        """
        good = is_whole(fd, sector.entry.id, sector.geometry.frame_size)
        self.checked += 1
        self._note(sector.entry.id, good=good)
        return good

    def _note(self, sector_id: bytes, *, good: bool) -> None:
        """Count a damaged sector, once until it is good again."""
        with self._lock:
            if good:
                self._broken.discard(sector_id)
            elif sector_id not in self._broken:
                self._broken.add(sector_id)
                self.damaged += 1

    def _repair(self, sector: Wanted) -> bool:
        """Empty a damaged sector that is held and doubted; return whether that was possible."""
        log.error("sector %s is damaged on the disk: fetching it again", sector.entry.id.hex())
        if self._disposal.condemn(sector.entry.id):
            self._note(sector.entry.id, good=True)
            return True
        log.error("sector %s is damaged and in use", sector.entry.id.hex())
        return False

    def _recall(self, sector: Wanted, fd: int) -> bool:
        """Take back the unverified file of a sector, if it is good; return whether it was.

        Raises:
            NodeError: it cannot be read now. The next read tries again.
        """
        entry, files = sector.entry, self._store.unverified
        try:
            source = self._opener.do(lambda: files.open(entry.id), os.close)
        except HeldUpError:
            return False  # reads of it are fetched while it is held up
        except FirstreadError as exc:
            if not isinstance(exc.__cause__, FileNotFoundError):
                raise
            self._presence.recall(entry.id)
            return False  # it was removed to make room
        try:
            good = is_sector(source, entry.id, entry.size, sector.geometry.frame_size)
            self._presence.recall(entry.id)
            taken = good and self._copy(sector, source, fd)
        finally:
            os.close(source)
        files.remove(entry.id)
        self.checked += not good or taken
        self.damaged += not good
        if not good:
            log.warning("sector %s did not reach the disk before the reboot", entry.id.hex())
        return taken

    def _copy(self, sector: Wanted, source: int, fd: int) -> bool:
        """Grow a sector's file by what is missing of `source`; what was copied is doubted."""
        presence, admission, entry = self._presence, self._admission, sector.entry
        try:
            room = admission.admit(entry.id, entry.size)
            try:
                presence.doubt(entry.id)
                while (position := presence.size(entry.id)) < entry.size:
                    data = os.pread(source, min(COPY_BYTES, entry.size - position), position)
                    if not data:
                        raise OSError("the file became shorter")
                    admission.write(entry.id, fd, position, memoryview(data))
            finally:
                admission.leave(entry.id, room)
        except (FirstreadError, OSError) as exc:
            log.warning("cannot take sector %s back: %s", entry.id.hex(), exc)
            return False
        return True

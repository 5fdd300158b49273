# SPDX-License-Identifier: Apache-2.0
"""The device that asks by fanotify: EROFS over sector files, each of them marked while it matters.

Owns the marks, and the order of marking and mounting. Does not decide what is marked. Invariant: a
file that EROFS opens is marked, whatever others do meanwhile: one that was not when it was opened
never raises an event. A mark too many costs an event; one too few is a read that finds nothing.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from firstread.device.base import Capabilities
from firstread.device.erofsmount import mount_erofs, unmount
from firstread.device.fanotify import Group
from firstread.device.readahead import KNOWN_START_KIB, read_ahead_of, set_read_ahead_of
from firstread.device.superblock import FileSystem
from firstread.errors import FirstreadError
from firstread.sectors.sectorstore import SectorStore

log = logging.getLogger("device")

BATCH = 256  # sectors that are marked without letting others have the lock
MOST_UNWATCHED = 1024


class FanotifyDevice:
    """See `Device`.

    Args:
        store: of the sector files.
        group: that the events go to.
    """

    name = "fanotify"

    def __init__(self, store: SectorStore, group: Group) -> None:
        self._store, self._group = store, group
        self._opening: frozenset[bytes] = frozenset()  # sectors whose files EROFS opens just now
        self._unwatched: set[bytes] = set()  # some that have no mark: reads of them may still come
        self._lock = threading.Lock()  # of both, and of marks

    @property
    def capabilities(self) -> Capabilities:
        """See `Device`."""
        return Capabilities(
            asks_for_sectors=self._group.asks_for_sectors,
            sets_read_ahead=True,
            merges_reads=False,
            outlives_servers=True,
            file_system="erofs",
            known_start_kib=KNOWN_START_KIB,
        )

    def attach(self, metadata: Path, ids: Sequence[bytes], mountpoint: Path) -> None:
        """See `Device`."""
        with self.opening(ids):
            mount_erofs(metadata, [self._store.path(sector_id) for sector_id in ids], mountpoint)

    @contextlib.contextmanager
    def opening(self, ids: Sequence[bytes]) -> Iterator[None]:
        """Keep sectors marked while somebody opens their files."""
        with self._lock:
            self._opening = frozenset(ids)
        try:
            self.watch(ids)
            yield
        finally:
            with self._lock:
                self._opening = frozenset()

    def adopt(self, metadata: Path, ids: Sequence[bytes], number: int) -> bool:
        """See `Device`: nothing of a mount is in a process."""
        return True

    def offer(self, ids: Iterable[bytes]) -> None:
        """See `Device`: nothing is borrowed here."""

    def borrows(self, sector_id: bytes) -> bool:
        """See `Device`."""
        del sector_id
        return False

    def go_on(self, number: int) -> None:
        """See `Device`: events are read by nobody before."""

    def detach(self, mountpoint: Path, *, lazy: bool = False) -> None:
        """See `Device`."""
        unmount(mountpoint, lazy=lazy)

    def set_read_ahead(self, file_system: FileSystem, kib: int) -> None:
        """See `Device`."""
        set_read_ahead_of(file_system, kib)

    def read_ahead(self, file_system: FileSystem) -> int:
        """See `Device`."""
        return read_ahead_of(file_system)

    def watch(self, ids: Iterable[bytes]) -> None:
        """See `Device`."""
        left = list(ids)
        while left:
            with self._lock:  # others want it, too
                batch, left = left[:BATCH], left[BATCH:]
                self._unwatched.difference_update(batch)
                self._group.mark_names(self._store.fileno(), self._store.names(batch))

    def unwatch(self, ids: Iterable[bytes]) -> None:
        """See `Device`."""
        with self._lock:
            names = self._store.names(i for i in ids if i not in self._opening)
            try:
                self._group.unmark_names(self._store.fileno(), names)
            except FirstreadError as exc:
                log.warning("sectors stay watched: %s", exc)

    def unwatch_file(self, sector_id: bytes, fd: int) -> None:
        """See `Device`."""
        with self._lock:
            if sector_id in self._opening or sector_id in self._unwatched:
                return
            self._group.unmark(fd)
            if len(self._unwatched) >= MOST_UNWATCHED:
                self._unwatched.clear()
            self._unwatched.add(sector_id)

    def is_watching(self) -> bool:
        """See `Device`."""
        return self._group.has_marks()

    def answer(self, number: int, *, allow: bool = True) -> bool:
        """See `Device`."""
        return self._group.answer(number, allow=allow)

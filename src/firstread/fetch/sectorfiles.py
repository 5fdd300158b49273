# SPDX-License-Identifier: Apache-2.0
"""The sector files that lanes fill.

Owns opening and writing them, and telling the cache when one is whole. Does not fetch, and answers
no read. Implements `firstread.fetch.sides.Files` and `Space`.
"""

from __future__ import annotations

import os

from firstread.cache.admission import Admission
from firstread.cache.flush import Flusher
from firstread.cache.presence import Presence
from firstread.errors import from_os_error
from firstread.opener import Opener
from firstread.sectors.sectorstore import SectorStore
from firstread.sectors.source import Wanted


class SectorFiles:
    """The files of a store.

    Args:
        store: of the files.
        presence: is told what came.
        admission: of fills.
        flusher: writes present sectors to the disk.
    """

    def __init__(
        self, store: SectorStore, presence: Presence, admission: Admission, flusher: Flusher
    ) -> None:
        self._store, self._presence = store, presence
        self._admission, self._flusher = admission, flusher
        self._opener = Opener("open")

    def size(self, sector: Wanted) -> int:
        """Return the bytes that a sector's file has and keeps."""
        return self._presence.prefix(sector.entry.id)

    def has_spare(self, sectors: int, sector: Wanted) -> bool:
        """Return whether so many sectors like this one fit without anything being emptied."""
        return self._admission.has_spare(sectors * sector.entry.size)

    def admit(self, sector: Wanted) -> int:
        """Wait for room for a sector, and hold it; return the room."""
        return self._admission.admit(sector.entry.id, sector.entry.size)

    def open(self, sector: Wanted, beside: int | None) -> int:
        """Return a new descriptor of a sector's file: a copy of `beside`, if there is one."""
        try:
            if beside is not None:
                return os.dup(beside)
            return self._opener.do(lambda: self._store.open(sector.entry.id, os.O_RDWR), os.close)
        except OSError as exc:
            raise from_os_error(exc, "cannot open the sector file") from exc

    def write(self, sector: Wanted, fd: int, position: int, frame: memoryview) -> None:
        """Write a verified frame."""
        self._admission.write(sector.entry.id, fd, position, frame)

    def commit(self, sector: Wanted, fd: int) -> None:
        """Note that a sector is whole and verified."""
        self._presence.present(sector.entry.id, fd)
        self._flusher.add(sector.entry.id, sector.entry.size)

    def leave(self, sector: Wanted, room: int) -> None:
        """End an `admit`."""
        self._admission.leave(sector.entry.id, room)

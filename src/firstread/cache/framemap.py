# SPDX-License-Identifier: Apache-2.0
"""Which frames of each sector are here, while it is filled and while it rests.

A sector that rests has a prefix, as long as the clock says; one that is filled, or rests with
holes, has a `FrameSet`. Owns these, and when the store is told of holes: before the first byte
behind one is written, and when none is left. Called with the lock of `Presence`, but for looks.
"""

from __future__ import annotations

from firstread.cache.clock import Clock
from firstread.errors import NodeError
from firstread.sectors.frameset import FrameSet
from firstread.sectors.sectorstore import SectorStore


class FrameMap:
    """The frames of all sectors.

    Args:
        store: of the sector files.
        clock: knows the bytes of sectors that rest.
        random_fill: frames may come in any order. If not, files with holes are emptied now: their
            holes would read as zeros.

    Attributes:
        holed: sectors whose files may have holes.
    """

    def __init__(self, store: SectorStore, clock: Clock, *, random_fill: bool) -> None:
        self._store, self._clock, self._random_fill = store, clock, random_fill
        self._sets: dict[bytes, FrameSet] = {}
        for sector_id, frames in store.with_holes().items():
            if random_fill:
                self._sets[sector_id] = frames
            else:
                store.empty(sector_id)
        self.holed = set(self._sets)

    def __getitem__(self, sector_id: bytes) -> FrameSet:
        return self._sets.get(sector_id) or FrameSet(self._clock.size(sector_id))

    def size(self, sector_id: bytes) -> int:
        """Return how many bytes of a sector are here."""
        found = self._sets.get(sector_id)
        return found.size if found else self._clock.size(sector_id)

    def reach(self, sector_id: bytes, start: int) -> None:
        """Get ready for bytes of a sector that are about to be written from `start` on.

        Raises:
            NodeError: they would leave a hole, and there may be none; or the store cannot note it.
        """
        prefix = self[sector_id].prefix
        if start <= prefix or sector_id in self.holed:
            return
        if not self._random_fill:
            raise NodeError(
                f"a write to sector {sector_id.hex()} at {start} would leave a hole behind {prefix}"
            )
        self._store.allow_holes(sector_id, prefix)
        self.holed.add(sector_id)

    def add(self, sector_id: bytes, start: int, end: int) -> None:
        """Note bytes that were written, after `reach`."""
        if sector_id in self.holed:
            self._store.note_frames(sector_id, start, end)
        self._sets[sector_id] = self[sector_id].having(start, end)

    def rest(self, sector_id: bytes) -> None:
        """Note that nobody fills a sector any more, and that the clock knows its bytes."""
        if not self[sector_id].has_holes:
            self.close(sector_id)
            self._sets.pop(sector_id, None)

    def close(self, sector_id: bytes) -> None:
        """Note that a sector has no holes, unless its file has bytes that nobody committed."""
        if sector_id in self.holed:
            status = self._store.look(sector_id)
            if status is not None and status.st_size == self[sector_id].prefix:
                self._store.close_holes(sector_id)
                self.holed.discard(sector_id)

    def drop(self, sector_id: bytes) -> None:
        """Forget a sector whose file was emptied or removed."""
        self._sets.pop(sector_id, None)
        self.holed.discard(sector_id)

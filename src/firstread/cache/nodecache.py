# SPDX-License-Identifier: Apache-2.0
"""The sectors of a node, put together: what is known of them, and who makes room for them.

Owns the composition, and what concerns more than one part of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from firstread.cache.admission import Admission, Idle
from firstread.cache.disposal import Disposal
from firstread.cache.evictor import Evictor
from firstread.cache.limits import Limits
from firstread.cache.mounting import Mounting
from firstread.cache.presence import Presence
from firstread.cache.reclaim import Reclaim
from firstread.cache.report import EvictionFigures
from firstread.config import CacheTable
from firstread.sectors.sectorstore import SectorStore


class Cache:
    """The sector store of a node, kept within its limits.

    Args:
        presence: what is known of its sectors.
        store: of the sector files.
        table: its limits.

    Attributes:
        admission: of fills, and of whatever else takes room.
        disposal: of sectors that go.
        mounting: gets files ready for mounts.
        evictor: makes room.
    """

    def __init__(self, presence: Presence, store: SectorStore, table: CacheTable) -> None:
        self.presence = presence
        self.admission = Admission(presence, store, Limits.of(table))
        self.disposal = Disposal(presence, store)
        self.mounting = Mounting(presence, self.disposal, store)
        self._reclaim = Reclaim(presence, self.disposal, self.admission, store)
        self.evictor = Evictor(presence, self.disposal, self.admission, self._reclaim)
        self._store = store

    def use(self, idle: Idle) -> None:
        """Take room back from `idle`, too."""
        self.admission.idle = idle

    def make_files(self, ids: Sequence[bytes]) -> None:
        """Make the files of sectors that have none; see `Admission.make_files`."""
        with self.presence.changed:
            self._reclaim.look_anew()
        self.admission.make_files(ids, self.mounting.make)

    def mounts_changed(self) -> None:
        """Look anew for what is idle, and whether there is too much of it."""
        with self.presence.changed:
            self._reclaim.look_anew()
            self.admission.look_again()

    def guard(self, *, on: bool) -> None:
        """Remove nothing while `on`: mounts stand whose sectors are not known."""
        with self.presence.changed:
            self.presence.guarded = on
            self._reclaim.look_anew(at_files=True)
            self.admission.kick()

    def tidy(self) -> int:
        """Remove the files without bytes that no mounted image has; return how many."""
        return self._reclaim.tidy()

    def figures(self) -> EvictionFigures:
        """Return what the store holds, and what went."""
        with self.presence.changed:
            held, sectors = self.admission.holdings(), self.presence.clock.count
        limits, disposal = self.admission.limits, self.disposal
        return EvictionFigures(
            bytes=held.bytes,
            sectors=sectors,
            metadata_bytes=held.metadata_bytes,
            files=held.files,
            free_files=self._store.free_files(),
            limit_bytes=limits.max_bytes or None,
            limit_files=limits.max_files or None,
            min_free_bytes=limits.min_free_bytes or None,
            free_bytes=self._store.free_bytes(),
            evictions=disposal.evictions,
            evicted_bytes=disposal.evicted_bytes,
            removals=disposal.removals,
            removed_bytes=disposal.removed_bytes,
        )

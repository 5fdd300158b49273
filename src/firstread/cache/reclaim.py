# SPDX-License-Identifier: Apache-2.0
"""Takes back what no mount needs: idle images and their sectors, and files without bytes.

Owns the list of what is idle, in the order to go, and whether it is still true. The list is made
without the lock and in a thread of its own, for it reads the records of all images.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable

from firstread.cache.admission import Admission
from firstread.cache.disposal import Disposal
from firstread.cache.mounting import BATCH
from firstread.cache.presence import Presence
from firstread.cache.room import Room
from firstread.opener import HeldUpError, Opener
from firstread.sectors.sectorstore import SectorStore

log = logging.getLogger("cache")

INVENTORY_S = 2.0  # for the look at what is idle: 3 us a sector, and the index of each image


class Reclaim:
    """The eviction candidates that no mount would miss.

    Args:
        presence: what is known of sectors.
        disposal: removes them.
        admission: knows what is idle.
        store: of the sector files.
    """

    def __init__(
        self, presence: Presence, disposal: Disposal, admission: Admission, store: SectorStore
    ) -> None:
        self._presence, self._disposal = presence, disposal
        self._admission, self._store = admission, store
        self._cold: deque[bytes | str] = deque()
        self._cold_is_known = False
        self._is_tidy = False  # no file without bytes is left that no mounted image has
        self._opener = Opener("inventory", INVENTORY_S)

    @property
    def is_held_up(self) -> bool:
        """Whether a look at what is idle, or a removal, is under way still."""
        return self._opener.is_held_up

    def look_anew(self, *, at_files: bool = False) -> None:
        """Note that other images are idle now; `at_files`: and files without bytes may be left."""
        self._cold_is_known = False
        self._is_tidy = self._is_tidy and not at_files

    def take(self, goal: Room) -> Room:
        """Remove what is idle until `goal` is reached; return what became free."""
        if not self._is_tidy:
            goal -= Room(0, self.tidy())
        freed = Room()
        try:
            while freed.bytes < goal.bytes or freed.files < goal.files:
                if not self._cold and not self._find():
                    break
                item = self._cold.popleft()
                if isinstance(item, bytes):
                    freed += self._disposal.remove(item)
                else:
                    freed += self._remove_image(item)
        except HeldUpError:  # what comes of it comes later, by itself
            self._cold_is_known = False
        return freed

    def _find(self) -> bool:
        """List what is idle, unless that is known; return whether there is anything."""
        if not self._cold_is_known:
            self._cold_is_known = True
            self._note(self._opener.do(self._admission.idle.cold, self._note))
        return bool(self._cold)

    def _note(self, found: Iterable[bytes | str]) -> None:
        self._cold = deque(found)

    def _remove_image(self, digest: str) -> Room:
        def note(freed: Room) -> Room:
            if freed:
                log.info("removed image %s, which is not mounted, to make room", digest)
            with self._presence.changed:
                self._presence.free(freed)
            return freed

        return note(self._opener.do(lambda: self._admission.idle.remove(digest), note))

    def tidy(self) -> int:
        """Remove the files without bytes that no mounted image has; return how many."""
        self._is_tidy = True
        empty = [sector_id for sector_id, size in self._store.sizes() if not size]
        before = self._store.made
        for start in range(0, len(empty), BATCH):
            with self._presence.changed:
                for sector_id in empty[start : start + BATCH]:
                    self._presence.remove_empty(sector_id)
        return before - self._store.made

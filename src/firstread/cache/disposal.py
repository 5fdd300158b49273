# SPDX-License-Identifier: Apache-2.0
"""Makes sector files shorter, or removes them.

Owns the steps of that, and the figures. Chooses nothing: the evictor, a check, a mount or a user
says what is to go. Invariant: no file becomes shorter anywhere else, and none does while somebody
uses it, a read may be at it, or a fetch in flight knows of a prefix of it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable

from firstread.cache.presence import Presence
from firstread.cache.room import Room
from firstread.device.pages import is_quiet
from firstread.errors import FirstreadError
from firstread.opener import HeldUpError, Opener
from firstread.sectors.sectorstore import SectorStore

log = logging.getLogger("cache")

PATIENCE_S = 30.0  # for others to end their use of a damaged sector
LOOK_S = 1.0
UNSEEN_S = 0.3  # grace of files that cannot be opened to see whether a read is still at them


class Disposal:
    """Empties and removes sectors.

    Args:
        presence: what is known of them.
        store: of their files.

    Attributes:
        evictions, evicted_bytes: of sectors of mounted images.
        removals, removed_bytes: of sectors of other images.
    """

    def __init__(self, presence: Presence, store: SectorStore) -> None:
        self.evictions = self.evicted_bytes = self.removals = self.removed_bytes = 0
        self._presence, self._store = presence, store
        self._opener = Opener("look")

    def evict(self, ids: Iterable[bytes]) -> None:
        """Empty sectors that have drained, unless one turns out to be in use."""
        is_seen = True
        for sector_id in ids:
            emptied = False
            try:
                if self._presence.forget(sector_id):
                    quiet = self._is_quiet(sector_id) if is_seen else True
                    if quiet is None:  # those that follow drain meanwhile, too
                        is_seen = False
                        time.sleep(UNSEEN_S)
                    if quiet is not False:
                        self._store.empty(sector_id)
                        emptied = True
            except FirstreadError as exc:
                log.warning("cannot empty sector %s: %s", sector_id.hex(), exc)
            except Exception:  # reads wait for the end of this one, and of those that follow
                log.exception("cannot empty sector %s", sector_id.hex())
            self._end(sector_id, emptied=emptied, counts=True)

    def _is_quiet(self, sector_id: bytes) -> bool | None:
        """Return whether no read is at a file's pages; None if it cannot be opened to see."""
        try:
            fd = self._opener.do(lambda: self._store.open(sector_id), os.close)
        except HeldUpError:
            return None
        try:
            return is_quiet(fd)
        finally:
            os.close(fd)

    def condemn(self, sector_id: bytes) -> bool:
        """Empty a damaged sector that the caller holds and has doubted; wait for it.

        Returns:
            False if others hold it for too long.
        """
        presence = self._presence
        deadline = time.monotonic() + PATIENCE_S
        while not presence.sizes.is_settled():
            if time.monotonic() > deadline:
                return False
        time.sleep(presence.grace_s)
        with presence.changed:
            while not presence.clock.condemn(sector_id):
                if time.monotonic() > deadline:
                    return False
                presence.changed.wait(LOOK_S)
        emptied = False
        try:
            self._store.empty(sector_id)
            emptied = True
        finally:
            self._end(sector_id, emptied=emptied, counts=False)
        return True

    def _end(self, sector_id: bytes, *, emptied: bool, counts: bool) -> None:
        """Say what has become of a sector that was being emptied; its reads go on."""
        presence = self._presence
        with presence.changed:
            size = presence.clock.size(sector_id)
            if emptied:
                presence.clock.emptied(sector_id)
                presence.gone(sector_id)
                presence.free(Room(size))
                self.evictions += counts
                self.evicted_bytes += size * counts
            else:
                presence.clock.spared(sector_id)
                presence.keep(sector_id)
            waiters = presence.unpark(sector_id)
        if waiters:
            presence.again(waiters)

    def discard(self, ids: Iterable[bytes]) -> None:
        """Empty sectors that cannot be used for a mount, unless a fetch is at one."""
        presence = self._presence
        for sector_id in ids:
            with presence.changed:
                if not (presence.is_free(sector_id) and presence.hold(sector_id)):
                    continue
            try:
                if presence.members.may_be_read(sector_id):
                    presence.doubt(sector_id)
                    self.condemn(sector_id)
                else:
                    self._store.empty(sector_id)
                    with presence.changed:
                        presence.clock.add(sector_id, 0)
                        presence.gone(sector_id)
            finally:
                presence.release(sector_id)

    def remove(self, sector_id: bytes) -> Room:
        """Remove a sector unless it is mounted or in use; return the room that became free."""
        presence = self._presence
        with presence.changed:
            if presence.is_needed(sector_id) or not presence.is_free(sector_id):
                return Room()
            files = (sector_id in presence.unverified) + self._store.made
            size = presence.remove_unverified(sector_id) + presence.size(sector_id)
            self._store.remove([sector_id])
            freed = Room(size, files - self._store.made)
            presence.clock.drop(sector_id)
            presence.gone(sector_id)
            presence.free(freed)
            self.removals += bool(size)
            self.removed_bytes += size
            return freed

    def remove_unverified(self, wanted: int) -> int:
        """Remove unverified files until `wanted` bytes are free; return how many are.

        They may be of no use: nobody has checked them yet.
        """
        presence, freed = self._presence, 0
        with presence.changed:
            while presence.unverified and freed < wanted:
                size = presence.remove_unverified(next(iter(presence.unverified)))
                presence.free(Room(size, 1))
                freed += size
        return freed

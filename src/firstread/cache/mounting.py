# SPDX-License-Identifier: Apache-2.0
"""What a mount needs of the sectors of its image: files, marks, and doubts where they belong.

Owns the look at the files of an image before EROFS opens them, one stat(2) each, and the order in
which they are marked and unmarked around the mount. Does not mount.

Invariants: no mount gets a file that is neither verified nor doubted; each file is marked when
EROFS opens it; what is doubted is so before the mount can be read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from firstread.cache.clock import State
from firstread.cache.disposal import Disposal
from firstread.cache.membership import Member
from firstread.cache.presence import Presence
from firstread.sectors.sectorstore import SectorStore, is_unverified

BATCH = 256  # sectors that are looked at without letting others have the lock


class Findings(NamedTuple):
    """What a look at the files of an image has found.

    Args:
        missing: sectors without a file.
        doubted: sectors that are to be checked when they are read.
    """

    missing: list[bytes]
    doubted: list[bytes]


class Mounting:
    """Gets sector files ready for mounts, and lets them go.

    Args:
        presence: what is known of sectors.
        disposal: of what cannot be used.
        store: of the files.
    """

    def __init__(self, presence: Presence, disposal: Disposal, store: SectorStore) -> None:
        self._presence, self._disposal, self._store = presence, disposal, store

    def prepare(self, member: Member, verify: str) -> Findings:
        """Look at the files of an image that is to be mounted.

        Unverified files are set aside. Bytes that nobody vouches for are doubted if the sector is
        whole; a prefix cannot be checked without its frame table, and is given up. What another
        mount is read of was checked for that one, but its bytes on the disk may have changed.

        Args:
            member: the image; it is served already.
            verify: when sectors that are here are to be checked, see `firstread.config`.
        """
        presence, found, lost = self._presence, Findings([], []), []
        for sector_id, whole in member.sizes.items():
            status = self._look(sector_id)
            if status is None:
                found.missing.append(sector_id)
            elif status.st_size and verify != "never":
                once = verify == "once" and presence.is_checked(sector_id, status.st_mtime_ns)
                if not once:
                    found.doubted.append(sector_id)
                    is_read = presence.members.may_be_read(sector_id)
                    if presence.size(sector_id) < whole and not is_read:
                        lost.append(sector_id)
        self._disposal.discard(lost)
        return found

    def _look(self, sector_id: bytes) -> os.stat_result | None:
        """Return what a sector's file is; None if there is none that can be mounted."""
        presence, status = self._presence, self._store.look(sector_id)
        is_read = presence.members.may_be_read(sector_id)
        if status is not None and is_unverified(status) and not is_read:
            status = None if presence.set_aside(sector_id) else status
        size = status.st_size if status else 0
        if size != presence.size(sector_id):
            presence.found(sector_id, size)
        return status

    def make(self, ids: Sequence[bytes]) -> None:
        """Make the files that are missing of `ids`, empty."""
        with self._presence.changed:
            self._store.ensure(ids)

    @contextlib.contextmanager
    def opening(self, member: Member, doubted: Iterable[bytes]) -> Iterator[None]:
        """Have the files of an image marked while EROFS opens them, those not whole afterwards too.

        One mount at a time.

        Args:
            member: the image.
            doubted: see `Findings`.
        """
        presence, ids = self._presence, list(member.sizes)
        with presence.changed:
            for sector_id in doubted:
                if presence.is_whole(sector_id):
                    presence.clock.doubt(sector_id)
                    presence.publish(sector_id)
        for start in range(0, len(ids), BATCH):
            with presence.changed:  # nothing that is offered is chosen to be emptied afterwards
                batch = ids[start : start + BATCH]
                presence.device.offer([i for i in batch if self._needs_no_mark(i)])
        yield
        member.mounted = True
        for start in range(0, len(ids), BATCH):
            with presence.changed:
                batch = ids[start : start + BATCH]
                present = {i for i in batch if self._needs_no_mark(i)}
                presence.device.unwatch(present)
                for sector_id in batch:
                    if sector_id not in present:
                        presence.publish(sector_id)

    def _needs_no_mark(self, sector_id: bytes) -> bool:
        presence = self._presence
        kept = presence.clock.state(sector_id) is State.KEPT
        return kept and presence.is_whole(sector_id) and not presence.is_doubted(sector_id)

    def adopt(self, member: Member, *, anew: bool, doubt: bool) -> None:
        """Watch the sectors of a mount that another fetcher has served before.

        Marks that are there are all that is left of its doubts, and of the sectors that it was
        about to empty: they stay.

        Args:
            member: the image.
            anew: the marks are gone with the group: nobody saw what was read meanwhile.
            doubt: check what is marked when it is read.
        """
        presence, mark, unmark = self._presence, [], []
        self._restore(member)
        with presence.changed:
            member.mounted = True
            for sector_id, size in member.sizes.items():
                if presence.size(sector_id) < size or not presence.is_whole(sector_id):
                    mark.append(sector_id)
                elif not doubt:
                    unmark.append(sector_id)
                elif presence.clock.doubt(sector_id) and anew:
                    mark.append(sector_id)
                presence.publish(sector_id)
            presence.device.watch(mark)
            presence.device.unwatch(unmark)

    def _restore(self, member: Member) -> None:
        """Make the files of a mount that stands usable: that is the case but for an accident."""
        lost, missing = [], []
        for sector_id in member.sizes:
            status = self._store.look(sector_id)
            if status is None:
                missing.append(sector_id)
            elif is_unverified(status):
                lost.append(sector_id)  # the record of the boot is lost
        self._disposal.discard(lost)
        self.make(missing)

    def unwatch(self, ids: Iterable[bytes]) -> None:
        """Watch those sectors no longer that no mounted image has; files without bytes go.

        15 us a file that goes. Others get the lock now and then: reads must not wait for all.
        """
        presence, todo = self._presence, list(ids)
        for start in range(0, len(todo), BATCH):
            with presence.changed:
                alone = [i for i in todo[start : start + BATCH] if not presence.is_needed(i)]
                presence.device.unwatch(alone)
                for sector_id in alone:
                    presence.remove_empty(sector_id)

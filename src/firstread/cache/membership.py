# SPDX-License-Identifier: Apache-2.0
"""What the images that are served say of sectors. Pure: no I/O, no locks.

Owns who has a sector, and what follows from that: its whole size, whether it is pinned, whether an
image that is all here has it. Nothing of it is stored twice: a fact about a sector is asked of its
members, of whom there are one or two.
"""

from __future__ import annotations

from collections.abc import Iterable

from firstread.sectors.format import SectorEntry


class Member:
    """An image that is served, as far as its sectors are concerned.

    Args:
        sectors: of the image.
        hot: ids of those that a start reads.

    Attributes:
        hot: as given.
        sizes: bytes of each sector, as the image says.
        absent: sectors that are not whole; an image without any is all here.
        void: sectors of which another size was proven.
        pinned: it is not evicted.
        mounted: its files were opened by a mount, so its sectors may be read.
    """

    def __init__(self, sectors: Iterable[SectorEntry], hot: Iterable[bytes] = ()) -> None:
        self.hot = frozenset(hot)
        self.sizes = {sector.id: sector.size for sector in sectors}
        self.absent: set[bytes] = set()
        self.void: set[bytes] = set()
        self.pinned = self.mounted = False
        self.alone = (self,)  # shared by all sectors that nobody else has


class Membership:
    """The members, by sector. Reads of it need no lock: what they find is replaced, not changed."""

    def __init__(self) -> None:
        self._members: dict[bytes, tuple[Member, ...]] = {}

    def add(self, member: Member) -> None:
        """Count a member in."""
        members = self._members
        for sector_id in member.sizes:
            others = members.get(sector_id)
            members[sector_id] = (*others, member) if others else member.alone

    def remove(self, member: Member) -> list[bytes]:
        """Count a member out; return the sectors that nobody has any more."""
        gone = []
        for sector_id in member.sizes:
            left = tuple(other for other in self.having(sector_id) if other is not member)
            if left:
                self._members[sector_id] = left
            else:
                self._members.pop(sector_id, None)
                gone.append(sector_id)
        return gone

    def having(self, sector_id: bytes) -> tuple[Member, ...]:
        """Return the members that have a sector."""
        return self._members.get(sector_id, ())

    def whole_size(self, sector_id: bytes) -> int:
        """Return the bytes of a sector, the most of those that members give it; or 0."""
        sizes = [m.sizes[sector_id] for m in self.having(sector_id) if sector_id not in m.void]
        return max(sizes, default=0)

    def is_pinned(self, sector_id: bytes) -> bool:
        """Return whether a member that has the sector is pinned."""
        return any(member.pinned for member in self.having(sector_id))

    def is_complete(self, sector_id: bytes) -> bool:
        """Return whether a member that has the sector is all here."""
        return any(not member.absent for member in self.having(sector_id))

    def is_hot(self, sector_id: bytes) -> bool:
        """Return whether the start of a member that has the sector reads it."""
        return any(sector_id in member.hot for member in self.having(sector_id))

    def may_be_read(self, sector_id: bytes) -> bool:
        """Return whether a mount has the sector's file open."""
        return any(member.mounted for member in self.having(sector_id))

    def note_whole(self, sector_id: bytes) -> None:
        """Note that a sector is present."""
        for member in self.having(sector_id):
            member.absent.discard(sector_id)

    def note_absent(self, sector_id: bytes) -> None:
        """Note that a sector is not whole any more."""
        for member in self.having(sector_id):
            member.absent.add(sector_id)

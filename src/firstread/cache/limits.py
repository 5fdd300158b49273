# SPDX-License-Identifier: Apache-2.0
"""What the limits of the store leave room for. Pure: arithmetic over a look at what it holds.

Owns `max_bytes`, `max_files` and `min_free_bytes`, and by how much they are, or would be, exceeded.
0 is no limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from firstread.cache.room import Room
from firstread.config import CacheTable
from firstread.units import MiB

READY_SHARE = 4  # of the limit: what drains in advance while bytes are to become free
CALM_SHARE = 16  # the same while none are
MAX_HEADROOM_BYTES = 64 * MiB  # kept free in advance, so that a fill need not wait


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a store holds.

    Args:
        bytes: of sectors.
        metadata_bytes: of images, beside their sectors.
        reserved_bytes: that fills were admitted for.
        files: of sectors and images.
        free_bytes: that the file system has left.
    """

    bytes: int
    metadata_bytes: int
    reserved_bytes: int
    files: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a store."""

    max_bytes: int
    max_files: int
    min_free_bytes: int

    @classmethod
    def of(cls, table: CacheTable) -> Limits:
        """Return the limits that a configuration states."""
        return cls(int(table.max_bytes), table.max_files, int(table.min_free_bytes))

    @property
    def headroom(self) -> int:
        """Bytes that are kept free in advance."""
        return min(self.max_bytes // 16, MAX_HEADROOM_BYTES) if self.max_bytes else MiB

    def over(self, held: Holdings, more: int) -> int:
        """Return by how many bytes a limit would be exceeded with `more` bytes of sectors.

        Metadata of mounted images cannot go. So that their reads have room, half of the limit is
        the sectors', however much of it there is.
        """
        over = 0
        if self.max_bytes:
            over = self._over_bytes(held, more, min(held.metadata_bytes, self.max_bytes // 2))
        if self.min_free_bytes:
            free = held.free_bytes - held.reserved_bytes - more
            over = max(over, self.min_free_bytes - free)
        return over

    def _over_bytes(self, held: Holdings, more: int, metadata: int) -> int:
        return held.bytes + metadata + held.reserved_bytes + more - self.max_bytes

    def over_files(self, held: Holdings, more: int) -> int:
        """Return by how many files the limit would be exceeded with `more` files."""
        return held.files + more - self.max_files if self.max_files else 0

    def surplus(self, held: Holdings, more: int) -> Room:
        """Return what of idle sectors and images is too much, with `more` bytes to come."""
        over = self.over(held, more)
        if self.max_bytes:
            over = max(over, self._over_bytes(held, more, held.metadata_bytes))
        return Room(max(0, over), max(0, self.over_files(held, 0)))

    def ready(self, held: Holdings, ahead: int, *, hurry: bool) -> int:
        """Return how many bytes should be draining in advance, with `ahead` bytes to come."""
        if self.over(held, ahead + self.headroom) <= 0:
            return 0
        return max(self.max_bytes // (READY_SHARE if hurry else CALM_SHARE), self.headroom)

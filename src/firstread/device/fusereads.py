# SPDX-License-Identifier: Apache-2.0
"""Reads of file data from sector files, for FUSE.

Owns the open sector files of a thread. Does not ask for what is absent. Invariant: bytes of a
watched sector are read only if they are covered (`Covers`) or after somebody has allowed it, and a
part counts as read only if all of it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterable, Sequence

from firstread.device.watches import Watches
from firstread.erofs.extents import METADATA_SLOT, NO_SLOT, Extent
from firstread.errors import FirstreadError, NodeError
from firstread.sectors.sectorstore import SectorStore

_ZEROS = bytes(1 << 20)
_FAR_BYTES = 1 << 19  # of one sector in one read: the kernel reads ahead, and soon wants the next

Inside = Callable[[int, int], bytes | bytearray]
"""Returns bytes of metadata, by offset and length."""

Covers = Callable[[bytes, int], bool]
"""Tells whether a sector may be read up to an offset without asking, though it is watched."""


def nothing_covered(sector_id: bytes, end: int) -> bool:
    """Have all reads of what is watched ask: see `Covers`."""
    del sector_id, end
    return False


class SectorReader:
    """Reads parts of sectors. For one thread.

    Args:
        store: of the sector files.
        ids: of the sectors, by slot.
        watches: of the mount.
        most: says how many files may stay open.
        inside: reads metadata, where extents may lie in it.
        covers: knows the verified beginnings of sectors that are being filled.
    """

    def __init__(
        self,
        store: SectorStore,
        ids: Sequence[bytes],
        watches: Watches,
        most: Callable[[], int],
        inside: Inside | None = None,
        covers: Covers = nothing_covered,
    ) -> None:
        self._store, self._ids, self._watches, self._most = store, ids, watches, most
        self._inside, self._covers = inside, covers
        self._files: dict[int, int] = {}  # descriptors by slot, the one used last at the end
        self._begun = -1  # the slot that the disk was last told to read

    def close(self) -> None:
        """Close the sector files."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    def read(
        self, parts: Iterable[Extent], buffer: memoryview, allowed: Collection[int] = ()
    ) -> list[Extent]:
        """Read parts into a buffer, one behind the other.

        Args:
            parts: what.
            buffer: has room for all of them.
            allowed: slots that may be read though they are watched.

        Returns:
            the parts to ask for: they are absent, or watched.

        Raises:
            OSError: EIO: a part is absent, and its sector is not watched; or a file cannot be read.
        """
        missing, at = [], 0
        for part in parts:
            slot, start, length = part
            piece = buffer[at : at + length]
            at += length
            if slot == NO_SLOT:
                piece[:] = _ZEROS[:length]
            elif slot == METADATA_SLOT and self._inside is not None:
                piece[:] = self._inside(start, length)
            elif self._must_ask(part, allowed):
                missing.append(part)
            elif os.preadv(self._file(slot), [piece], start) < length:
                # Somebody may be emptying it: it was watched before it became shorter.
                if self._watches[slot]:
                    missing.append(part)
                elif os.preadv(self._file(slot), [piece], start) < length:  # nor filled meanwhile
                    raise OSError(errno.EIO, "an absent sector is not watched")
            if length >= _FAR_BYTES:
                self._begin(slot + 1)
        return missing

    def _begin(self, slot: int) -> None:
        """Have the disk read a sector that is present: a file is read ahead to its end only."""
        if slot != self._begun and slot < len(self._ids) and not self._watches[slot]:
            self._begun = slot
            with contextlib.suppress(OSError, FirstreadError):  # nobody has asked for it
                os.posix_fadvise(self._file(slot), 0, 0, os.POSIX_FADV_WILLNEED)

    def _must_ask(self, part: Extent, allowed: Collection[int]) -> bool:
        slot, start, length = part
        if not self._watches[slot] or slot in allowed:
            return False
        return not self._covers(self._ids[slot], start + length)

    def written(self, slots: Iterable[int]) -> list[tuple[int, int]]:
        """Return when each sector file was written, in nanoseconds, and its bytes.

        Raises:
            OSError, NodeError: one of them cannot be opened.
        """
        found = [os.fstat(self._file(slot)) for slot in slots]
        return [(status.st_mtime_ns, status.st_size) for status in found]

    def _file(self, slot: int) -> int:
        fd = self._files.pop(slot, None)
        if fd is None:
            most = self._most()
            while len(self._files) >= most:
                os.close(self._files.pop(next(iter(self._files))))
            try:
                fd = self._store.open(self._ids[slot])
            except NodeError:
                if not self._files:
                    raise
                self.close()  # they are only a cache
                fd = self._store.open(self._ids[slot])
        self._files[slot] = fd
        return fd

# SPDX-License-Identifier: Apache-2.0
"""Which sectors of a FUSE mount are watched, in memory that outlives the process which serves it.

Owns the layout of a file without a name: a byte of each device slot, then 8 bytes of the mount's
device number. As marks do for fanotify, it tells the next fetcher what the one before has left.
The supervisor holds it, beside the connection; it imports nothing but this.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Sequence

NAME = "watches"
_NUMBER = struct.Struct("=Q")


def make_watches(count: int) -> int:
    """Return the descriptor of the watches of so many sectors; none is watched."""
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
    os.ftruncate(fd, count + _NUMBER.size)
    return fd


def note_device(fd: int, number: int) -> None:
    """Note in watches which file system they are of."""
    os.pwrite(fd, _NUMBER.pack(number), os.fstat(fd).st_size - _NUMBER.size)


def device_of(fd: int) -> int:
    """Return what `note_device` has noted; 0 for nothing."""
    at = os.fstat(fd).st_size - _NUMBER.size
    data = os.pread(fd, _NUMBER.size, at) if at >= 0 else b""
    return int(_NUMBER.unpack(data)[0]) if len(data) == _NUMBER.size else 0


class Watches:
    """The watches of one mount.

    Args:
        fd: as `make_watches` gave it; stays the caller's.
        ids: of the sectors, by slot.
    """

    def __init__(self, fd: int, ids: Sequence[bytes]) -> None:
        self._count = len(ids)
        self._memory = mmap.mmap(fd, self._count + _NUMBER.size)
        self._slots: dict[bytes, list[int]] = {}
        for slot, sector_id in enumerate(ids):
            self._slots.setdefault(sector_id, []).append(slot)

    def __getitem__(self, slot: int) -> bool:
        return self._memory[slot] != 0

    def set(self, ids: Iterable[bytes], *, on: bool) -> None:
        """Watch some sectors, or no longer; other mounts' sectors are passed over."""
        for sector_id in ids:
            for slot in self._slots.get(sector_id, ()):
                self._memory[slot] = on

    def exist(self) -> bool:
        """Return whether any sector is watched."""
        return any(self._memory[: self._count])

# SPDX-License-Identifier: Apache-2.0
"""Which sectors of a mount are watched, in memory that outlives the process which serves it.

Owns the layout of a file without a name: a head, the mount's `FuseJournal`, a byte of each device
slot, and the sector id of each. As marks do for fanotify, it tells the next fetcher what the one
before has left, even if the image of the mount cannot be opened. The supervisor holds it, beside
the connection.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
from collections.abc import Iterable, Sequence

from firstread.device.base import SECTOR_ID_BYTES
from firstread.device.fusejournal import JOURNAL_BYTES, FuseJournal

NAME = "watches"
_HEAD = struct.Struct("=8sQ")  # magic, device number of the mount
_MAGIC = b"frwatch2"
_WATCHED, _LENT = 1, 2  # bits of a slot's byte
_JOURNAL = 4096
_SLOTS = _JOURNAL + JOURNAL_BYTES


def make_watches(ids: Sequence[bytes]) -> int:
    """Return the descriptor of the watches of a mount, by its sectors; none is watched."""
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _size(len(ids)))
        os.pwrite(fd, b"".join(ids), _SLOTS + len(ids))
        note_device(fd, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def note_device(fd: int, number: int) -> None:
    """Note in watches which file system they are of."""
    os.pwrite(fd, _HEAD.pack(_MAGIC, number), 0)


def device_of(fd: int) -> int:
    """Return what `note_device` has noted; 0 for nothing."""
    head = os.pread(fd, _HEAD.size, 0)
    magic, number = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0)
    return int(number) if magic == _MAGIC else 0


def is_any_watched(fd: int) -> bool:
    """Return whether the watches of a descriptor have a sector that is watched."""
    return _is_any(_bytes(fd))


def lent_by(fd: int) -> frozenset[bytes]:
    """Return the ids of the sectors that were lent by the mount of a descriptor."""
    slots = _bytes(fd)
    ids = os.pread(fd, len(slots) * SECTOR_ID_BYTES, _SLOTS + len(slots))
    starts = (slot * SECTOR_ID_BYTES for slot, byte in enumerate(slots) if byte & _LENT)
    return frozenset(ids[start : start + SECTOR_ID_BYTES] for start in starts)


def _size(count: int) -> int:
    return _SLOTS + count * (1 + SECTOR_ID_BYTES)


def _bytes(fd: int) -> bytes:
    """Return the byte of each slot."""
    count = (os.fstat(fd).st_size - _SLOTS) // (1 + SECTOR_ID_BYTES)
    return os.pread(fd, max(0, count), _SLOTS)


def _is_any(watched: bytes) -> bool:
    return bytes((_WATCHED,)) in watched or bytes((_WATCHED | _LENT,)) in watched


class Watches:
    """The watches of one mount.

    Args:
        fd: as `make_watches` gave it; stays the caller's.
        ids: of the sectors, by slot.

    Attributes:
        journal: of the mount.

    Raises:
        OSError: these are not the watches of such a mount.
    """

    def __init__(self, fd: int, ids: Sequence[bytes]) -> None:
        if os.fstat(fd).st_size != _size(len(ids)):
            raise OSError(errno.EINVAL, "the watches are of another mount")
        memory = memoryview(mmap.mmap(fd, _SLOTS + len(ids)))
        self.journal = FuseJournal(memory[_JOURNAL:_SLOTS])
        # A kill while read(2) of /dev/fuse faults in a page of the message would fail the request
        # with EIO (fs/fuse/dev.c, fuse_copy_fill).
        bytes(self.journal.message)
        self._watched = memory[_SLOTS:]
        self._lock = threading.Lock()  # of changes to what is watched
        self._slots: dict[bytes, list[int]] = {}
        for slot, sector_id in enumerate(ids):
            self._slots.setdefault(sector_id, []).append(slot)

    def __getitem__(self, slot: int) -> bool:
        return self._watched[slot] & _WATCHED != 0

    def set(self, ids: Iterable[bytes], *, on: bool) -> bool:
        """Watch some sectors, or no longer; return whether any is of this mount."""
        found = False
        with self._lock:
            for sector_id in ids:
                for slot in self._slots.get(sector_id, ()):
                    self._watched[slot] = self._watched[slot] & _LENT | on
                    found = True
        return found

    def lend(self, ids: Iterable[bytes]) -> None:
        """Note that the mount reads some sectors without asking; other mounts' are passed over."""
        with self._lock:
            for sector_id in ids:
                for slot in self._slots.get(sector_id, ()):
                    self._watched[slot] |= _LENT

    def lent(self) -> frozenset[bytes]:
        """Return the sectors that were lent."""
        return frozenset(i for i, (slot, *_) in self._slots.items() if self._watched[slot] & _LENT)

    def exist(self) -> bool:
        """Return whether any sector is watched."""
        return _is_any(bytes(self._watched))

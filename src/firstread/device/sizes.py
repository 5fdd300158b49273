# SPDX-License-Identifier: Apache-2.0
"""The table of readable sizes: lets the process that reads events answer a covered read itself.

Owns a small shared memory. Its writer, the fetcher, says how many bytes of a sector may be read
without asking; its reader, the supervisor, looks and answers. A sector that is missing may have any
size: then the fetcher is asked. A table lives as long as its fetcher, so nobody has to clear one.
Threads of the fetcher that serve a device look, too (`Sizes.covers`). They read the file themselves
and see if it has become shorter, so their looks need no number.

Invariants:

* A size is never more than the file has: it becomes 0 before somebody shortens the file.
* A slot belongs to one sector from its first size to the next `Sizes.tidy`, so a size is one word
  that is read whole, and never another sector's.
* A look begins before its event is read, and ends after the answer. The writer sees in `_LOOK`
  whether one is under way, and `Sizes.is_settled` says that all are over that began before it: from
  then on no answer rests on a size that was published before. Without that, a supervisor that is
  suspended between look and answer could let a read go long after the file was emptied.

Memory order: each side makes a system call between its store and its load. The reader reads the
event, which takes locks of the group; the writer sleeps, and the kernel orders memory when it
switches tasks. A millisecond is also thousands of times what a store needs to be seen.

Layout (little is gained by a better hash: ids are digests)::

    0     number of the look, 8 bytes: odd while one is under way; written by the reader only
    64    4096 slots of 48 bytes: size (8), reads that the reader has answered (8, written by the
          reader only), sector id (32; zeros: unused)
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from firstread.device.base import SECTOR_ID_BYTES

SLOTS = 4096
PROBES = 8  # slots that a sector can be in
SETTLE_S = 0.02  # for a look to end: hundreds of times what one takes
_TICK_S = 0.001

_LOOK = 0  # words
_FIRST = 8
_SLOT = 6
_SIZE, _READS, _ID = 0, 1, 2
_WORD_BYTES = 8
_BYTES = (_FIRST + SLOTS * _SLOT) * _WORD_BYTES
_UNUSED = bytes(SECTOR_ID_BYTES)


class Published(Protocol):
    """Takes how much of each sector may be read without asking."""

    def publish(self, sector_id: bytes, readable_bytes: int) -> None:
        """Say that reads of the first bytes of a sector need not ask; 0: all must."""

    def is_settled(self) -> bool:
        """Return whether no answer under way rests on a size that was replaced; waits a moment."""

    def answered(self) -> Counter[bytes]:
        """Return how many reads of each sector were answered since the last call."""


class Unpublished:
    """A device whose reads all ask."""

    def publish(self, sector_id: bytes, readable_bytes: int) -> None:
        pass

    def is_settled(self) -> bool:
        return True

    def answered(self) -> Counter[bytes]:
        return Counter()


def make_table() -> int:
    """Return the descriptor of an empty table, to be closed once both sides have mapped it."""
    fd = os.memfd_create("sizes", os.MFD_CLOEXEC)
    os.ftruncate(fd, _BYTES)
    return fd


def _slots(sector_id: bytes) -> Iterator[int]:
    """Yield the words at which the slots begin that a sector can be in."""
    first = int.from_bytes(sector_id[:4], "little")
    for probe in range(first, first + PROBES):
        yield _FIRST + probe % SLOTS * _SLOT


class _Table:
    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _BYTES)
        self._view = memoryview(self._memory)
        self._words = self._view.cast("Q")  # one store or load of the processor each

    def close(self) -> None:
        """Unmap it."""
        self._words.release()
        self._view.release()
        self._memory.close()

    def _id_at(self, slot: int) -> bytes:
        start = (slot + _ID) * _WORD_BYTES
        return self._memory[start : start + SECTOR_ID_BYTES]

    def _name(self, slot: int, sector_id: bytes) -> None:
        start = (slot + _ID) * _WORD_BYTES
        self._memory[start : start + SECTOR_ID_BYTES] = sector_id


class Looks(_Table):
    """The reader's side.

    Args:
        fd: as `make_table` gave it; stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._look = 0

    def begin(self) -> None:
        """Begin a look, which ends the one before; the event is read after this."""
        self._look += 1 + (self._look & 1)
        self._words[_LOOK] = self._look

    def end(self) -> None:
        """End a look: what it found is answered."""
        self._look += self._look & 1
        self._words[_LOOK] = self._look

    def covers(self, sector_id: bytes, end: int) -> bool:
        """Return whether a read up to byte `end` of a sector may go on; count it then."""
        for slot in _slots(sector_id):
            found = self._id_at(slot)
            if found == sector_id:
                if self._words[slot + _SIZE] < end:
                    return False
                self._words[slot + _READS] += 1
                return True
            if found == _UNUSED:
                return False
        return False


class Sizes(_Table):
    """The writer's side. Safe to use from several threads.

    Args:
        fd: as `make_table` gave it; stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._slots: dict[bytes, int] = {}
        self._counts: dict[bytes, int] = {}  # what was reported of the slot of each sector
        self._reads: Counter[bytes] = Counter()  # answered, and not reported
        self._crowded = False  # a sector has found no slot
        self._resting = False  # slots were taken back that a look may be at
        self._lock = threading.Lock()

    def publish(self, sector_id: bytes, readable_bytes: int) -> None:
        """See `Published`."""
        with self._lock:
            slot = self._slots.get(sector_id)
            if slot is None and readable_bytes and not self._resting:
                slot = self._take_slot(sector_id)
            if slot is not None:
                self._words[slot + _SIZE] = readable_bytes

    def _take_slot(self, sector_id: bytes) -> int | None:
        for slot in _slots(sector_id):
            if self._id_at(slot) == _UNUSED:
                self._name(slot, sector_id)
                self._slots[sector_id] = slot
                self._counts[sector_id] = self._words[slot + _READS]
                return slot
        self._crowded = True
        return None

    def is_settled(self) -> bool:
        """See `Published`. False if the reader is suspended in the middle of a look."""
        time.sleep(_TICK_S)
        first = look = self._words[_LOOK]
        deadline = time.monotonic() + SETTLE_S
        while look & 1 and look == first:
            if time.monotonic() > deadline:
                return False
            time.sleep(_TICK_S)
            look = self._words[_LOOK]
        return True

    def covers(self, sector_id: bytes, end: int) -> bool:
        """As `Looks.covers`, for threads of this process; count the read.

        No look is noted. So the file may be shorter by the time it is read: the caller finds that
        out, and asks.
        """
        with self._lock:
            slot = self._slots.get(sector_id)
            if slot is None or self._words[slot + _SIZE] < end:
                return False
            self._reads[sector_id] += 1
            return True

    def answered(self) -> Counter[bytes]:
        """See `Published`."""
        with self._lock:
            self._count()
            reads, self._reads = self._reads, Counter()
        return reads

    def _count(self) -> None:
        for sector_id, slot in self._slots.items():
            count = self._words[slot + _READS]
            if count != self._counts[sector_id]:
                self._reads[sector_id] += count - self._counts[sector_id]
                self._counts[sector_id] = count

    def tidy(self) -> None:
        """Take all slots back if a sector has found none; each comes again with its next frame."""
        if not (self._crowded or self._resting):
            return
        with self._lock:
            self._count()
            for slot in self._slots.values():
                self._words[slot + _SIZE] = 0
                self._name(slot, _UNUSED)
            self._slots, self._counts = {}, {}
            self._crowded, self._resting = False, True
        settled = self.is_settled()
        with self._lock:
            self._resting = not settled

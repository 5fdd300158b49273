# SPDX-License-Identifier: Apache-2.0
"""The unanswered requests of a mount, in memory that outlives the process which reads them.

Owns the layout of that memory: first the message that was read last, then a record for each READ
that waits. Before Linux 6.9 the kernel does not send a request twice, so the next process answers
what stands here. Invariant: a request that was read and is not answered is the message, or it has
a record. So nothing is read while there is no room: it waits in the kernel.

The kernel writes the message in read(2), so a process that is killed there, or right behind it,
loses nothing. A stale entry does no harm: the kernel never uses a ``unique`` again.

An NBD device has it, too (`firstread.device.nbdstream`): a unique is the cookie of a request.

Layout::

    0       message, `MESSAGE_BYTES`
    8192    how many records were ever used (8): memory behind those was never touched
    8224    `RECORDS` records of 32 bytes: unique, node, offset (8 each), size, thread (4 each);
            one counts while its unique is not 0, which is written last
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from firstread.device.base import MOST_READS

MESSAGE_BYTES = 8192  # FUSE_MIN_READ_BUFFER: the kernel refuses a smaller read(2)
RECORDS = MOST_READS
_USED = struct.Struct("=Q")
_UNIQUE = struct.Struct("=Q")
_REST = struct.Struct("=QQII")
_RECORD_BYTES = _UNIQUE.size + _REST.size
_FIRST = MESSAGE_BYTES + 32  # the first record
JOURNAL_BYTES = _FIRST + RECORDS * _RECORD_BYTES


class Unanswered(NamedTuple):
    """A READ that waits.

    Args:
        unique: of the request.
        node: of the file.
        offset: first byte.
        size: bytes.
        pid: thread that reads.
    """

    unique: int
    node: int
    offset: int
    size: int
    pid: int


class FuseJournal:
    """The journal of one mount. For one process; not for several threads at a time.

    Args:
        memory: `JOURNAL_BYTES` of it, all zeros for a new mount.

    Attributes:
        message: the buffer for read(2).
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self.message = memory[:MESSAGE_BYTES]
        (self._used,) = _USED.unpack_from(memory, MESSAGE_BYTES)
        uniques = [self._unique(slot) for slot in range(self._used)]
        self._slots = {unique: slot for slot, unique in enumerate(uniques) if unique}
        self._free = [slot for slot, unique in enumerate(uniques) if not unique]

    def has_room(self) -> bool:
        """Return whether another READ can be recorded. False becomes True by `remove` alone."""
        return bool(self._free) or self._used < RECORDS

    def __contains__(self, unique: int) -> bool:
        """Return whether a READ is recorded."""
        return unique in self._slots

    def add(self, request: Unanswered) -> None:
        """Record a READ that waits, once; before the next message is read. There is room."""
        if request.unique in self._slots:
            return
        if self._free:
            slot = self._free.pop()
        else:
            slot, self._used = self._used, self._used + 1
            _USED.pack_into(self._memory, MESSAGE_BYTES, self._used)
        unique, *rest = request
        _REST.pack_into(self._memory, _at(slot) + _UNIQUE.size, *rest)
        _UNIQUE.pack_into(self._memory, _at(slot), unique)
        self._slots[unique] = slot

    def remove(self, unique: int) -> None:
        """Forget a READ that is answered."""
        slot = self._slots.pop(unique, None)
        if slot is not None:
            _UNIQUE.pack_into(self._memory, _at(slot), 0)
            self._free.append(slot)

    def clear(self) -> None:
        """Forget all READs: the kernel resends them."""
        for unique in list(self._slots):
            self.remove(unique)

    def records(self) -> list[Unanswered]:
        """Return the READs that wait."""
        return [
            Unanswered(unique, *_REST.unpack_from(self._memory, _at(slot) + _UNIQUE.size))
            for unique, slot in self._slots.items()
        ]

    def _unique(self, slot: int) -> int:
        unique: int = _UNIQUE.unpack_from(self._memory, _at(slot))[0]
        return unique


def _at(slot: int) -> int:
    return _FIRST + slot * _RECORD_BYTES

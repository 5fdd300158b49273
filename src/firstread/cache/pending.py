# SPDX-License-Identifier: Apache-2.0
"""A pending read: one object from the kernel's event to its answer.

Owns nothing but the record. `firstread.fetch.reads` holds all pending reads in one table; whoever
else has one (a lane, a check, an emptying) holds a reference. Two reads are the same only if they
are the same object: the kernel uses the number of an event again once it is answered.

Invariant: one thread has a pending read in hand at a time. It sets `awaits` before it passes the
read on, never after, because the next one may have passed it on by then.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from firstread.sectors.source import Wanted


class Awaits(enum.Enum):
    """What a pending read waits for."""

    ROUTE = "route"  # a decision
    MOUNT = "mount"  # a mount that stands and is not served yet
    RETRY = "retry"  # something that this process lacks just now
    EMPTYING = "emptying"  # the end of an eviction
    CHECK = "check"  # a check of its sector, or of its size
    FETCH = "fetch"  # bytes


@dataclass(slots=True, eq=False)
class PendingRead:
    """A read that waits in the kernel, and what is known of it by now.

    Args:
        number: what the kernel calls it.
        pid: of the reader; 0 if it is in a PID namespace that we cannot see into.
        offset: first byte of the sector file that is wanted.
        length: bytes that are wanted; `WHOLE_SECTOR` if that is not known.
        fd: the sector file, shared with other reads of it; negative if too many files are open.
        came: when its event came, in monotonic seconds.
        sector_id: of the file; empty until somebody has looked.
        file: device and inode of the file.
        sector: the sector, and where its bytes are.
        charged: digest of the image in whose quota it counts.
        awaits: what it waits for.
        note_wait: is told how many seconds it waited, once it is allowed.
    """

    number: int
    pid: int
    offset: int
    length: int
    fd: int
    came: float
    sector_id: bytes = b""
    file: tuple[int, int] | None = None
    sector: Wanted | None = None
    charged: str = ""
    awaits: Awaits = Awaits.ROUTE
    note_wait: Callable[[float], None] | None = None

    @property
    def end(self) -> int:
        """The byte after the last that is wanted."""
        return self.offset + self.length

    @property
    def inside(self) -> int:
        """How many of the bytes that are wanted the sector can have, as far as it is known."""
        if self.sector is None:
            return self.length
        return max(0, min(self.length, self.sector.entry.size - self.offset))

# SPDX-License-Identifier: Apache-2.0
"""Recent denials, so that the kernel is denied at once when it asks again for the same read.

Owns the rule when an event is the same read once more. Pure but for the look at a process.

The kernel asks again (Linux 6.18) because it reads ahead first. After a denial it asks for the
needed page alone, and once more for a page fault. Readahead that continues in another sector asks
for that one next. A reader that waited for the page of another, without an event of its own, asks
when that other is denied. Each of these reads would wait ``--stall`` seconds anew.

Bounds: a read that begins later waits as any other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from firstread.cache.pending import PendingRead
from firstread.device.base import WHOLE_SECTOR

# The kernel asks again after 0.05 ms, and after up to 0.12 s with six busy processes on two cores.
AGAIN_S = 1.0  # within which the same process asks again
NEXT_S = 0.25  # within which its readahead goes on, and others ask who waited for the same page
MOST = 1024  # places that are remembered, each with as many reads as below
MOST_EACH = 16


class _Denial(NamedTuple):
    start: int
    end: int
    came: float
    at: float


class Denials:
    """The recent denials. Safe to use from several threads.

    Args:
        may_have_read: whether a process was there at a time; `readers.may_have_read`.
    """

    def __init__(self, may_have_read: Callable[[int, float], bool]) -> None:
        self._may_have_read = may_have_read
        # By (process, sector); by (0, sector), whoever it was; by (process, b"") if the read went
        # up to the end of its sector. The oldest is first.
        self._recent: OrderedDict[tuple[int, bytes], list[_Denial]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._recent)

    def note(
        self,
        read: PendingRead,
        sector_id: bytes,
        whole_bytes: int,
        now: float,
        *,
        alone: bool = False,
    ) -> None:
        """Note that a read is denied.

        Args:
            read: which.
            sector_id: of what.
            whole_bytes: size of that sector.
            now: monotonic seconds.
            alone: because of its reader; others that want the same page may wait on.
        """
        denial = _Denial(read.offset, read.end, read.came, now)
        keys = [] if alone else [(0, sector_id)]
        if read.pid:
            keys.append((read.pid, sector_id))
            if whole_bytes <= denial.end < WHOLE_SECTOR:  # else nobody knows where it ends
                keys.append((read.pid, b""))
        with self._lock:
            for key in keys:
                before = self._recent.pop(key, [])
                self._recent[key] = [*before[1 - MOST_EACH :], denial]
            self._forget(now)

    def _forget(self, now: float) -> None:
        """Forget denials that are too old, and the oldest if there are too many."""
        while self._recent:
            key, denials = next(iter(self._recent.items()))
            if len(self._recent) <= MOST and now - denials[-1].at < AGAIN_S:
                break
            del self._recent[key]

    def repeats(self, read: PendingRead, sector_id: bytes) -> bool:
        """Return whether a read asks again for what was denied a moment ago."""
        pid, came = read.pid, read.came
        if not self._recent or not pid:  # nothing can be known of such a reader
            return False
        with self._lock:
            self._forget(came)
            same = self._recent.get((pid, sector_id), [])
            others = self._recent.get((0, sector_id), [])
            ended = self._recent.get((pid, b""), [])

        def recent(denials: list[_Denial], within_s: float) -> list[_Denial]:
            return [denial for denial in denials if 0 <= came - denial.at < within_s]

        def same_range(denials: list[_Denial]) -> list[_Denial]:
            return [d for d in denials if d.start < read.end and read.offset < d.end]

        if same_range(recent(same, AGAIN_S)) or (not read.offset and recent(ended, NEXT_S)):
            return True
        # A process that was there for half of another's wait may have waited with it.
        return any(
            self._may_have_read(pid, (denial.came + denial.at) / 2)
            for denial in same_range(recent(others, NEXT_S))
        )

    def clear(self, sector_id: bytes) -> None:
        """Forget the denials of a sector: some of it has come."""
        if self._recent:
            with self._lock:
                for key in [key for key in self._recent if key[1] == sector_id]:
                    del self._recent[key]

# SPDX-License-Identifier: Apache-2.0
"""What was denied a moment ago, so that the kernel, which asks again, is denied at once.

Owns the rule which event is the same read once more. Pure but for the look at a process.

Why the kernel asks again (Linux 6.18): it reads ahead first. When that is denied, it asks for the
page that is needed alone, and for a page fault once more. Readahead that goes on in another sector
asks for that one next. And who has waited for the page of another reader, without an event of his
own, asks when that reader was denied. Each would wait ``--stall`` seconds anew.

Bounds: a read that begins later than these moments waits as any other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from firstread.node.filling import Waiter

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
    """The reads that were denied lately. Safe to use from several threads.

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
        waiter: Waiter,
        sector_id: bytes,
        whole_bytes: int,
        now: float,
        *,
        alone: bool = False,
    ) -> None:
        """Note that a read is denied.

        Args:
            waiter: the read.
            sector_id: of what.
            whole_bytes: size of that sector.
            now: monotonic seconds.
            alone: because of its reader; others of the same page would have waited on.
        """
        request, came = waiter
        denial = _Denial(request.offset, request.offset + request.length, came, now)
        keys = [] if alone else [(0, sector_id)]
        if request.pid:
            keys.append((request.pid, sector_id))
            if denial.end >= whole_bytes:
                keys.append((request.pid, b""))
        with self._lock:
            for key in keys:
                before = self._recent.pop(key, [])
                self._recent[key] = [*before[1 - MOST_EACH :], denial]
            self._forget(now)

    def _forget(self, now: float) -> None:
        """Forget what is too old, or too much."""
        while self._recent:
            key, denials = next(iter(self._recent.items()))
            if len(self._recent) <= MOST and now - denials[-1].at < AGAIN_S:
                break
            del self._recent[key]

    def repeats(self, waiter: Waiter, sector_id: bytes) -> bool:
        """Return whether an event asks again for what was denied a moment ago."""
        (_, pid, start, length, _), came = waiter
        if not self._recent or not pid:  # of which nothing can be known
            return False
        with self._lock:
            self._forget(came)
            same = self._recent.get((pid, sector_id), [])
            others = self._recent.get((0, sector_id), [])
            ended = self._recent.get((pid, b""), [])

        def recent(denials: list[_Denial], within_s: float) -> list[_Denial]:
            return [denial for denial in denials if 0 <= came - denial.at < within_s]

        def same_range(denials: list[_Denial]) -> list[_Denial]:
            return [d for d in denials if d.start < start + length and start < d.end]

        if same_range(recent(same, AGAIN_S)) or (not start and recent(ended, NEXT_S)):
            return True
        # Half of the time that another has waited is enough to be denied with him.
        return any(
            self._may_have_read(pid, (denial.came + denial.at) / 2)
            for denial in same_range(recent(others, NEXT_S))
        )

    def clear(self, sector_id: bytes) -> None:
        """Forget what was denied of a sector: something of it has come."""
        if self._recent:
            with self._lock:
                for key in [key for key in self._recent if key[1] == sector_id]:
                    del self._recent[key]

# SPDX-License-Identifier: Apache-2.0
"""How long something took, counted by duration: a histogram, which adds up over nodes.

Safe to use from several threads.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import Final

from firstread.documents import Document, Seconds

# From a present neighbour (1 ms) over distant registries to `policy.stall_s`.
BOUNDS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)


class Distribution(Document):
    """Durations.

    bounds: the longest duration of each count, rising; the last count has no bound
    counts: how many durations are longer than the bound before, and not than this one
    seconds: sum of all
    """

    bounds: list[Seconds]
    counts: list[int]
    seconds: Seconds


class Durations:
    """Counts durations."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._seconds = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Count one."""
        with self._lock:
            self._counts[bisect_left(BOUNDS_S, seconds)] += 1
            self._seconds += seconds

    def document(self) -> Distribution:
        """Return all of them."""
        with self._lock:
            return Distribution(list(BOUNDS_S), list(self._counts), self._seconds)

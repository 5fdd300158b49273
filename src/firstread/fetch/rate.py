# SPDX-License-Identifier: Apache-2.0
"""How fast, and how soon, the answers of a repository come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from firstread.units import KiB, MiB

MEASURED_BYTES = 16 * KiB  # smaller reads say nothing about the rate of a link
METERED_BYTES = 256 * KiB  # of a stream, between two looks at the clock
BUFFERED_BYTES = 2 * MiB  # that may have come during a pause, and say nothing either
FORGET = 1.1  # by which the shortest wait grows with each answer: a path may become longer


class Rate:
    """How fast answers come, in bytes per second: infinitely fast until measured.

    Attributes:
        latency_s: until an answer begins, the shortest of late; infinite until measured.
    """

    def __init__(self) -> None:
        self.bytes_per_s = self.latency_s = math.inf

    def note(self, count: int, seconds: float) -> None:
        """Note that `count` bytes took `seconds`."""
        if count < MEASURED_BYTES:
            return
        rate, known = count / max(seconds, 1e-6), self.bytes_per_s
        self.bytes_per_s = rate if known == math.inf else known + (rate - known) / 4

    def note_latency(self, seconds: float) -> None:
        """Note that an answer began after `seconds`."""
        self.latency_s = min(seconds, self.latency_s * FORGET)

    @property
    def is_known(self) -> bool:
        """Whether both were measured."""
        return math.isfinite(self.bytes_per_s) and math.isfinite(self.latency_s)

    @property
    def round_trip_bytes(self) -> float:
        """Bytes that come while a request waits for its answer; infinite until measured."""
        return self.bytes_per_s * self.latency_s


class Meter:
    """Measures one long answer by the clock on the wall, without the pauses of its reader.

    Args:
        rate: is told.
        clock: gives monotonic seconds.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._since, self._bytes = clock(), 0

    def note(self, count: int, _seconds: float) -> None:
        """Note that `count` bytes have come."""
        self._bytes += count
        if self._bytes >= METERED_BYTES:
            now = self._clock()
            self._rate.note(self._bytes, now - self._since)
            self._since, self._bytes = now, 0
        elif self._bytes <= 0:
            self._since = self._clock()

    def paused(self) -> None:
        """Note that the reader has paused: what came meanwhile is not measured."""
        self._bytes = -BUFFERED_BYTES

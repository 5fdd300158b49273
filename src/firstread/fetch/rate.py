# SPDX-License-Identifier: Apache-2.0
"""How fast the answers of a repository come."""

from __future__ import annotations

import math

from firstread.units import KiB

MEASURED_BYTES = 16 * KiB  # smaller reads say nothing about the rate of a link


class Rate:
    """How fast answers come, in bytes per second: infinitely fast until measured."""

    def __init__(self) -> None:
        self.bytes_per_s = math.inf

    def note(self, count: int, seconds: float) -> None:
        """Note that `count` bytes took `seconds`."""
        if count < MEASURED_BYTES:
            return
        rate, known = count / max(seconds, 1e-6), self.bytes_per_s
        self.bytes_per_s = rate if known == math.inf else known + (rate - known) / 4

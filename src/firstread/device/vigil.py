# SPDX-License-Identifier: Apache-2.0
"""Stays awake for a moment where the next request is likely to come at once.

Owns the decision when. A reader that faults in one page after the other asks again some 30 us after
its answer, and to fall asleep and be woken takes as long: docs/adr/0172. Invariant: a CPU that does
nothing else is not kept busy for longer than `AWAKE_S` behind an answer, and not at all by readers
that take longer than that.
"""

from __future__ import annotations

import os
import select
import time

AWAKE_S = 100e-6


class Vigil:
    """Waits for requests that come through a descriptor. For one thread.

    Args:
        fd: blocks who reads it, as long as there is nothing to read.
    """

    def __init__(self, fd: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._poll = poll.poll
        has_cpus = len(os.sched_getaffinity(0)) > 1  # one is the reader's
        self._awake_s = AWAKE_S if has_cpus else 0.0
        self._until, self._is_brisk = 0.0, False

    def keep(self) -> None:
        """Return when there is something to read, or when nobody is likely to ask at once."""
        if self._is_brisk:
            while not self._poll(0) and time.monotonic() < self._until:
                pass

    def came(self) -> None:
        """Note that a request has come."""
        self._is_brisk = time.monotonic() < self._until

    def answered(self) -> None:
        """Note that it was answered, or waits."""
        self._until = time.monotonic() + self._awake_s

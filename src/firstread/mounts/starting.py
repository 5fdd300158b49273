# SPDX-License-Identifier: Apache-2.0
"""The starts of mounts: when one is over, and its read-ahead: small until then, large afterwards.

While a start lasts, the kernel reads little beyond what is asked for, so no reader waits for cold
neighbours of what it needs. Nobody tells when a workload is ready, so the rule (`Start`) looks at
what it does. Invariant: a mount that was made whole, or has started, has
the large read-ahead, whoever joins it, and a start ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from firstread.device.base import Device
from firstread.device.readahead import START_KIB, STEADY_KIB
from firstread.errors import NodeError
from firstread.fetch.served import Served
from firstread.mounts.table import Mount

log = logging.getLogger("node")

QUIET_S = 5.0  # without a read that waits, and without a hot sector that comes
UNUSED_S = 30.0  # the same where silence says little: nothing has been read, or all comes in time
LONGEST_S = 120.0
LOOK_S = 1.0  # between looks at the mounts that start


class Start:
    """Decides when the start of one mount is over. Pure.

    If an image says what is hot, a start whose reads no longer wait is one that goes well, not one
    that is over: a server may compute for long between its reads.

    Args:
        now: monotonic seconds, when it began.
        reads: of its image that have waited until then.
        hot: sectors of it that are hot and absent.
        knows_start: the image says what is hot.
    """

    def __init__(self, now: float, reads: int, hot: int, *, knows_start: bool) -> None:
        self._began = self._changed = now
        self._before, self._seen = reads, (reads, hot)
        self._knows_start = knows_start

    def is_over(self, now: float, reads: int, hot: int) -> bool:
        """Look at it again; the first three arguments as before."""
        if (reads, hot) != self._seen:
            self._seen, self._changed = (reads, hot), now
        shows_use = reads > self._before and not self._knows_start
        patience = QUIET_S if shows_use else UNUSED_S
        return now - self._changed >= patience or now - self._began >= LONGEST_S


@dataclass(frozen=True, eq=False, slots=True)
class _Starting:
    """A mount that starts: its record, its image, the rule."""

    record: Mount
    served: Served
    start: Start


class Starts:
    """The mounts of a node that start.

    Args:
        device: sets their read-ahead.
        reads: gives how many reads of an image have waited so far.
        note: is called with the record of a mount that has started, and has the large read-ahead.
        over: is called with the record and the image of a mount that has started.
    """

    def __init__(
        self,
        device: Device,
        reads: Callable[[Served], int],
        note: Callable[[Mount], None],
        over: Callable[[Mount, Served], None],
    ) -> None:
        self._device, self._reads, self._note, self._over = device, reads, note, over
        self._lock = threading.Lock()
        self._starts: list[_Starting] = []
        self._are_any = threading.Event()
        self._complained = False
        threading.Thread(target=self._run, name="starts", daemon=True).start()

    def begin(self, record: Mount, served: Served) -> None:
        """Give a mount that stands the read-ahead that it should have; see `Mount.starting`."""
        known_kib = self._device.capabilities.known_start_kib
        start_kib = known_kib if served.knows_start else START_KIB
        self._set(record, start_kib if record.starting else STEADY_KIB)
        says_hot = bool(served.member.hot)
        start = Start(time.monotonic(), self._reads(served), _hot(served), knows_start=says_hot)
        with self._lock:
            self._starts.append(_Starting(record, served, start))
            self._are_any.set()

    def read_ahead_kib(self, record: Mount) -> int | None:
        """Return the read-ahead of a mount; None if it is not known here."""
        try:
            return self._device.read_ahead(record.file_system) if record.file_system else None
        except NodeError:
            return None

    def _set(self, record: Mount, kib: int) -> bool:
        if not self._device.capabilities.sets_read_ahead or record.file_system is None:
            return False
        try:
            self._device.set_read_ahead(record.file_system, kib)
        except NodeError as exc:
            if not self._complained and record.is_used():
                self._complained = True
                log.warning("mounts keep the read-ahead of the kernel: %s", exc)
            return False
        return True

    def _run(self) -> None:
        while self._are_any.wait():
            time.sleep(LOOK_S)
            self._look()  # in a frame of its own: a waiting thread would keep the last image

    def _look(self) -> None:
        with self._lock:
            looked = list(self._starts)
        ended = [each for each in looked if self._is_over(each)]
        for each in ended:
            if each.record.starting and self._set(each.record, STEADY_KIB):
                self._note(each.record)
            self._over(each.record, each.served)
        with self._lock:
            self._starts = [each for each in self._starts if each not in ended]
            if not self._starts:
                self._are_any.clear()

    def _is_over(self, each: _Starting) -> bool:
        served = each.served
        if not (each.record.starting and served.member.absent and each.record.is_used()):
            return True
        return each.start.is_over(time.monotonic(), self._reads(served), _hot(served))


def _hot(served: Served) -> int:
    """Return how many hot sectors of an image are absent."""
    return len(served.member.hot & served.member.absent)

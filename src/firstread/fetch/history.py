# SPDX-License-Identifier: Apache-2.0
"""What happened to one image since it is served: reads that waited, requests, sectors that came.

Owns the requests, and why and when sectors came; `TraceLog` owns the reads.
The first `MOST` requests stay, because a report is about a start; later ones are counted. Safe to
use from several threads.

A read of a present sector raises no event, and the supervisor answers a read that its sector covers
by then: neither is in the record. A sector that several images share is in the history of each,
because nobody sees through which mount it is read.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final

from firstread.cache.nodeimage import SectorMap
from firstread.fetch.imagehistory import ImageHistory, ReadWaited, RequestMade, SectorCame, Step
from firstread.fetch.queue import Cause, Filling
from firstread.fetch.tracelog import TraceLog

MOST: Final = 16_384  # requests; 0.8 MB
ROW: Final = 6  # numbers of a request


class History:
    """The record of one image.

    Args:
        sectors: of the image.
        log: of its reads.

    Attributes:
        is_told: the start that this is about is over, and counted.
        context: W3C trace context of who asked for the first mount, or empty.
    """

    def __init__(self, sectors: SectorMap, log: TraceLog) -> None:
        self._sectors, self._log = sectors, log
        count = len(sectors.image.block_image.index.sectors)
        self._began = time.monotonic()
        self._steps: dict[str, float] = {}  # seconds that each took
        self._requests = array("d")  # rows of six: sent, seconds, slot, cause, bytes, received
        self._came_at = array("d", bytes(8 * count))  # by slot
        self._came_by = bytearray(count)  # by slot: 1 + the cause; 0 for a sector that did not come
        self._lost = 0
        self.is_told = False
        self.context = ""
        self._lock = threading.Lock()

    # -- what happens --------------------------------------------------------------------------

    def mounted(self, began: float, steps: Mapping[str, float], context: str = "") -> None:
        """Note the first mount.

        Args:
            began: when somebody asked for it, in monotonic seconds.
            steps: of it, in seconds.
            context: see `context`.
        """
        with self._lock:
            if not self._steps and began <= self._began:
                self._began, self._steps, self.context = began, dict(steps), context

    def requested(self, filling: Filling, size: int) -> int | None:
        """Note a request of `size` bytes that begins with this sector; return its number."""
        now, slot = time.monotonic(), self._sectors.slot(filling.sector.entry.id)
        if slot is None:
            return None
        with self._lock:
            number = len(self._requests)
            if number >= ROW * MOST:
                self._lost += 1
                return None
            self._requests.extend((now, 0, slot, filling.cause, size, 0))
        return number

    def received(self, number: int | None, count: int) -> None:
        """Note that so many more bytes came for a request."""
        if number is None:
            return
        with self._lock:
            self._requests[number + 1] = time.monotonic() - self._requests[number]
            self._requests[number + 5] += count

    def began_with_mount(self) -> bool:
        """Return whether the record begins with a mount, not with a later fetcher."""
        return bool(self._steps)

    def present(self, filling: Filling) -> None:
        """Note that a sector came whole."""
        # The rest of a sector that a read has asked for comes when there is nothing else to do.
        is_rest = filling.demanded and filling.cause is Cause.COMPLETION
        cause = Cause.DEMAND if is_rest else filling.cause
        slot = self._sectors.slot(filling.sector.entry.id)
        if slot is None:
            return
        with self._lock:
            self._came_at[slot], self._came_by[slot] = time.monotonic(), 1 + cause

    # -- what is told --------------------------------------------------------------------------

    def start_s(self) -> float:
        """Return the seconds from the begin until the last step, and the last read that waited."""
        answers = (came + seconds - self._began for came, seconds, _ in self._log.reads())
        return max(sum(self._steps.values()), max(answers, default=0.0))

    def came(self) -> dict[str, int]:
        """Return how many sectors came, by cause."""
        counts = {cause.name.lower(): self._came_by.count(1 + cause) for cause in Cause}
        return {name: count for name, count in counts.items() if count}

    def document(self, filled: Sequence[int]) -> ImageHistory:
        """Return all of it.

        Args:
            filled: bytes of each sector that are on this node, by slot.
        """
        with self._lock:
            began, now = self._began, time.monotonic()
            return ImageHistory(
                began=time.time() - (now - began),
                elapsed=now - began,
                steps=_in_a_row(self._steps),
                reads=[
                    ReadWaited(came - began, seconds, read.slot, read.offset, read.length)
                    for came, seconds, read in self._log.reads()
                ],
                requests=[
                    _request(self._requests[at : at + ROW], began)
                    for at in range(0, len(self._requests), ROW)
                ],
                sectors=[self._sector(slot, bytes_) for slot, bytes_ in enumerate(filled)],
                lost=self._lost + self._log.lost,
            )

    def _sector(self, slot: int, filled: int) -> SectorCame:
        entry, by = self._sectors.image.block_image.index.sectors[slot], self._came_by[slot]
        return SectorCame(
            size=entry.size,
            compressed=entry.length,
            filled=filled,
            cause=_name(by - 1) if by else None,
            at=self._came_at[slot] - self._began if by else None,
        )


def _request(row: array[float], began: float) -> RequestMade:
    sent, seconds, *numbers = row
    slot, cause, size, received = map(int, numbers)
    return RequestMade(sent - began, seconds, slot, _name(cause), size, received)


def _name(cause: int) -> str:
    return Cause(cause).name.lower()


def _in_a_row(steps: Mapping[str, float]) -> list[Step]:
    """Return steps, each of which begins where the one before ends, from 0."""
    begins = accumulate(steps.values(), initial=0.0)
    return [
        Step(name, at, seconds) for (name, seconds), at in zip(steps.items(), begins, strict=False)
    ]

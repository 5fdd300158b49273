# SPDX-License-Identifier: Apache-2.0
"""What happened to one image since it is served: reads that waited, requests, sectors that came.

Owns the record, its bounds and its document. The first `MOST` reads and requests stay, because a
report is about a start; the record counts what comes later. Safe to use from several threads.

A read of a present sector raises no event, and the supervisor answers a read that its sector covers
by then: neither is in the record. A sector that several images share is in the history of each,
because nobody sees through which mount it is read.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from firstread.cache.nodeimage import SectorMap
from firstread.cache.pending import PendingRead
from firstread.documents import Bytes, Document, Moment, Seconds
from firstread.fetch.queue import Cause, Filling

MOST: Final = 16_384  # rows of each kind; 0.7 MB for an image that fills both
LAST: Final = 8  # waits that a status shows


class ReadWaited(Document):
    """A read that waited, and was answered.

    at: when it came, in seconds since `began`
    seconds: that it waited
    sector: its device slot
    offset, bytes: in the sector
    """

    at: Seconds
    seconds: Seconds
    sector: int
    offset: Bytes
    bytes: Bytes


class RequestMade(Document):
    """A request for sectors.

    at: when it was sent, in seconds since `began`
    seconds: until the last of its bytes so far
    sector: device slot of the first sector that it asks for
    cause: as in `requests_by_cause` of [status](#status)
    bytes: asked for, compressed
    received: of them
    """

    at: Seconds
    seconds: Seconds
    sector: int
    cause: str
    bytes: Bytes
    received: Bytes


class SectorCame(Document):
    """A sector, in order of device slots.

    size: uncompressed
    compressed: size in its blob
    filled: bytes that are on this node
    cause: why it came; null if it has not come since `began`
    at: when it was whole, in seconds since `began`
    """

    size: Bytes
    compressed: Bytes
    filled: Bytes
    cause: str | None
    at: Seconds | None


class Step(Document):
    """A step of a start.

    name: `resolve`, `metadata`, `mount`, …
    at: when it began, in seconds since `began`
    seconds: that it took
    """

    name: str
    at: Seconds
    seconds: Seconds


class ImageHistory(Document):
    """What happened to an image.

    began: when somebody asked for its first mount, or a fetcher took it over
    elapsed: since then
    steps: of the first mount; none if a fetcher took it over
    reads: that waited, in order of their answers
    requests: in order
    lost: reads and requests that the record had no room for
    """

    began: Moment
    elapsed: Seconds
    steps: list[Step]
    reads: list[ReadWaited]
    requests: list[RequestMade]
    sectors: list[SectorCame]
    lost: int


class _Rows:
    """Rows of `width` numbers each, the first `MOST`."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._numbers = array("d")

    def __len__(self) -> int:
        return len(self._numbers) // self._width

    def add(self, *row: float) -> int | None:
        """Add a row; return its number, or None if there is no room."""
        number = len(self)
        if number >= MOST:
            return None
        self._numbers.extend(row)
        return number

    def change(self, number: int, column: int, value: float) -> None:
        self._numbers[number * self._width + column] = value

    def __getitem__(self, number: int) -> array[float]:
        return self._numbers[number * self._width : (number + 1) * self._width]

    def __iter__(self) -> Iterator[array[float]]:
        return map(self.__getitem__, range(len(self)))


class History:
    """The record of one image.

    Args:
        sectors: of the image.
    """

    def __init__(self, sectors: SectorMap) -> None:
        self._sectors = sectors
        count = len(sectors.image.block_image.index.sectors)
        self._began = time.monotonic()
        self._steps: dict[str, float] = {}  # seconds that each took
        self._reads = _Rows(5)
        self._requests = _Rows(6)
        self._last: deque[float] = deque(maxlen=LAST)
        self._came_at = array("d", bytes(8 * count))  # by slot
        self._came_by = bytearray(count)  # by slot: 1 + the cause; 0 for a sector that did not come
        self._lost = 0
        self._lock = threading.Lock()

    # -- what happens --------------------------------------------------------------------------

    def mounted(self, began: float, steps: Mapping[str, float]) -> None:
        """Note the steps of the first mount, in seconds, and its begin, in monotonic seconds."""
        with self._lock:
            if not self._steps and began <= self._began:
                self._began, self._steps = began, dict(steps)

    def waited(self, read: PendingRead, seconds: float) -> None:
        """Note a read that goes on after so many seconds."""
        slot = self._sectors.slot(read.sector_id)
        if slot is None:
            return
        with self._lock:
            self._last.append(seconds)
            self._keep(self._reads.add(read.came, seconds, slot, read.offset, read.length))

    def requested(self, filling: Filling, size: int) -> int | None:
        """Note a request of `size` bytes that begins with this sector; return its number."""
        now, slot = time.monotonic(), self._sectors.slot(filling.sector.entry.id)
        if slot is None:
            return None
        with self._lock:
            return self._keep(self._requests.add(now, 0, slot, filling.cause, size, 0))

    def received(self, number: int | None, count: int) -> None:
        """Note that so many more bytes came for a request."""
        if number is None:
            return
        with self._lock:
            row = self._requests[number]
            self._requests.change(number, 1, time.monotonic() - row[0])
            self._requests.change(number, 5, row[5] + count)

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

    def _keep(self, number: int | None) -> int | None:
        self._lost += number is None
        return number

    # -- what is told --------------------------------------------------------------------------

    def last_waits(self) -> list[float]:
        """Return how many seconds the last reads waited, the newest last."""
        with self._lock:
            return list(self._last)

    def came(self) -> dict[str, int]:
        """Return how many sectors came, by cause."""
        counts = Counter(self._came_by)
        return {cause.name.lower(): counts[1 + cause] for cause in Cause if counts[1 + cause]}

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
                    ReadWaited(came - began, seconds, int(slot), int(offset), int(length))
                    for came, seconds, slot, offset, length in self._reads
                ],
                requests=[
                    RequestMade(
                        sent - began, seconds, int(slot), _name(int(cause)), int(size), int(came)
                    )
                    for sent, seconds, slot, cause, size, came in self._requests
                ],
                sectors=[self._sector(slot, bytes_) for slot, bytes_ in enumerate(filled)],
                lost=self._lost,
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


def _name(cause: int) -> str:
    return Cause(cause).name.lower()


def _in_a_row(steps: Mapping[str, float]) -> list[Step]:
    """Return steps, each of which begins where the one before ends, from 0."""
    begins = accumulate(steps.values(), initial=0.0)
    return [
        Step(name, at, seconds) for (name, seconds), at in zip(steps.items(), begins, strict=False)
    ]

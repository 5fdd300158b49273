# SPDX-License-Identifier: Apache-2.0
"""A sector on its way from absent to present, and the queue of those that are wanted. Pure.

Owns the order in which sectors are fetched, see `Cause`. No I/O, no locks:
`firstread.fetch.backlog` owns the instances, under the lock of its lane.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass, field

from firstread.cache.pending import PendingRead
from firstread.sectors.source import Decoding, Span, Wanted
from firstread.units import MiB

BATCH_BYTES = 16 * MiB  # compressed, in one ranged request
MAX_BATCH_BYTES = 64 * MiB  # the same on a link that brings them in `BATCH_S`
BATCH_S = 0.1
FIRST_SLICE_S = 0.050  # of the link that a read on demand may take beyond what it waits for
LATER_SLICE_S = 0.040  # the same for what nobody waits for
AHEAD_SLICE_S = 1.0  # the same for what a sequential reader comes to: it is needed soon
MAX_DOUBLINGS = 2


class Cause(enum.IntEnum):
    """Why a sector is fetched; the smallest goes first."""

    DEMAND = 0  # a read waits
    HOT = 1  # a start reads it
    PREFETCH = 2  # a sequential reader comes to it
    COMPLETION = 3  # it rests half-filled, or its image is pinned
    BACKGROUND = 4  # all of its image is to be on this node some time


CAUSES = tuple(cause.name.lower() for cause in Cause)
"""Their names in documents and metrics."""

STREAMED = (Cause.HOT, Cause.BACKGROUND)
"""What one worker at a time fetches, in order, with long requests; see `Stream`."""


@dataclass(slots=True, eq=False)
class Filling:
    """A sector that is wanted and not present.

    Args:
        sector: which.
        filled: bytes of the sector file that hold verified content.
        cause: why it is fetched, the most urgent so far.
        reads: that wait for it.
        demanded: a read has asked for it.
        active: a worker is fetching it.
        paused: it has failed and waits for its next attempt.
        rests: why it is fetched once no read waits for it.
        must_come: all of its image is asked for, whatever else wants it.
        order: among those that are streamed for the same cause; the smallest goes first.
        in_order: its reads wait for all of it, see `Streak.is_in_order`.
        is_next: a sequential reader comes to it.
        asks: requests for it so far.
        failures: attempts that failed since the last progress.
        decoder: what is known of it, once a worker has had it.
        source: who gave the last of its bytes.
    """

    sector: Wanted
    filled: int = 0
    cause: Cause = Cause.COMPLETION
    reads: list[PendingRead] = field(default_factory=list)
    demanded: bool = False
    active: bool = False
    paused: bool = False
    rests: Cause = Cause.COMPLETION
    must_come: bool = False
    order: int = 0
    in_order: bool = False
    is_next: bool = False
    asks: int = 0
    failures: int = 0
    decoder: Decoding | None = None
    source: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """Where it begins: (digest of the blob, offset in it)."""
        span = self.sector.span
        return span.blob.digest, span.start

    @property
    def end(self) -> tuple[str, int]:
        """Where what follows it begins."""
        span = self.sector.span
        return span.blob.digest, span.stop

    @property
    def wanted_end(self) -> int:
        """Where in the sector the last byte is that a read waits for, and one more; 0 for none."""
        return min(self.sector.entry.size, max((read.end for read in self.reads), default=0))

    def satisfied(self) -> list[PendingRead]:
        """Remove and return the reads that the verified prefix covers."""
        size, filled = self.sector.entry.size, self.filled
        if self.in_order and filled < size:
            return []
        return self._part(lambda read: min(read.end, size) <= filled)

    def late(self, since: float) -> list[PendingRead]:
        """Remove and return the reads that came before `since`."""
        return self._part(lambda read: read.came < since)

    def without(self, lost: Container[PendingRead]) -> list[PendingRead]:
        """Remove and return those of the reads that are in `lost`."""
        return self._part(lost.__contains__)

    def _part(self, leaves: Callable[[PendingRead], bool]) -> list[PendingRead]:
        gone: list[PendingRead] = []
        stay: list[PendingRead] = []
        for read in self.reads:
            (gone if leaves(read) else stay).append(read)
        self.reads = stay
        return gone


class Queue:
    """Wanted sectors of one image repository, in the order in which they should be fetched."""

    def __init__(self) -> None:
        self._queues: tuple[OrderedDict[bytes, Filling], ...] = tuple(OrderedDict() for _ in Cause)
        self._places: dict[tuple[str, int], Filling] = {}  # by key

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def has(self, cause: Cause) -> bool:
        """Return whether a sector is queued for `cause`."""
        return bool(self._queues[cause])

    def put(self, filling: Filling, cause: Cause) -> None:
        """Queue a sector that no worker has; a queued one can only gain urgency."""
        sector_id = filling.sector.entry.id
        if any(sector_id in queue for queue in self._queues[: cause + 1]):
            return
        self.remove(filling)
        filling.cause = cause
        self._queues[cause][sector_id] = filling
        self._places[filling.key] = filling

    def put_back(self, filling: Filling, cause: Cause) -> None:
        """`put` a sector that a request has brought in part; its rest goes before others."""
        self.put(filling, cause)
        self._queues[filling.cause].move_to_end(filling.sector.entry.id, last=False)

    def remove(self, filling: Filling) -> None:
        """Take a sector out again, if it is there."""
        for queue in self._queues:
            queue.pop(filling.sector.entry.id, None)
        if self._places.get(filling.key) is filling:
            del self._places[filling.key]

    def relax(self, filling: Filling) -> None:
        """Note that no read waits for a sector any more: it can be fetched later."""
        was_queued = self._places.get(filling.key) is filling
        self.remove(filling)
        filling.cause = filling.rests
        if was_queued:
            self.put(filling, filling.rests)

    def take(
        self, causes: Collection[Cause] = tuple(Cause), bytes_per_s: float = 0.0
    ) -> list[Filling]:
        """Remove and return what one ranged request should fetch; [] if there is nothing.

        That is the next sector, and the wanted ones that follow it in its blob without a gap. A
        sector that rests half-filled can only be the first: only its rest is wanted. What is
        streamed is taken alone: a `Stream` claims what follows when it gets there. What a
        sequential reader comes to is an exception.

        Args:
            causes: that may be taken, the most urgent first.
            bytes_per_s: of the link.
        """
        queue = next((q for cause in causes if (q := self._queues[cause])), None)
        if queue is None:
            return []
        following: Filling | None = next(iter(queue.values()))
        if following is not None and following.cause in STREAMED:
            first = min(queue.values(), key=lambda filling: filling.order)
            self.remove(first)
            return [first]
        merged = [cause for cause in causes if cause not in STREAMED]
        batch: list[Filling] = []
        size, most = 0, batch_bytes(bytes_per_s)
        while following is not None and size < most:
            self.remove(following)
            batch.append(following)
            size += following.sector.span.length
            following = self._places.get(following.end)
            if following and (
                following.asks or not (following.is_next or following.cause in merged)
            ):
                following = None
        return batch

    def behind(self, filling: Filling, cause: Cause) -> Filling | None:
        """Return the queued sector that a stream gets to when it has `filling`; it stays queued.

        One that has bytes already is left out: they would come again.
        """
        following = self._places.get(filling.end)
        if following is None or following.asks or following.filled:
            return None
        return following if following.cause <= cause else None


def batch_bytes(bytes_per_s: float) -> int:
    """Return how many compressed bytes one request asks for at most.

    A registry opens the blob anew for each request, and reads ahead of what it asks for.

    Args:
        bytes_per_s: of the link; 0 or infinite until measured.
    """
    if not math.isfinite(bytes_per_s):
        return BATCH_BYTES
    return max(BATCH_BYTES, min(int(bytes_per_s * BATCH_S), MAX_BATCH_BYTES))


def slice_seconds(batch: Sequence[Filling]) -> float:
    """Return for how long a request may keep the link busy with what nobody waits for.

    A read gets what it waits for and little more, so that the next one does not queue behind bytes
    that nobody may use; a reader that comes back to the same sector gets twice as much each time,
    and a sequential one what it comes to.

    Args:
        batch: sectors of the request, at least one.
    """
    first = batch[0]
    if first.cause is Cause.PREFETCH or any(following.is_next for following in batch[1:2]):
        return AHEAD_SLICE_S
    if first.cause is Cause.DEMAND:
        return FIRST_SLICE_S * float(2 ** min(first.asks, MAX_DOUBLINGS))
    return LATER_SLICE_S


def request_end(batch: Sequence[Filling], rest: Span, needed: int, budget_bytes: float) -> int:
    """Return where in the blob the request for `batch` should end.

    On a fast link that is the end of its last sector. On a slow one the request covers what reads
    wait for in the first sector, and beyond that no more than `budget_bytes`; what is left out
    rests, on a frame if the frame table is known.

    Args:
        batch: sectors that lie behind each other.
        rest: the range that gives what is missing of the first, or as much as lies in one.
        needed: where in the blob the bytes end that its reads wait for.
        budget_bytes: compressed bytes that may be fetched though nobody waits for them.
    """
    if rest.stop - needed > budget_bytes:
        return needed + int(budget_bytes)
    stop = rest.stop
    if (rest.blob.digest, stop) != batch[0].end:
        return stop  # neighbours do not lie behind it
    for filling in batch[1:]:
        end = filling.end[1]
        if end - needed > budget_bytes:
            break
        stop = end
    return stop

# SPDX-License-Identifier: Apache-2.0
"""A sector on its way from absent to present, and the queue of those that are wanted. Pure.

Owns who waits for what, and in which order sectors are fetched: on demand before prefetch before
completion of what rests half-filled. No I/O, no locks: its owner (`firstread.node.lane`) has one
lock for all of it, and takes the actions that are returned here.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from firstread.node.wire import Request
from firstread.oci.model import Descriptor
from firstread.sectors.decode import SectorDecoder
from firstread.sectors.format import Geometry, SectorEntry
from firstread.units import MiB

MAX_BATCH_BYTES = 16 * MiB  # compressed, in one ranged request
MAX_AHEAD = 8  # sectors that are prefetched for one sequential reader
MAX_STREAMS = 256  # sequential readers that are remembered
FIRST_SLICE_S = 0.050  # of the link that a read on demand may take beyond what it waits for
LATER_SLICE_S = 0.040  # the same for what nobody waits for
MAX_DOUBLINGS = 2


Waiter = tuple[Request, float]  # an event, and when it came (monotonic seconds)


class Cause(enum.IntEnum):
    """Why a sector is fetched; the smaller goes first."""

    DEMAND = 0
    PREFETCH = 1
    COMPLETION = 2


class Wanted(NamedTuple):
    """A sector, and where its bytes are.

    Args:
        entry: row of the sector index.
        blob: descriptor of its blob.
        geometry: of the image.
    """

    entry: SectorEntry
    blob: Descriptor
    geometry: Geometry


@dataclass(slots=True, eq=False)
class Filling:
    """A sector that is wanted and not present.

    Args:
        sector: which.
        filled: bytes of the sector file that hold verified content.
        cause: why it is fetched, the most urgent so far.
        waiters: (event, time it came) that wait for it.
        demanded: a read has asked for it.
        active: a worker is fetching it.
        paused: it has failed and waits for its next attempt.
        asks: requests for it so far.
        failures: attempts that failed since the last progress.
        decoder: what is known of its frames, once a worker has had it.
        source: who gave the last of its bytes.
    """

    sector: Wanted
    filled: int = 0
    cause: Cause = Cause.COMPLETION
    waiters: list[Waiter] = field(default_factory=list)
    demanded: bool = False
    active: bool = False
    paused: bool = False
    asks: int = 0
    failures: int = 0
    decoder: SectorDecoder | None = None
    source: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """Where it begins: (digest of the blob, offset in it)."""
        return self.sector.blob.digest, self.sector.entry.offset

    @property
    def end(self) -> tuple[str, int]:
        """Where what follows it begins."""
        entry = self.sector.entry
        return self.sector.blob.digest, entry.offset + entry.length

    @property
    def remaining_bytes(self) -> int:
        """Compressed bytes that are still to come."""
        return self.sector.entry.length - (self.decoder.offset if self.decoder else 0)

    @property
    def start(self) -> int:
        """Where in the blob the next request for it begins."""
        return self.end[1] - self.remaining_bytes

    def reach(self) -> int:
        """Return how many of its compressed bytes its waiters need."""
        end = max((r.offset + r.length for r, _ in self.waiters), default=0)
        if not end or self.decoder is None:
            return 0
        return self.decoder.reach(end)

    def satisfied(self) -> list[Waiter]:
        """Remove and return the waiters that the verified prefix covers."""
        size = self.sector.entry.size
        return self._part(lambda r, _: min(r.offset + r.length, size) <= self.filled)

    def late(self, since: float) -> list[Waiter]:
        """Remove and return the waiters that came before `since`."""
        return self._part(lambda _, came: came < since)

    def without(self, lost: Container[Waiter]) -> list[Waiter]:
        """Remove and return those of the waiters that are in `lost`."""
        return self._part(lambda request, came: (request, came) in lost)

    def _part(self, leaves: Callable[[Request, float], bool]) -> list[Waiter]:
        gone: list[Waiter] = []
        stay: list[Waiter] = []
        for waiter in self.waiters:
            (gone if leaves(*waiter) else stay).append(waiter)
        self.waiters = stay
        return gone


class Queue:
    """Wanted sectors of one image repository, in the order in which they should be fetched."""

    def __init__(self) -> None:
        self._queues: tuple[OrderedDict[bytes, Filling], ...] = tuple(OrderedDict() for _ in Cause)
        self._places: dict[tuple[str, int], Filling] = {}  # by key

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def put(self, filling: Filling, cause: Cause) -> None:
        """Queue a sector that no worker has; one that is queued already can only gain urgency."""
        sector_id = filling.sector.entry.id
        if any(sector_id in queue for queue in self._queues[: cause + 1]):
            return
        self.remove(filling)
        filling.cause = cause
        self._queues[cause][sector_id] = filling
        self._places[filling.key] = filling

    def remove(self, filling: Filling) -> None:
        """Take a sector out again, if it is there."""
        for queue in self._queues:
            queue.pop(filling.sector.entry.id, None)
        if self._places.get(filling.key) is filling:
            del self._places[filling.key]

    def relax(self, filling: Filling) -> None:
        """Note that no read waits for a sector any more: it can be fetched last."""
        was_queued = self._places.get(filling.key) is filling
        self.remove(filling)
        filling.cause = Cause.COMPLETION
        if was_queued:
            self.put(filling, Cause.COMPLETION)

    def take(self, least: Cause = Cause.COMPLETION) -> list[Filling]:
        """Remove and return what one ranged request should fetch; [] if there is nothing.

        It is the next sector, and those that follow it in its blob without a gap and are wanted
        too. A sector that rests half-filled can only be the first: of it only the rest is wanted.

        Args:
            least: the least urgent cause that may be taken.
        """
        wanted = self._queues[: least + 1]
        following = next((next(iter(queue.values())) for queue in wanted if queue), None)
        batch: list[Filling] = []
        size = 0
        while following is not None and size < MAX_BATCH_BYTES:
            self.remove(following)
            batch.append(following)
            size += following.remaining_bytes
            following = self._places.get(following.end)
            if following and (following.asks or following.cause > least):
                following = None
        return batch


def slice_seconds(cause: Cause, asks: int) -> float:
    """Return for how long a request may keep the link busy with what nobody waits for.

    A read gets what it waits for and little more, so that the next one is not behind bytes that
    may never be used; a reader that comes back to the same sector gets twice as much each time.

    Args:
        cause: why a sector is fetched.
        asks: requests for it so far.
    """
    return FIRST_SLICE_S * 2 ** min(asks, MAX_DOUBLINGS) if cause is Cause.DEMAND else LATER_SLICE_S


def request_end(batch: Sequence[Filling], budget_bytes: float) -> int:
    """Return where in the blob the request for `batch` should end.

    On a fast link that is the end of its last sector. On a slow one the request covers what reads
    wait for in the first sector, and beyond that no more than `budget_bytes`; what is left out
    rests, on a frame if the frame table is known.

    Args:
        batch: sectors that lie behind each other.
        budget_bytes: compressed bytes that may be fetched though nobody waits for them.
    """
    first = batch[0]
    start = first.start
    needed = max(start, first.sector.entry.offset + first.reach())
    stop = needed
    for filling in batch:
        end = filling.end[1]
        if end - needed > budget_bytes:
            return max(stop, needed + int(budget_bytes)) if filling is first else stop
        stop = end
    return stop


class Ahead:
    """Recognises sequential readers, and says how many sectors to fetch ahead of each."""

    def __init__(self) -> None:
        self._streams: OrderedDict[tuple[str, int], int] = OrderedDict()  # expected next -> streak

    def demand(self, filling: Filling) -> int:
        """Note a read of a sector; return how many of those behind it should be fetched now."""
        streak = self._streams.pop(filling.key, -1) + 1
        self._streams[filling.end] = streak
        if len(self._streams) > MAX_STREAMS:
            self._streams.popitem(last=False)
        return min(MAX_AHEAD, 1 << streak) if streak else 0

    def go_on(self, filling: Filling) -> None:
        """Note that a sector is fetched ahead: its reader, once there, counts as sequential."""
        self._streams.setdefault(filling.end, 1)

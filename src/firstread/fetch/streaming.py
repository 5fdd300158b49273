# SPDX-License-Identifier: Apache-2.0
"""One long request that brings sectors before anybody reads them. Pure.

Owns how long it is, which sectors it brings, and which reads wait for it though it has not got
there. A lane has one at a time: `firstread.fetch.backlog` says when, `firstread.fetch.streamer`
runs it.

A registry answers a request of any length from its first byte on, but the first bytes of a lane
come with a connection that is slow to start, from an endpoint that may be wrong. So requests grow:
few of them fill a link, and each costs one round trip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from firstread.fetch.queue import Cause, Filling, Queue
from firstread.fetch.rate import Rate
from firstread.sectors.source import Span, Wanted
from firstread.units import MiB

FIRST_BYTES = 1 * MiB  # compressed, of the first request of a lane's stream
GROWTH = 8  # of each further one
MAX_BYTES = {Cause.HOT: 64 * MiB, Cause.BACKGROUND: 8 * MiB}  # one that can be given up is short


@dataclass(slots=True, eq=False)
class Stream:
    """A request under way.

    Args:
        cause: what it is for.
        batch: the sectors that it has got to; it is at the last.
        stop: where in the blob it ends.
        expected: queued sectors before there whose reads wait for it.
    """

    cause: Cause
    batch: list[Filling]
    stop: int = 0
    expected: list[Filling] = field(default_factory=list)

    @property
    def filling(self) -> Filling:
        """The sector that it is at."""
        return self.batch[-1]

    @property
    def unserved(self) -> list[Filling]:
        """The expected sectors whose reads still wait, and that nobody else has taken."""
        return [other for other in self.expected if other.reads and not other.active]

    def is_awaited(self) -> bool:
        """Return whether a read waits for what it brings."""
        queued = any(other.reads and other.cause is self.cause for other in self.expected)
        return queued or bool(self.filling.reads)

    def reaches(self, filling: Filling, end: int, most_bytes: float) -> bool:
        """Return whether part of a queued sector had better come with it than by another request.

        That brings the sector from its beginning, over the same link, and the stream then brings
        it a second time. So another request has to be sooner by twice what it asks for.

        Args:
            filling: which; of whatever blob.
            end: where in the sector the part ends, in bytes.
            most_bytes: compressed, that come while a request waits for its answer.
        """
        if self.cause is not Cause.HOT or filling.asks or filling.filled:
            return False
        here, there = self.filling.sector, filling.sector
        if here.blob != there.blob or there.entry.offset <= here.entry.offset:
            return False
        size = there.entry.size
        twice = there.entry.length * min(end, size) // size
        last = there.entry.offset + twice
        come = here.entry.length * self.filling.filled // here.entry.size
        return last <= self.stop and last - here.entry.offset - come <= most_bytes + 2 * twice


class Ramp:
    """How long the requests of a stream are, in compressed bytes."""

    def __init__(self) -> None:
        self._next = FIRST_BYTES

    def take(self, cause: Cause) -> int:
        """Return the length of the next request."""
        length = min(self._next, MAX_BYTES[cause])
        self._next = min(self._next * GROWTH, MAX_BYTES[Cause.HOT])
        return length

    def reset(self) -> None:
        """Begin anew: a request failed."""
        self._next = FIRST_BYTES


class Streaming:
    """The stream of a lane.

    Args:
        queue: of its sectors.
        link: how the source answers.

    Attributes:
        now: the stream that is under way.
    """

    def __init__(self, queue: Queue, link: Rate) -> None:
        self.now: Stream | None = None
        self._queue, self._link = queue, link
        self._ramp = Ramp()
        self._expected: list[Filling] = []  # of the last stream, by reads; the next goes on there

    @property
    def is_hot(self) -> bool:
        """Whether hot sectors are queued, or on their way."""
        on_its_way = self.now is not None and self.now.cause is Cause.HOT
        return on_its_way or self._queue.has(Cause.HOT)

    def of(self, batch: list[Filling]) -> Stream | None:
        """Return the stream if that is what a worker has taken with `batch`."""
        return self.now if self.now is not None and self.now.batch is batch else None

    def comes_to(self, sector: Wanted) -> bool:
        """Return whether the request of the stream has a sector, unless others take it before."""
        if self.now is None:
            return False
        here, there = self.now.filling.sector.span, sector.span
        return here.blob == there.blob and here.start <= there.start < self.now.stop

    def take(self, batch: list[Filling]) -> None:
        """Note that a worker has taken the first sector of a stream."""
        self.now = Stream(batch[0].cause, batch, expected=self._expected)
        self._expected = []

    def begin(self, stream: Stream, rest: Span) -> tuple[Span, list[Filling]]:
        """Begin the request of a stream.

        Args:
            stream: that has just been taken from the queue.
            rest: what is missing of its first sector, or as much as lies in one range.

        Returns:
            what it should ask for, and sectors that reads have expected of it in vain: it has begun
            elsewhere than the last one ended.
        """
        filling, most = stream.filling, rest.start + self._ramp.take(stream.cause)
        stop, end = rest.stop, (rest.blob.digest, rest.stop)
        while end == filling.end and stop < most:
            following = self._queue.behind(filling, stream.cause)
            if following is None:
                break
            filling, end = following, following.end
            stop = end[1]
        stream.stop = min(stop, most)
        waiting = stream.unserved
        left = [other for other in waiting if not stream.reaches(other, other.wanted_end, math.inf)]
        stream.expected = [other for other in waiting if other not in left]
        return rest._replace(stop=stream.stop), left

    def claim(self, stream: Stream) -> Filling | None:
        """Return the sector that a stream has got to, if no other worker was faster."""
        following = self._queue.behind(stream.filling, stream.cause)
        if following is not None:
            self._queue.remove(following)
            following.active = True
            stream.batch.append(following)
        return following

    def brings(self, filling: Filling) -> bool:
        """Return whether the reads of a queued sector should wait for the stream, and note that."""
        stream = self.now
        if stream is None or not filling.reads or filling.cause is not Cause.HOT:
            return False
        if not stream.reaches(filling, filling.wanted_end, self._link.round_trip_bytes):
            return False
        if filling not in stream.expected:
            stream.expected.append(filling)
        return True

    def end(self, stream: Stream, *, whole: bool, failed: bool) -> list[Filling]:
        """Note that a stream has ended.

        Args:
            stream: which.
            whole: all that it asked for has come; the next one of hot sectors goes on there.
            failed: it broke off.

        Returns:
            sectors that reads have expected of it in vain.
        """
        self.now = None
        if failed:
            self._ramp.reset()
        left = stream.unserved
        if not whole or stream.cause is not Cause.HOT:
            return left
        if stream.filling.active:
            stream.filling.active = False
            self._queue.put(stream.filling, stream.filling.rests)
            left = [stream.filling, *left]
        self._expected = left
        return []

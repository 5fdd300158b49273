# SPDX-License-Identifier: Apache-2.0
"""No read is left waiting: whatever comes when, somebody brings what it waits for."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from firstread.cache.pending import PendingRead
from firstread.errors import ImageError, TransportError
from firstread.fetch.backlog import LONG_S, Backlog
from firstread.fetch.queue import Filling
from firstread.fetch.rate import Rate
from firstread.fetch.startplan import Rest, StartPlan
from firstread.fetch.streaming import Stream
from firstread.testing.memorysource import make_sectors
from firstread.units import KiB, MiB

SECTORS = make_sectors(24)
FRAME = 4 * KiB
WORKERS = 3
STEPS = 400
SLOW, FAST = 0.5, 200.0  # sectors that the link brings in a round trip


@dataclass
class Flight:
    """A request under way, and the stream that it is, if it is one."""

    batch: list[Filling]
    stream: Stream | None


class World:
    """A lane whose readers, workers and source do what chance tells them to.

    Args:
        seed: of the chance.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.sizes: dict[bytes, int] = {}
        self.now, self.waiting = 100.0, list[PendingRead]()
        self.flights: list[Flight] = []
        self.at = 0  # of a reader that goes on in order
        rate, length = Rate(), SECTORS.wanted[0].entry.length
        rate.note(MiB, MiB / (self.chance.choice((SLOW, FAST)) * length))
        rate.note_latency(1.0)
        self.backlog = Backlog(lambda s: self.sizes.get(s.entry.id, 0), 1.0, rate)
        self.want_hot()

    def want_hot(self) -> None:
        """Mount an image; what it needs of the sectors may have been evicted."""
        for gone in self.chance.sample(sorted(self.sizes), len(self.sizes) // 2):
            if gone not in set(self.backlog):
                del self.sizes[gone]
        first, second = SECTORS.wanted[:8], SECTORS.wanted[10:20]
        hot = [*second, *first] if self.chance.random() < 0.5 else [*first, *second]
        plan = StartPlan("hot", 0, 0, None, None, Rest.NEVER, knows_start=True)
        self.backlog.prefetch(plan, hot, SECTORS.wanted, self.now)

    def read(self) -> None:
        if self.chance.random() < 0.6:
            sector, offset = SECTORS.wanted[self.at], 0
            self.at = (self.at + 1) % len(SECTORS.wanted)
        else:
            sector = self.chance.choice(SECTORS.wanted)
            offset = self.chance.randrange(0, sector.entry.size, FRAME)
        read = PendingRead(0, 1, offset, FRAME, -1, self.now)
        self.waiting.append(read)
        _, done = self.backlog.request(sector, [read], self.now, SECTORS.behind, lambda n: n < 12)
        self.go_on(done)

    def go_on(self, reads: list[PendingRead]) -> None:
        for read in reads:
            self.waiting.remove(read)

    def take(self) -> bool:
        """Have a free worker take what it may."""
        is_last = len(self.flights) == WORKERS - 1
        batch, _ = self.backlog.take(self.now, is_last=is_last)
        if not batch:
            return False
        stream = self.backlog.streaming.of(batch)
        if stream is not None:
            self.backlog.begin_stream(stream, batch[0].sector.span)
        self.flights.append(Flight(batch, stream))
        return True

    def comes(self, filling: Filling, size: int) -> bool:
        """Have the first `size` bytes of a sector come; return whether it is whole."""
        filling.asks += 1
        size = max(size, filling.filled)
        self.sizes[filling.sector.entry.id] = size
        self.go_on(self.backlog.progress(filling, size, self.now))
        if size < filling.sector.entry.size:
            return False
        filling.active = False
        self.go_on(self.backlog.drop(filling))
        return True

    def step(self, flight: Flight) -> bool:
        """Have something of a request come; return whether anything could."""
        if self.chance.random() < 0.05:
            self._fail(flight)
            return True
        if flight.stream is None:
            self._answer(flight)
            return True
        return self._streamed(flight, flight.stream)

    def _answer(self, flight: Flight) -> None:
        first, *others = flight.batch
        size = first.sector.entry.size
        part = max(first.wanted_end, self.chance.randrange(FRAME, size + 1, FRAME))
        if self.comes(first, self.chance.choice((part, size))):
            for other in others:
                if self.chance.random() < 0.3 or not self.comes(other, size):
                    break
        self._end(flight)

    def _streamed(self, flight: Flight, stream: Stream) -> bool:
        if self.backlog.leaves_link(stream):
            return False
        filling = stream.filling
        if self.chance.random() < 0.7:
            self.comes(filling, filling.filled + FRAME)
        else:
            self.comes(filling, filling.sector.entry.size)
        if filling.active:
            if self.chance.random() < 0.2:  # here its request ends
                self._end(flight, whole=True)
        elif self.chance.random() < 0.1 or self.backlog.streaming.claim(stream) is None:
            self._end(flight, whole=self.chance.random() < 0.5)
        return True

    def _end(self, flight: Flight, *, whole: bool = False) -> None:
        self.flights.remove(flight)
        if flight.stream is not None:
            self.backlog.end_stream(flight.stream, whole=whole, failed=False)
        for filling in flight.batch:
            self.go_on(self.backlog.covered(filling))
            if filling.active:
                self.backlog.requeue(filling)

    def _fail(self, flight: Flight) -> None:
        self.flights.remove(flight)
        if flight.stream is not None:
            self.backlog.end_stream(flight.stream, whole=False, failed=True)
        failed, *others = [filling for filling in flight.batch if filling.active]
        self.go_on(self.backlog.covered(failed))
        for filling in others:
            self.backlog.requeue(filling)
        error = self.chance.choice((TransportError("x"), ImageError("x")))
        self.go_on(self.backlog.fail(failed, error, "refetch", self.now) or [])


@pytest.mark.parametrize("seed", range(200))
def test_every_read_is_served(seed: int) -> None:
    world = World(seed)
    for _ in range(STEPS):
        world.now += 0.01
        what = world.chance.randrange(10)
        if what == 0:
            world.want_hot()
        elif what < 4:
            world.read()
        elif what < 7 and len(world.flights) < WORKERS:
            world.take()
        elif world.flights:
            world.step(world.chance.choice(world.flights))
    while world.waiting:
        world.now = world.now + 0.01 if world.flights else world.now + LONG_S
        taken = len(world.flights) < WORKERS and world.take()
        moved = [world.step(flight) for flight in list(world.flights)]
        assert taken or any(moved), "reads wait, and nobody does anything"

# SPDX-License-Identifier: Apache-2.0
"""A lane without threads, files or network: its workers, on a link that only counts. Pure.

Owns the requests under way, and how far each unit has come. The node's own rules decide which unit
a worker fetches next, how far a request reaches, what is read ahead and what the stream brings
(`firstread.fetch.backlog`, `queue`, `streaming`); this does what `firstread.fetch.lane` and
`filler` do with their answers. It has a clock of its own: that of its `Pipe`.

Invariant: each unit's bytes arrive once, in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from firstread.cache.pending import PendingRead
from firstread.config import PrefetchTable
from firstread.fetch.backlog import Backlog
from firstread.fetch.pace import PAUSE_S
from firstread.fetch.queue import Filling, request_end, slice_seconds
from firstread.fetch.rate import BUFFERED_BYTES, Meter, Rate
from firstread.fetch.startplan import Mode, decide
from firstread.fetch.streaming import Stream
from firstread.sectors.source import Span, Wanted
from firstread.tune.layout import Layout, Need
from firstread.tune.link import LinkSpeed, Pipe, Transfer
from firstread.units import KiB

RETRY_S = 0.1  # nothing fails here
HEAD_REQUESTS = 2  # of the stream before the mount: 9 MiB, much like `firstread.mounts.heads`
MARGIN, MARGIN_BYTES = 1.1, 16 * KiB  # as in firstread.sectors.decode, before the table is known


class Costs(NamedTuple):
    """The time that a node and its registry need besides the link.

    ``python -m benchmarks.costs`` measures the seconds; docs/adr/0120 has the figures.

    Args:
        metadata_s: of a pull, to write and open the metadata, whatever its size.
        metadata_bytes_per_s: compressed metadata that it unpacks and checks before the mount.
        mount_s: of the mount, whatever it holds.
        device_s: of the mount, for each sector.
        request_s: of a request, on both sides together.
        event_s: from a waiting read's event to its answer, when the bytes are present.
        traced_s: by which the tracer has made the workload slower, for each read of a trace.
        worker_bytes_per_s: compressed bytes that one worker receives, decodes, verifies and writes
            while a registry on the same cores sends them.
        workers: requests at a time.
        cores: of the node; the workload has one, and the workers share the others.
        trips: round trips of a new connection.
    """

    metadata_s: float = 0.02
    metadata_bytes_per_s: float = 2.5e6
    mount_s: float = 0.01
    device_s: float = 45e-6
    request_s: float = 0.006
    event_s: float = 0.0004
    traced_s: float = 25e-6
    worker_bytes_per_s: float = 120e6
    workers: int = 4
    cores: int = 2
    trips: int = 2


@dataclass(eq=False)
class _Request:
    """A request under way.

    Args:
        batch: the units that it covers; a stream adds those that it gets to.
        transfer: its answer.
        asked: when it was made.
        last: when the worker has taken bytes last.
        taken: bytes of the answer that the worker has taken.
        at: number in `batch` of the unit that comes.
        stream: if it is one.
        meter: of a stream.
        waits_until: a stream leaves the link to reads until then.
    """

    batch: list[Filling]
    transfer: Transfer
    asked: float
    last: float
    taken: int = 0
    at: int = 0
    stream: Stream | None = None
    meter: Meter | None = None
    waits_until: float = -math.inf


class SimulatedLane:
    """The workers of one lane.

    Args:
        layout: of the image.
        link: to its registry.
        costs: of the node.

    Attributes:
        is_mounted: so that more is streamed than the head.
        requests: made by now.
    """

    def __init__(self, layout: Layout, link: LinkSpeed, costs: Costs) -> None:
        self._layout, self._costs = layout, costs
        self._pipe = Pipe(link, costs.trips, costs.worker_bytes_per_s)
        self._rate = Rate()
        self._backlog = Backlog(self._size, RETRY_S, self._rate, PrefetchTable().quiet_s)
        self._got: dict[bytes, int] = {}  # stored bytes of each unit by now
        self._verified: dict[bytes, int] = {}
        self._flying: list[_Request] = []
        self._answered: set[int] = set()
        self._reads = 0
        self._ended_bytes = 0.0
        self._streams = 0
        self.is_mounted = False
        self.requests = 0

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self._pipe.now

    @property
    def bytes(self) -> float:
        """Bytes that have arrived by now."""
        return self._ended_bytes + sum(request.transfer.arrived for request in self._flying)

    # -- what the node asks for ----------------------------------------------------------------

    def fetch(self, size: int, on_begun: Callable[[], None] = lambda: None) -> None:
        """Fetch something else of `size` bytes, such as the metadata, and wait for it.

        Args:
            size: bytes of the answer.
            on_begun: called when it begins to come. It delays the bytes that this asks for.
        """
        transfer = self._pipe.request(size, self._costs.request_s)
        self.requests += 1
        self.pass_time(transfer.opens)
        on_begun()
        self._staff()
        behind = [request.transfer for request in self._flying]
        for each in behind:
            each.is_full = True
        while (arrived := self._pipe.step(min(self._staff(), self._resume()))) is not transfer:
            self._arrived(arrived)
        for each in behind:
            each.is_full = False
        self._end(transfer, reuse=True)

    def prefetch(self, mode: Mode, *, is_traced: bool = True) -> None:
        """Fetch of the image what nobody reads yet, as the node would.

        Args:
            mode: that holds for the image.
            is_traced: what is hot comes from a trace, not from a start set.
        """
        hot = [self._layout.units[number] for number in self._layout.stream]
        ids = {unit.entry.id for unit in hot}
        units = self._layout.units
        rest = [unit for unit in units if unit.entry.length and unit.entry.id not in ids]
        hot_bytes = sum(unit.entry.length for unit in hot)
        all_bytes = hot_bytes + sum(unit.entry.length for unit in rest)
        plan = decide(mode, hot_bytes, all_bytes, self._rate, knows_start=bool(hot) and is_traced)
        self._backlog.prefetch(plan, hot, rest, self.now)

    def is_whole(self, number: int) -> bool:
        """Return whether a unit is present; then the kernel serves it alone."""
        entry = self._layout.units[number].entry
        return self._verified.get(entry.id, 0) == entry.size

    def read(self, need: Need) -> None:
        """Wait until what a read needs of a unit is present."""
        unit = self._layout.units[need.unit]
        if need.end > self._size(unit):
            self._reads += 1
            read = PendingRead(self._reads, 0, need.start, need.end - need.start, -1, self.now)
            self._backlog.request(unit, [read], self.now, self._layout.behind, lambda _: True)
            self.pass_time(math.inf, self._reads)

    def pass_time(self, until: float, read: int = 0) -> None:
        """Let time pass until a moment, or until a read is answered."""
        while read not in self._answered:
            due = min(until, self._staff(), self._resume())
            transfer = self._pipe.step(due)
            self._arrived(transfer)
            if transfer is None and self.now >= until:
                return

    def work(self, seconds: float) -> None:
        """Let the workload work on a core of its own; it is slower while workers need that, too."""
        before = self.bytes
        self.pass_time(self.now + seconds)
        busy_s = (self.bytes - before) / self._costs.worker_bytes_per_s
        self.pass_time(self.now + max(0.0, busy_s - seconds * (self._costs.cores - 1)))

    # -- workers -------------------------------------------------------------------------------

    def _size(self, unit: Wanted) -> int:
        return self._verified.get(unit.entry.id, 0)

    def _staff(self) -> float:
        """Give work to idle workers; return when there may be more for them."""
        workers = max(2, self._costs.workers)
        while len(self._flying) < workers:
            is_last = 1 < self._costs.workers <= len(self._flying) + 1
            is_last |= not self.is_mounted and self._streams == HEAD_REQUESTS
            batch, wait = self._backlog.take(self.now, is_last=is_last)
            if not batch:
                return math.inf if wait is None else self.now + max(wait, 0.001)
            self._request(batch)
        return math.inf

    def _request(self, batch: list[Filling]) -> None:
        stream = self._backlog.streaming.of(batch)
        if stream is None:
            span = self._span(batch)
        else:
            span = self._backlog.begin_stream(stream, self._rest(batch[0]))
        transfer = self._pipe.request(span.length, self._costs.request_s)
        request = _Request(batch, transfer, self.now, transfer.opens, stream=stream)
        request.meter = Meter(self._rate, lambda: self.now) if stream else None
        self._streams += stream is not None
        self._flying.append(request)
        self.requests += 1
        batch[0].asks += 1
        self._await_frame(request)

    def _rest(self, filling: Filling) -> Span:
        """Return what is missing of a unit."""
        unit = filling.sector
        start = unit.entry.offset + self._got.get(unit.entry.id, 0)
        return Span(unit.blob, start, unit.span.stop)

    def _span(self, batch: list[Filling]) -> Span:
        """Return what one request should ask for, as the filler does."""
        first, unit, rest = batch[0], batch[0].sector, self._rest(batch[0])
        needed = max(rest.start, unit.entry.offset + self._reach(unit, first.wanted_end))
        budget = self._rate.bytes_per_s * slice_seconds(batch)
        stop = request_end(batch, rest, min(needed, rest.stop), budget)
        return rest._replace(stop=max(stop, rest.start + 1))

    def _reach(self, unit: Wanted, end: int) -> int:
        """Return how many of a unit's stored bytes give its first `end` bytes.

        Exact once the frame table has arrived; before that with the decoder's margin.
        """
        if not end:
            return 0
        frames = self._layout.frames(_number(unit))
        if self._got.get(unit.entry.id, 0) or len(frames) == 1:
            return next(stored for plain, stored in frames if plain >= end)
        count = next(n for n, (plain, _) in enumerate(frames, 1) if plain >= end)
        share = unit.entry.length * count / len(frames)
        return min(unit.entry.length, int(share * MARGIN) + MARGIN_BYTES)

    # -- answers -------------------------------------------------------------------------------

    def _arrived(self, transfer: Transfer | None) -> None:
        """Take what has come of a request, if anything has."""
        if transfer is not None:
            self._take(next(each for each in self._flying if each.transfer is transfer))

    def _await_frame(self, request: _Request) -> None:
        """Have the link stop at the end of the frame that comes next, or at that of the answer."""
        unit, transfer = request.batch[request.at].sector, request.transfer
        got = self._got.get(unit.entry.id, 0)
        stored = next(end for _, end in self._layout.frames(_number(unit)) if end > got)
        transfer.wake = min(request.taken + stored - got, transfer.size)

    def _take(self, request: _Request) -> None:
        """Take the frames that have arrived, as far as the pace of a stream lets."""
        transfer = request.transfer
        if request.waits_until > self.now:
            transfer.is_full = True  # as much as the connection buffers
            return
        while transfer.arrived >= transfer.wake:
            if not self._take_frame(request):
                return
            in_unit = self._got.get(request.batch[request.at].sector.entry.id, 0)
            if request.stream and in_unit and self._backlog.leaves_link(request.stream):
                request.waits_until = self.now + PAUSE_S
                transfer.wake = min(request.taken + BUFFERED_BYTES, transfer.size)
                return

    def _take_frame(self, request: _Request) -> bool:
        """Take the bytes up to `wake`; return whether the request goes on."""
        transfer, filling = request.transfer, request.batch[request.at]
        unit = filling.sector
        count = round(transfer.wake) - request.taken
        self._note(request, count)
        request.taken += count
        got = self._got[unit.entry.id] = self._got.get(unit.entry.id, 0) + count
        frames = self._layout.frames(_number(unit))
        verified = max((plain for plain, stored in frames if stored <= got), default=0)
        self._verified[unit.entry.id] = verified
        self._answer(self._backlog.progress(filling, verified, self.now))
        if verified == unit.entry.size:
            filling.active = False
            self._answer(self._backlog.drop(filling))
            if not self._next_unit(request):
                return False
        elif request.taken == transfer.size:
            self._finish(request)
            return False
        self._await_frame(request)
        return True

    def _note(self, request: _Request, count: int) -> None:
        """Measure the link, as the node does."""
        if request.last == request.transfer.opens:
            self._rate.note_latency(request.transfer.opens - request.asked)
        if request.meter:
            request.meter.note(count, 0)
        else:
            self._rate.note(count, self.now - request.last)
        request.last = self.now

    def _next_unit(self, request: _Request) -> bool:
        """Go on with the unit behind one that is whole; end the request if there is none."""
        if request.taken < request.transfer.size:
            if request.stream:
                self._backlog.streaming.claim(request.stream)
            if request.at + 1 < len(request.batch):
                request.at += 1
                request.batch[request.at].asks += 1
                return True
        self._finish(request)
        return False

    def _finish(self, request: _Request) -> None:
        whole = request.taken == request.transfer.size
        self._end(request.transfer, reuse=whole)
        self._flying.remove(request)
        if request.stream:
            self._backlog.end_stream(request.stream, whole=whole, failed=False)
        for rest in request.batch:
            if rest.active:
                self._answer(self._backlog.covered(rest))
                self._backlog.requeue(rest)

    def _end(self, transfer: Transfer, *, reuse: bool) -> None:
        self._pipe.finish(transfer, reuse=reuse)
        self._ended_bytes += transfer.arrived

    def _resume(self) -> float:
        """Let streams go on that need not wait any more; return when the next one may."""
        for request in [each for each in self._flying if each.waits_until > -math.inf]:
            stream = request.stream
            if stream and self._backlog.leaves_link(stream) and request.waits_until > self.now:
                return request.waits_until
            request.waits_until = -math.inf
            request.transfer.is_full = False
            if request.meter:
                request.meter.paused()
            self._await_frame(request)
            self._take(request)
        return math.inf

    def _answer(self, reads: Sequence[PendingRead]) -> None:
        self._answered.update(read.number for read in reads)


def _number(unit: Wanted) -> int:
    return int.from_bytes(unit.entry.id, "big")

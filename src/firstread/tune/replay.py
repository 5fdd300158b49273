# SPDX-License-Identifier: Apache-2.0
"""Replays a start: the reads of a trace on a layout over a link. Pure: it has a clock of its own.

Owns the order of events between a workload, the workers of a lane and the link. A workload asks for
its reads one after the other, and thinks between them as long as the trace says; a read that misses
waits for its frames. Which unit a worker fetches next, how far a request reaches and what is read
ahead are decided by the node's own rules (`firstread.fetch.backlog`, `firstread.fetch.queue`).
docs/tune.md says what is not modelled.

Invariant: each unit's bytes arrive once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from firstread.cache.pending import PendingRead
from firstread.fetch.backlog import Backlog
from firstread.fetch.queue import Cause, Filling, request_end, slice_seconds
from firstread.fetch.rate import Rate
from firstread.sectors.source import Span, Wanted
from firstread.tune.layout import Layout, Need
from firstread.tune.link import LinkSpeed, Pipe, Transfer
from firstread.units import KiB

AHEAD_S = 0.025  # as in firstread.fetch.lane
MARGIN, MARGIN_BYTES = 1.1, 16 * KiB  # as in firstread.sectors.decode, before the table is known
MANIFEST_BYTES = 4 * KiB  # of a manifest, and of a config


class Costs(NamedTuple):
    """What a node and its registry need besides the link; measured on two cores.

    Args:
        request_s: of a request, on both sides together.
        event_s: from a waiting read's event to its answer, when the bytes are present.
        worker_bytes_per_s: compressed bytes that one worker decodes, verifies and writes.
        workers: requests at a time.
        trips: round trips of a new connection.
    """

    request_s: float = 0.004
    event_s: float = 0.0004
    worker_bytes_per_s: float = 150e6
    workers: int = 4
    trips: int = 2


class Step(NamedTuple):
    """A read of a workload.

    Args:
        think_s: from the answer of the read before to this one, in seconds.
        needs: units that it waits for.
    """

    think_s: float
    needs: Sequence[Need]


@dataclass
class Replayed:
    """A replayed start.

    Args:
        ready_s: from the beginning of the pull, in seconds.
        waits: seconds that each read waited.
        bytes: that arrived until then, metadata included.
        requests: made until then.
    """

    ready_s: float = 0.0
    waits: list[float] = field(default_factory=list)
    bytes: float = 0.0
    requests: int = 0


@dataclass(eq=False)
class _Request:
    """A request on its way.

    Args:
        batch: the units that it covers.
        transfer: its answer.
        position: of the next unit's bytes among those of the answer.
        last: when bytes came last.
    """

    batch: list[Filling]
    transfer: Transfer
    at: int = 0
    before: float = 0.0
    last: float = 0.0


class Replay:
    """One start.

    Args:
        layout: of the image.
        link: to its registry.
        costs: of the node.
        prefetch: whether the hot units are streamed.
    """

    def __init__(
        self, layout: Layout, link: LinkSpeed, costs: Costs, *, prefetch: bool = False
    ) -> None:
        self._layout, self._costs, self._prefetch = layout, costs, prefetch
        self._pipe = Pipe(link, costs.trips, costs.worker_bytes_per_s)
        self._got: dict[bytes, int] = {}  # stored bytes of each unit by now
        self._verified: dict[bytes, int] = {}
        self._whole: set[int] = set()
        self._backlog = Backlog(lambda unit: self._verified.get(unit.entry.id, 0), 0.1)
        self._rate = Rate()
        self._flying: dict[int, _Request] = {}  # by id() of the transfer
        self._done: set[int] = set()  # numbers of reads that are answered
        self._serial = 0
        self._result = Replayed()

    def run(self, steps: Sequence[Step], end_s: float, pull_s: float = 0.0) -> Replayed:
        """Return how the start goes.

        Args:
            steps: its reads, in order.
            end_s: from the last read to the moment at which the workload is ready.
            pull_s: that the node needs itself before the first read, mount included.
        """
        self._pull()
        if self._prefetch:
            for number in self._layout.stream:
                self._backlog.want(self._layout.units[number], Cause.PREFETCH)
        self._until(self._pipe.now + pull_s)
        for step in steps:
            self._until(self._pipe.now + step.think_s)
            self._result.waits.append(self._read(step.needs))
        self._until(self._pipe.now + end_s)
        self._result.ready_s = self._pipe.now
        self._result.bytes += sum(request.transfer.arrived for request in self._flying.values())
        return self._result

    def _pull(self) -> None:
        """Fetch manifest, config and metadata, one after the other."""
        for size in (MANIFEST_BYTES, MANIFEST_BYTES, self._layout.metadata):
            transfer = self._pipe.request(size, self._costs.request_s)
            while self._pipe.step(math.inf) is None:
                pass
            self._pipe.finish(transfer)
            self._result.requests += 1
            self._result.bytes += size

    # -- the workload --------------------------------------------------------------------------

    def _read(self, needs: Sequence[Need]) -> float:
        """Wait for a read; return how many seconds it took."""
        asked = self._pipe.now
        for unit, end in needs:  # the kernel asks for one chunk after the other
            if unit in self._whole:
                continue
            self._ask(unit, end)
            self._until(self._pipe.now + self._costs.event_s)
        return self._pipe.now - asked

    def _ask(self, number: int, end: int) -> None:
        unit = self._layout.units[number]
        if end <= self._verified.get(unit.entry.id, 0):
            return
        self._serial += 1
        read = PendingRead(self._serial, 0, 0, end, -1, self._pipe.now)
        fast = unit.entry.length < AHEAD_S * self._rate.bytes_per_s
        spare = (lambda _count: True) if fast else None
        self._backlog.request(unit, [read], self._pipe.now, self._layout.behind, spare)
        self._until(math.inf, read.number)

    # -- workers -------------------------------------------------------------------------------

    def _until(self, moment: float, read: int = 0) -> None:
        """Let time pass until `moment`, or until the read `read` is answered."""
        while read not in self._done:
            due = min(moment, self._staff())
            transfer = self._pipe.step(due)
            if transfer is not None:
                self._arrived(self._flying[id(transfer)])
            elif self._pipe.now >= moment:
                return

    def _staff(self) -> float:
        """Give work to idle workers; return when there may be more for them."""
        while len(self._flying) < self._costs.workers:
            batch, wait = self._backlog.take(self._pipe.now)
            if not batch:
                return math.inf if wait is None else self._pipe.now + max(wait, 0.001)
            self._request(batch)
        return math.inf

    def _request(self, batch: list[Filling]) -> None:
        span = self._span(batch)
        transfer = self._pipe.request(span.length, self._costs.request_s)
        request = _Request(batch, transfer, last=transfer.opens)
        self._flying[id(transfer)] = request
        self._result.requests += 1
        batch[0].asks += 1
        self._await_frame(request)

    def _span(self, batch: list[Filling]) -> Span:
        """Return what one request should ask for, as the lane does."""
        first, unit = batch[0], batch[0].sector
        start = unit.entry.offset + self._got.get(unit.entry.id, 0)
        rest = Span(unit.blob, start, unit.span.stop)
        needed = unit.entry.offset + self._reach(unit, first.wanted_end)
        budget = self._rate.bytes_per_s * slice_seconds(first.cause, first.asks)
        stop = request_end(batch, rest, min(max(needed, start), rest.stop), budget)
        return rest._replace(stop=max(stop, start + 1))

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

    def _await_frame(self, request: _Request) -> None:
        """Have the link stop at the end of the frame that comes next, or at that of the answer."""
        filling, transfer = request.batch[request.at], request.transfer
        got = self._got.get(filling.sector.entry.id, 0)
        stored = next(end for _, end in self._layout.frames(_number(filling.sector)) if end > got)
        transfer.wake = min(request.before + stored - got, transfer.size)

    def _arrived(self, request: _Request) -> None:
        """Take the bytes up to the end of a frame, or of the answer."""
        now, transfer = self._pipe.now, request.transfer
        filling = request.batch[request.at]
        unit = filling.sector
        count = round(transfer.arrived - request.before)
        self._rate.note(count, now - request.last)
        request.before, request.last = transfer.arrived, now
        got = self._got[unit.entry.id] = self._got.get(unit.entry.id, 0) + count
        frames = self._layout.frames(_number(unit))
        verified = max((plain for plain, stored in frames if stored <= got), default=0)
        self._verified[unit.entry.id] = verified
        self._answer(self._backlog.progress(filling, verified, now))
        if verified == unit.entry.size:
            self._whole.add(_number(unit))
            filling.active = False
            self._answer(self._backlog.drop(filling))
            request.at += 1
            if request.at < len(request.batch) and transfer.arrived < transfer.size:
                request.batch[request.at].asks += 1
        if transfer.arrived < transfer.size:
            self._await_frame(request)
            return
        self._pipe.finish(transfer)
        del self._flying[id(transfer)]
        self._result.bytes += transfer.size
        for rest in request.batch:
            if rest.active:
                self._backlog.requeue(rest)

    def _answer(self, reads: Sequence[PendingRead]) -> None:
        self._done.update(read.number for read in reads)


def _number(unit: Wanted) -> int:
    return int.from_bytes(unit.entry.id, "big")

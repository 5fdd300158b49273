# SPDX-License-Identifier: Apache-2.0
"""What one lane has to fetch: sectors that are queued, in flight, or paused after a failure. Pure.

Owns which sectors are wanted, which reads wait for each, when each is tried, and the one stream of
what nobody waits for. No I/O, no locks, no clock: its lane has one lock for all of it and passes
the time, in monotonic seconds.

Invariant: a sector is in the backlog once. A read is with one of its sectors until it is returned
here, and it is returned once.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

from firstread.cache.pending import PendingRead
from firstread.errors import FirstreadError
from firstread.fetch.queue import STREAMED, Cause, Filling, Queue
from firstread.fetch.rate import Rate
from firstread.fetch.retry import Outage, asked_s, is_hopeless, may_pass
from firstread.fetch.startplan import StartPlan, Undecided
from firstread.fetch.startwindow import StartWindows
from firstread.fetch.streaks import Streak, Streaks
from firstread.fetch.streaming import Stream, Streaming
from firstread.sectors.source import Span, Wanted

LONG_S = 30.0  # between looks at what nothing but a new read makes more urgent
QUIET_S = 0.2  # without a read on demand, before half-filled sectors are completed

Behind = Callable[[Wanted], Wanted | None]  # gives the sector that follows another in its blob


class Backlog:
    """The sectors that a lane has to fetch.

    Args:
        size: gives the bytes that the file of a sector has.
        first_retry_s: pause after a first failure; it doubles with each further one.
        link: how the source answers.
        quiet_s: without a read on demand, before anything is fetched in the background.

    Attributes:
        streaming: the one stream.
    """

    def __init__(
        self,
        size: Callable[[Wanted], int],
        first_retry_s: float,
        link: Rate | None = None,
        quiet_s: float = 0.0,
    ) -> None:
        self.outage = Outage(first_retry_s)
        self._link, self._quiet_s = link or Rate(), quiet_s
        self._undecided = Undecided()
        self._windows = StartWindows()
        self._size = size
        self._fillings: dict[bytes, Filling] = {}
        self._waiting: set[Filling] = set()  # those that reads wait for
        self._queue = Queue()
        self.streaming = Streaming(self._queue, self._link)
        self._paused: list[tuple[float, int, Filling]] = []  # heap, by the time of the next attempt
        self._serial = itertools.count()
        self._streaks = Streaks()
        self._last_demand = self._last_progress = 0.0

    @property
    def queued(self) -> int:
        """How many sectors a worker could take."""
        return len(self._queue)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._fillings)

    # -- what is wanted ------------------------------------------------------------------------

    def request(
        self,
        sector: Wanted,
        reads: Sequence[PendingRead],
        now: float,
        behind: Behind,
        has_spare: Callable[[int], bool],
    ) -> tuple[bool, list[PendingRead]]:
        """Want a sector for reads, and what a sequential reader will ask for next.

        Args:
            sector: which.
            reads: that wait for it.
            now: see there.
            behind: likewise.
            has_spare: whether so many sectors more fit.

        Returns:
            whether these are the first reads of the sector, and those that can go on now.
        """
        self._last_demand = now
        filling = self.want(sector, Cause.DEMAND, reads)
        if filling is None:
            return False, list(reads)
        first, filling.demanded = not filling.demanded, True
        self._want_streamed(self._windows.confirm(sector.entry.id), Cause.HOT, now)
        if filling.rests is Cause.BACKGROUND:
            filling.rests = Cause.COMPLETION
        done = self.covered(filling)
        offset = min((read.offset for read in reads), default=0)
        streak = self._streaks.demand(filling, offset, self._link.bytes_per_s)
        if streak is not None:
            filling.rests = min(filling.rests, Cause.PREFETCH)
            filling.in_order = streak.is_in_order(sector, self._link.bytes_per_s)
            if streak.is_short(sector):
                self._read_ahead(streak, sector, behind, has_spare)
        return first, done

    def _read_ahead(
        self, streak: Streak, sector: Wanted, behind: Behind, has_spare: Callable[[int], bool]
    ) -> None:
        while not streak.covers(sector) and has_spare(self.queued + 1):
            following = behind(streak.last)
            if following is None:
                return
            streak.last = following
            if (ahead := self.want(following, Cause.PREFETCH)) is not None:
                ahead.rests = min(ahead.rests, Cause.PREFETCH)
                ahead.is_next = not self.streaming.comes_to(following)

    def slow_down(self, sector_id: bytes, failures: int, now: float) -> None:
        """Let a sector that has failed elsewhere wait its pause here, if this source is down too.

        So lanes that are all down do not pass a sector around in haste.
        """
        filling = self._fillings.get(sector_id)
        if failures and self.outage.is_on and filling is not None and not filling.active:
            filling.failures = max(filling.failures, failures)
            self.pause(filling, now)

    def want(
        self, sector: Wanted, cause: Cause, reads: Sequence[PendingRead] = ()
    ) -> Filling | None:
        """Queue a sector; None if it is present."""
        filling = self._fillings.get(sector.entry.id)
        if filling is None:
            size = self._size(sector)
            if size >= sector.entry.size:
                return None
            filling = self._fillings[sector.entry.id] = Filling(sector, filled=size)
        if reads:
            if not filling.reads:
                filling.paused = False  # a new reader need not wait out an old pause
            filling.reads.extend(reads)
            self._waiting.add(filling)
        if not filling.active and not filling.paused and not self.streaming.brings(filling):
            self._queue.put(filling, cause)
        return filling

    def complete(self, sector: Wanted) -> None:
        """Queue a sector that has to come, though nobody waits for it."""
        filling = self.want(sector, Cause.COMPLETION)
        if filling is not None:
            filling.must_come = True
            filling.rests = min(filling.rests, Cause.COMPLETION)

    def prefetch(
        self, plan: StartPlan, hot: Sequence[Wanted], rest: Sequence[Wanted], now: float
    ) -> None:
        """Queue what is fetched of an image though nobody reads it; see `Lane.prefetch`."""
        if plan.mode == "none":
            return
        if plan.is_guess:
            self._windows.add(hot)
        else:
            self._want_streamed(hot, Cause.HOT, now)
        if plan.mode == "all":
            self._want_streamed(rest, Cause.BACKGROUND, now)
        self._undecided.add(plan, rest)

    def _want_streamed(self, sectors: Iterable[Wanted], cause: Cause, now: float) -> None:
        """Queue sectors that nobody waits for, in this order, behind those that are queued so."""
        if cause is Cause.BACKGROUND:
            self._last_demand = max(self._last_demand, now)
        for sector in sectors:
            filling = self._fillings.get(sector.entry.id)
            if filling is None and (filling := self.want(sector, cause)) is None:
                continue
            is_new = filling.rests is Cause.COMPLETION and not filling.must_come
            if cause < filling.rests or is_new:
                filling.rests, filling.order = cause, next(self._serial)
                if not filling.active and not filling.paused:
                    self._queue.put(filling, cause)

    # -- what is wanted no longer --------------------------------------------------------------

    def satisfied(self, filling: Filling) -> list[PendingRead]:
        """Remove and return the reads that the verified prefix of a sector covers."""
        done = filling.satisfied()
        if not filling.reads:
            self._waiting.discard(filling)
        return done

    def covered(self, filling: Filling) -> list[PendingRead]:
        """`satisfied`, also if they were to wait for all of the sector."""
        filling.in_order = False
        return self.satisfied(filling)

    def all_covered(self) -> list[PendingRead]:
        """`covered`, of all sectors."""
        return [read for filling in list(self._waiting) for read in self.covered(filling)]

    def late(
        self, stall_s: Callable[[Wanted], float], now: float
    ) -> list[tuple[Filling, list[PendingRead], float]]:
        """Remove and return reads that have waited too long, and how long that is.

        A read on a link that is merely slow stays as long as something comes.

        Args:
            stall_s: how long reads of a sector may wait.
            now: see there.
        """
        lost = []
        for filling in list(self._waiting):
            seconds = stall_s(filling.sector)
            if not filling.failures and now - self._last_progress <= seconds:
                continue
            if late := filling.late(now - seconds):
                self._relax(filling)
                lost.append((filling, late, seconds))
        return lost

    def without(self, lost: Container[PendingRead]) -> list[PendingRead]:
        """Remove and return those of these reads that are here; their sectors stay wanted."""
        found: list[PendingRead] = []
        for filling in list(self._waiting):
            found += filling.without(lost)
            self._relax(filling)
        return found

    def _relax(self, filling: Filling) -> None:
        """Fetch a sector that no read waits for when there is nothing else to do."""
        if not filling.reads:
            self._waiting.discard(filling)
            self._queue.relax(filling)

    def cancel(self, ids: Container[bytes]) -> None:
        """Forget those of these sectors that no read waits for and no worker is at."""
        for sector_id in list(self._fillings):
            if sector_id in ids:
                self.drop_unused(sector_id)
        self._undecided.cancel(ids)
        self._windows.cancel(ids)

    def drop_unused(self, sector_id: bytes) -> bool:
        """Forget a sector; False if a read waits or a worker is at it."""
        if (filling := self._fillings.get(sector_id)) is not None:
            if filling.active or filling.reads:
                return False
            self.drop(filling)
        return True

    def drop(self, filling: Filling) -> list[PendingRead]:
        """Forget a sector; return the reads that still wait for it."""
        reads, filling.reads = filling.reads, []
        if self._fillings.get(filling.sector.entry.id) is filling:
            del self._fillings[filling.sector.entry.id]
        self._queue.remove(filling)
        self._waiting.discard(filling)
        return reads

    def drop_all(self) -> list[tuple[Filling, list[PendingRead]]]:
        """Forget everything; return the reads that still wait, by sector."""
        return [(filling, self.drop(filling)) for filling in list(self._fillings.values())]

    # -- workers -------------------------------------------------------------------------------

    def take(self, now: float, *, is_last: bool = False) -> tuple[list[Filling], float | None]:
        """Return what a worker should fetch with one request.

        Args:
            now: see there.
            is_last: no other worker is free: it is kept for reads.

        Returns:
            the sectors; or [], and how many seconds to wait before the next look, None if there is
            nothing to wait for.
        """
        while self._paused and self._paused[0][0] <= now:
            _, _, filling = heapq.heappop(self._paused)
            if filling.paused:
                self.requeue(filling)
        causes, wait = self._causes(now)
        batch = self._queue.take([Cause.DEMAND] if is_last else causes, self._link.bytes_per_s)
        for filling in batch:
            filling.active = True
        if batch and batch[0].cause in STREAMED:
            self.streaming.take(batch)
        if self._paused:
            return batch, min(wait, self._paused[0][0] - now)
        return batch, wait if self.queued else None

    def _causes(self, now: float) -> tuple[list[Cause], float]:
        """Return what may be fetched for, and for how many seconds this holds."""
        causes, queue = [Cause.DEMAND], self._queue
        if outage := self.outage.left_s(now):
            return causes, outage
        if not self.streaming.is_hot and self._link.is_known:
            for follows in self._undecided.settle(self._link, self._size):
                self._want_streamed(follows, Cause.HOT, now)
        is_free = self.streaming.now is None
        if is_free:
            causes.append(Cause.HOT)
        if self.streaming.is_hot:
            return causes, LONG_S
        causes.append(Cause.PREFETCH)
        if (quiet := self._last_demand + QUIET_S - now) > 0:
            return causes, quiet
        causes.append(Cause.COMPLETION)
        if is_free and queue.has(Cause.BACKGROUND):
            if (quiet := self._last_demand + self._quiet_s - now) > 0:
                return causes, quiet
            causes.append(Cause.BACKGROUND)
        return causes, LONG_S

    # -- the stream ----------------------------------------------------------------------------

    def leaves_link(self, stream: Stream) -> bool:
        """Return whether reads on demand of something else should have the link to themselves."""
        busy = any(not filling.paused for filling in self._waiting)
        return busy and not stream.is_awaited()

    def begin_stream(self, stream: Stream, rest: Span) -> Span:
        """Return what the request of a stream should ask for; see `Streaming.begin`."""
        span, left = self.streaming.begin(stream, rest)
        for filling in left:
            self.requeue(filling)
        return span

    def end_stream(self, stream: Stream, *, whole: bool, failed: bool) -> None:
        """Note that a stream has ended; fetch on demand what reads have expected of it in vain."""
        for filling in self.streaming.end(stream, whole=whole, failed=failed):
            self.requeue(filling)

    def forgo(self, stream: Stream) -> None:
        """Drop what would be streamed, but for what has to come: there is no room.

        Args:
            stream: that has not begun.
        """
        for filling in list(self._fillings.values()):
            is_free = not filling.active or filling is stream.filling
            if filling.rests not in STREAMED or not is_free or filling.reads:
                continue
            self.drop(filling)
            if filling.must_come:
                self.complete(filling.sector)

    def progress(self, filling: Filling, verified: int, now: float) -> list[PendingRead]:
        """Note the verified bytes of a sector; remove and return the reads that they cover."""
        if verified > filling.filled:
            filling.filled, filling.failures = verified, 0
        self.outage.end()
        self._last_progress = now
        return self.satisfied(filling)

    def fail(
        self, failed: Filling, error: FirstreadError, on_corruption: str, now: float
    ) -> list[PendingRead] | None:
        """Note a failure; return the reads of what is hopeless, None if it is tried again."""
        failed.failures += 1
        if may_pass(error):
            self.outage.fail(now)
        else:
            failed.decoder = None
        if is_hopeless(error, failed.failures, on_corruption):
            failed.active = False
            return self.drop(failed)
        if failed.reads or not error.retryable:
            self.pause(failed, now, asked_s(error))
        else:
            self.requeue(failed)
        return None

    def requeue(self, filling: Filling) -> None:
        """Queue a sector again, unless it was dropped."""
        filling.active = filling.paused = False
        if self._fillings.get(filling.sector.entry.id) is not filling:
            return
        cause = filling.rests if filling.asks else filling.cause
        if filling.reads:
            cause = Cause.DEMAND
        put = self._queue.put_back if cause is Cause.PREFETCH else self._queue.put
        put(filling, cause)

    def pause(self, filling: Filling, now: float, least_s: float = 0.0) -> None:
        """Try a sector again after a pause, or when a new reader comes."""
        self._queue.remove(filling)
        filling.active, filling.paused = False, True
        due = now + max(self.outage.pause_s(filling.failures), least_s)
        heapq.heappush(self._paused, (due, next(self._serial), filling))

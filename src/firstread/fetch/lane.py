# SPDX-License-Identifier: Apache-2.0
"""A lane: the workers that fetch from one image repository.

Owns the threads and the retries; `firstread.fetch.filler` has the one ranged request that each of
them makes at a time. Lanes share nothing, so a registry that hangs holds up only the images that
come from it. Five nouns of the node take part, each given from outside: `Files` take verified
content, `Space` says what is here and what fits, `Outcome` decides what becomes of reads, `Counts`
counts, and a policy says how patient reads are.

One lock a lane. While it is held no sector file is written, no event answered, nothing fetched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence

from firstread.cache.pending import PendingRead
from firstread.config import PolicyTable, PrefetchTable
from firstread.errors import FirstreadError, NodeError, TransportError, from_shortage
from firstread.fetch.backlog import Backlog, Behind
from firstread.fetch.filler import Filler
from firstread.fetch.queue import Filling
from firstread.fetch.rate import Rate
from firstread.fetch.sides import Counts, Files, Outcome, Space
from firstread.fetch.startplan import StartPlan
from firstread.fetch.streamer import Streamer
from firstread.oci.model import Descriptor
from firstread.oci.repository import Repository
from firstread.opener import HeldUpError
from firstread.sectors.source import Wanted, Window

log = logging.getLogger("lane")

IDLE_S = 30.0  # after which a worker without work ends
HELD_UP_S = 0.5  # before the next attempt to open what another process does not let be opened
_UNMOUNTED = "the image is not mounted any more"


class Lane:
    """Fetches sectors of the images in one repository.

    Args:
        name: of the repository, for people.
        open_repository: opens it, when the first sector is wanted.
        files: where the content goes.
        space: in the store.
        outcome: of fetches.
        counts: of what happens.
        policy: what holds for reads of a sector; called with the lock held, must not block.
        workers: requests at a time.
        prefetch: limits of what is fetched in the background.
        first_retry_s: pause after a first failure; it doubles with each further one.

    Attributes:
        link: as far as it was measured.
    """

    def __init__(
        self,
        name: str,
        open_repository: Callable[[], Repository],
        files: Files,
        space: Space,
        outcome: Outcome,
        counts: Counts,
        policy: Callable[[Wanted], PolicyTable],
        *,
        workers: int,
        prefetch: PrefetchTable,
        first_retry_s: float = 0.1,
    ) -> None:
        self.name = name
        self._space, self._outcome = space, outcome
        self._counts, self._policy = counts, policy
        self._workers = workers
        lock = threading.RLock()
        self._changed, calm = threading.Condition(lock), threading.Condition(lock)
        self._calm = calm  # notified when reads come or have their bytes
        self.link = link = Rate()
        self._backlog = backlog = Backlog(space.size, first_retry_s, link, prefetch.quiet_s)
        self._filler = filler = Filler(
            name, open_repository, files, outcome, counts, backlog, link, self._changed, calm
        )
        self._streamer = Streamer(
            filler,
            backlog,
            space,
            link,
            calm,
            lambda: self._closed,
            most_per_s=int(prefetch.rate),
        )
        self._threads = self._idle = 0
        self._closed = False

    # -- what is wanted ------------------------------------------------------------------------

    def request(
        self,
        sector: Wanted,
        reads: Sequence[PendingRead],
        behind: Behind,
        *,
        failures: int = 0,
    ) -> None:
        """Fetch a sector for reads that wait for it.

        Args:
            sector: which.
            reads: that wait for it.
            behind: gives the sector that follows another in its blob.
            failures: attempts elsewhere that failed. A lane that is down makes the pause that they
                ask for, so that lanes that are all down do not pass a sector around in haste.
        """
        now, first, done = time.monotonic(), False, list[PendingRead]()
        with self._changed:
            # It may have been closed between the look for a lane and here.
            closed = self._closed
            if not closed:
                spare = self._spare(sector)
                first, done = self._backlog.request(sector, reads, now, behind, spare)
                self._staff()
                self._backlog.slow_down(sector.entry.id, failures, now)
                self._calm.notify_all()
        if closed:
            self._outcome.give_up(Filling(sector), reads, NodeError(_UNMOUNTED), self)
        if first:
            self._counts.demanded(sector)
        if done:
            self._outcome.allow(done)

    def _spare(self, sector: Wanted) -> Callable[[int], bool]:
        return lambda count: self._space.has_spare(count, sector)

    def complete(self, sector: Wanted) -> None:
        """Fetch a sector that nobody waits for, when there is nothing else to do."""
        with self._changed:
            self._backlog.complete(sector)
            self._staff()

    def prefetch(self, plan: StartPlan, hot: Sequence[Wanted], rest: Sequence[Wanted]) -> None:
        """Fetch of an image that is served what nobody reads yet.

        Args:
            plan: how much of it.
            hot: its absent hot sectors, in the order in which a start reads them.
            rest: the other absent ones, in the order of their blobs; [] if they stay lazy.
        """
        with self._changed:
            if not self._closed:
                self._backlog.prefetch(plan, hot, rest, time.monotonic())
                self._staff()

    def cancel(self, ids: Container[bytes]) -> None:
        """Do not fetch these sectors any more, unless a read waits or a worker is at it."""
        with self._changed:
            self._backlog.cancel(ids)

    def release_file(self, sector_id: bytes) -> bool:
        """Forget a sector whose file is to be emptied; False if a read waits or a worker is at it.

        The lane forgets what it knows of the file's prefix, too.
        """
        with self._changed:
            return self._backlog.drop_unused(sector_id)

    def expire(self) -> None:
        """Give up reads that have waited too long for a source that fails.

        A read on a link that is merely slow is not given up as long as something comes.
        """
        with self._changed:
            self._staff()
            covered = self._backlog.all_covered()
            lost = self._backlog.late(lambda s: self._policy(s).stall_s, time.monotonic())
        self._outcome.allow(covered)
        for filling, reads, seconds in lost:
            error = TransportError(f"nothing came from {self.name} for {seconds:g} s")
            self._outcome.give_up(filling, reads, error, self)

    def cancel_reads(self, lost: Container[PendingRead]) -> list[PendingRead]:
        """Return those of these reads that wait here, and forget them: nobody waits for them.

        A sector that no read waits for now is fetched when there is nothing else to do.
        """
        with self._changed:
            return self._backlog.without(lost)

    def release_reads(self, filling: Filling) -> list[PendingRead]:
        """Stop fetching a sector, unless a worker is at it; return the reads that wait for it."""
        with self._changed:
            return self._backlog.drop(filling) if filling.reads and not filling.active else []

    def close(self) -> None:
        """End the workers; what waits still, fails."""
        with self._changed:
            self._closed = True
            lost = self._backlog.drop_all()
            self._changed.notify_all()
            self._calm.notify_all()
        for filling, reads in lost:
            if reads:
                self._outcome.give_up(filling, reads, NodeError(_UNMOUNTED), self)
        self._filler.close()

    def prepare(self, blobs: Iterable[Descriptor]) -> None:
        """As `Filler.prepare`."""
        self._filler.prepare(blobs)

    @property
    def source(self) -> str:
        """The endpoint that answered last, if the repository knows several."""
        return self._filler.answered

    @property
    def closed(self) -> bool:
        """Whether no image is mounted from here any more."""
        return self._closed

    @property
    def is_down(self) -> bool:
        """Whether the source has failed more than once since something came last."""
        return self._backlog.outage.is_on

    def wanted(self) -> list[bytes]:
        """Return the ids of the sectors that are being fetched or queued."""
        with self._changed:
            return list(self._backlog)

    # -- workers -------------------------------------------------------------------------------

    @property
    def _least_workers(self) -> int:
        """How many it takes for a read not to wait for the stream."""
        return 1 if self._backlog.streaming.now is None else 2

    def _staff(self) -> None:
        """Wake a worker, or hire one."""
        if self._idle:
            self._changed.notify()
        elif self._backlog.queued and self._threads < max(self._workers, self._least_workers):
            try:
                threading.Thread(target=self._work, name="lane", daemon=True).start()
            except RuntimeError as exc:  # `expire` tries it again
                log.warning("reads wait: %s", exc)
            else:
                self._threads += 1

    def _work(self) -> None:
        window = Window()
        while batch := self._next():
            try:
                if (stream := self._backlog.streaming.of(batch)) is not None:
                    self._streamer.run(stream, window)
                else:
                    self._filler.fetch(batch, window)
                self._rest(batch)
            except HeldUpError:
                self._put_off(batch)
            except FirstreadError as exc:
                self._retry(batch, exc)
            except Exception as exc:
                log.exception("a worker failed")
                self._retry(batch, from_shortage(exc) or NodeError(f"internal error: {exc}"))

    def _next(self) -> list[Filling]:
        """Wait for something to fetch; [] when this worker is not needed any more."""
        with self._changed:
            until = time.monotonic() + IDLE_S
            while not self._closed:
                now = time.monotonic()
                is_last = 1 < self._workers <= self._threads - self._idle
                batch, wait = self._backlog.take(now, is_last=is_last)
                if batch:
                    self._staff()
                    return batch
                if wait is None:
                    wait = until - now
                    if wait <= 0:
                        break
                self._idle += 1
                self._changed.wait(max(0.001, wait))
                self._idle -= 1
            self._threads -= 1
            return []

    def _rest(self, batch: list[Filling]) -> None:
        """Queue again what a request has not covered."""
        done = list[PendingRead]()
        with self._changed:
            for filling in batch:
                done += self._backlog.covered(filling)
                if filling.active:
                    self._backlog.requeue(filling)
            self._staff()
        self._outcome.allow(done)

    # -- failure -------------------------------------------------------------------------------

    def _put_off(self, batch: list[Filling]) -> None:
        """Try later what has no read that waits, and so no descriptor; it has not failed."""
        with self._changed:
            for filling in batch:
                if filling.active and filling.reads:
                    self._backlog.requeue(filling)
                elif filling.active:
                    self._backlog.pause(filling, time.monotonic(), HELD_UP_S)
            self._staff()

    def _retry(self, batch: list[Filling], error: FirstreadError) -> None:
        """Try again what failed, after a pause; give up on what cannot get better.

        Only the sector that a worker was at has failed; those behind it are queued again.
        """
        unfinished = [filling for filling in batch if filling.active]
        if not unfinished:
            return
        failed, *others = unfinished
        with self._changed:
            done = self._backlog.covered(failed)
            for filling in others:
                self._backlog.requeue(filling)
            on_corruption = self._policy(failed.sector).on_corruption
            lost = self._backlog.fail(failed, error, on_corruption, time.monotonic())
            self._changed.notify()
        self._outcome.allow(done)
        self._outcome.failed(failed, error, self)
        if lost is not None:
            self._outcome.give_up(failed, lost, error, self)

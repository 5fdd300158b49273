# SPDX-License-Identifier: Apache-2.0
"""A lane: the workers that fetch from one image repository.

Owns the threads, the one ranged request that each of them has open, and the retries. Lanes share
nothing, so a registry that hangs holds up only the images that come from it. Five nouns of the node
take part, each given from outside: `Files` take verified content, `Space` says what is here and
what fits, `Outcome` decides what becomes of reads, `Counts` counts, and a policy says how patient
reads are.

One lock a lane. While it is held no sector file is written, no event answered, nothing fetched.

Invariant: a sector file grows only from where it ends. A worker looks at its size anew whenever it
begins, through the descriptor that it writes to, so what happened to the file meanwhile can cost a
fetch, but never leaves a hole.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from io import FileIO
from typing import Any

from firstread.cache.pending import PendingRead
from firstread.config import PolicyTable
from firstread.errors import FirstreadError, ImageError, NodeError, TransportError
from firstread.fetch.backlog import Backlog, Behind
from firstread.fetch.queue import Cause, Filling, request_end, slice_seconds
from firstread.fetch.rate import Rate
from firstread.fetch.sides import Counts, Files, Outcome, Space
from firstread.fetch.target import Target
from firstread.oci.model import Descriptor
from firstread.oci.repository import Repository
from firstread.opener import HeldUpError
from firstread.sectors.native import NativeSource
from firstread.sectors.source import Decoding, Incoming, Source, Span, Wanted, Window

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
        first_retry_s: pause after a first failure; it doubles with each further one.
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
        first_retry_s: float = 0.1,
    ) -> None:
        self.name = name
        self.source = name  # who answered last, if the repository knows several
        self._open_repository = open_repository
        self._source: Source[Any] | None = None
        self._opening = threading.Lock()
        self._files, self._space, self._outcome = files, space, outcome
        self._counts, self._policy = counts, policy
        self._workers = workers
        self._changed = threading.Condition()
        self._rate = Rate()
        self._backlog = Backlog(space.size, first_retry_s, self._rate)
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
            self._backlog.want(sector, Cause.COMPLETION)
            self._staff()

    def cancel(self, ids: Container[bytes]) -> None:
        """Do not fetch these sectors any more, unless a read waits or a worker is at it."""
        with self._changed:
            for sector_id in list(self._backlog):
                if sector_id in ids:
                    self._backlog.drop_unused(sector_id)

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
            lost = self._backlog.late(lambda s: self._policy(s).stall_s, time.monotonic())
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
        for filling, reads in lost:
            if reads:
                self._outcome.give_up(filling, reads, NodeError(_UNMOUNTED), self)
        with self._opening:
            if self._source is not None:
                self._source.close()

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

    def _staff(self) -> None:
        """Wake a worker, or hire one."""
        if self._idle:
            self._changed.notify()
        elif self._backlog.queued and self._threads < self._workers:
            self._threads += 1
            threading.Thread(target=self._work, name="lane", daemon=True).start()

    def _work(self) -> None:
        window = Window()
        while batch := self._next():
            try:
                self._fetch(batch, window)
            except HeldUpError:
                self._put_off(batch)
            except FirstreadError as exc:
                self._retry(batch, exc)
            except Exception as exc:
                log.exception("a worker failed")
                self._retry(batch, NodeError(f"internal error: {exc}"))

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

    def _fetch(self, batch: list[Filling], window: Window) -> None:
        """Fetch of `batch`, whose sectors lie behind each other, what one request should cover."""
        first, source = batch[0], self._opened()
        target = self._begin(source, first)
        with target:
            with self._changed:
                span = self._span(source, batch, target.decoder)
            self._counts.requested(first, span.length)
            with source.open(span, window, self._rate.note) as incoming:
                try:
                    self._fill(source, first, target, incoming)
                    for filling in batch[1:]:
                        if incoming.left:
                            target = self._begin(source, filling)
                            self._fill(source, filling, target, incoming)
                except ImageError:
                    incoming.stream.distrust()  # the next attempt should go elsewhere
                    raise
        self._rest(batch)

    def _span(self, source: Source[Any], batch: list[Filling], known: Decoding) -> Span:
        """Return what one request should ask for; with the lock held."""
        first, sector = batch[0], batch[0].sector
        left = source.covering(sector, known.verified, sector.entry.size)
        wanted = source.covering(sector, known.verified, first.wanted_end)
        nothing = sector.span._replace(start=sector.span.stop)
        rest = next(iter(source.plan(sector, left, known)), nothing)
        needed = source.plan(sector, wanted, known)[0].stop if wanted else rest.start
        budget = self._rate.bytes_per_s * slice_seconds(first.cause, first.asks)
        return rest._replace(stop=request_end(batch, rest, min(needed, rest.stop), budget))

    def prepare(self, blobs: Iterable[Descriptor]) -> None:
        """Open all by its name now that fetching from these blobs will need.

        Later the read that waits may be one of a process that lets no file be opened meanwhile.
        """
        try:
            self._opened().prepare(blobs)
        except FirstreadError as exc:
            log.info("%s is not here now: %s", self.name, exc)  # its reads will wait for it

    def _opened(self) -> Source[Any]:
        with self._opening:
            if self._source is None:
                self._source = NativeSource(self._open_repository())
            return self._source

    def _begin(self, source: Source[Any], filling: Filling) -> Target:
        """Open the file of a sector, and see to it that its decoder goes on where the file ends."""
        sector = filling.sector
        room = self._files.admit(sector)
        try:
            with self._changed:
                beside = filling.reads[0].fd if filling.reads else None
                fd = self._files.open(sector, beside) if beside is not None else -1
            file = FileIO(fd if fd >= 0 else self._files.open(sector, None), "r+")
            with self._changed:
                filling.filled = os.fstat(file.fileno()).st_size
                decoder = filling.decoder
                if decoder is None or decoder.verified > filling.filled:
                    decoder = filling.decoder = source.begin(sector)
        except BaseException:
            self._files.leave(sector, room)
            raise
        return Target(file, decoder, lambda: self._files.leave(sector, room))

    def _fill(
        self,
        source: Source[Any],
        filling: Filling,
        target: Target,
        incoming: Incoming,
    ) -> None:
        """Stream one sector into its file, as far as the request goes."""
        file, decoder = target.file, target.decoder
        filling.asks += 1
        before = incoming.left
        with target:
            try:
                for frame in source.decode(filling.sector, decoder, incoming):
                    if decoder.verified > filling.filled:
                        self._files.write(filling.sector, file.fileno(), frame.offset, frame.data)
                    self._progress(filling, decoder.verified)
            except ImageError as exc:
                self._outcome.corrupt(filling, *decoder.suspect, exc, self)
                raise
            finally:
                filling.source = self.source = incoming.source or self.name
                self._counts.received(filling, before - incoming.left)
            if decoder.done:
                self._finish(filling, file.fileno())

    def _progress(self, filling: Filling, verified: int) -> None:
        """Let go the reads that the sector's first `verified` bytes cover."""
        with self._changed:
            done = self._backlog.progress(filling, verified, time.monotonic())
        if done:
            self._outcome.allow(done)

    def _finish(self, filling: Filling, fd: int) -> None:
        self._files.commit(filling.sector, fd)
        self._outcome.completed(filling)
        with self._changed:
            filling.active = False
            done = self._backlog.drop(filling)
        self._outcome.allow(done)

    def _rest(self, batch: list[Filling]) -> None:
        """Queue again what a request has not covered."""
        with self._changed:
            for filling in batch:
                if filling.active:
                    self._backlog.requeue(filling)
            self._staff()

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
            for filling in others:
                self._backlog.requeue(filling)
            on_corruption = self._policy(failed.sector).on_corruption
            lost = self._backlog.fail(failed, error, on_corruption, time.monotonic())
            self._changed.notify()
        self._outcome.failed(failed, error, self)
        if lost is not None:
            self._outcome.give_up(failed, lost, error, self)

# SPDX-License-Identifier: Apache-2.0
"""A lane: the workers that fetch from one image repository.

Owns the threads, the one ranged request that each of them has open, and the retries. Lanes share
nothing, so a registry that hangs holds up only the images that come from it. Where verified content
goes, and what becomes of those who wait, is the `Filler`'s business.

One lock a lane. While it is held no sector file is written, no event answered, nothing fetched.

Invariant: a sector file grows only from where it ends. Its size is looked at anew whenever a worker
begins, through the descriptor that it writes to, so what happened to the file meanwhile can cost a
fetch, but never leaves a hole.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from io import FileIO
from typing import Protocol

from firstread.config import PolicyTable
from firstread.errors import FirstreadError, ImageError, NodeError, TransportError
from firstread.node.filling import (
    Ahead,
    Cause,
    Filling,
    Queue,
    Waiter,
    Wanted,
    request_end,
    slice_seconds,
)
from firstread.node.opener import HeldUpError
from firstread.node.retry import Outage, asked_s, is_hopeless, may_pass
from firstread.node.target import Target
from firstread.node.transfer import Rate, Transfer, Window, bare_decoder
from firstread.oci.model import Descriptor
from firstread.oci.repository import Repository

log = logging.getLogger("lane")

IDLE_S = 30.0  # after which a worker without work ends
QUIET_S = 0.2  # without a read on demand, before half-filled sectors are completed
HELD_UP_S = 0.5  # before the next attempt to open what another process does not let be opened
AHEAD_S = 0.025  # a link that takes longer for a sector has no room for prefetch
_UNMOUNTED = "the image is not mounted any more"


class Filler(Protocol):
    """Where verified content goes. Called without the lane's lock, by any worker."""

    def size(self, sector: Wanted) -> int:
        """Return the bytes that the sector's file has. With the lock held; must not block."""

    def admit(self, sector: Wanted) -> int:
        """Wait for room for a sector, and keep its file from being emptied; return the room.

        Raises:
            NodeError: there is none.
        """

    def has_spare(self, sectors: int, sector: Wanted) -> bool:
        """Return whether there is room for so many sectors like this one that nobody waits for.

        With the lock held; must not block.
        """

    def leave(self, sector: Wanted, room: int) -> None:
        """The file is not written to any more; `room` is what `admit` gave."""

    def open(self, sector: Wanted, beside: int | None) -> int:
        """Return a new descriptor of the sector's file.

        Args:
            sector: which.
            beside: descriptor of the file that came with an event, if a read waits. Then it is
                called with the lock held, and must not block.

        Raises:
            HeldUpError: it cannot be opened by its name just now.
        """

    def write(self, fd: int, position: int, frame: memoryview) -> None:
        """Write a verified frame into the sector file at `position`."""

    def present(self, filling: Filling, fd: int) -> None:
        """The sector is whole: no more events are needed of it."""

    def answer(self, waiters: Sequence[Waiter]) -> None:
        """Let reads go on."""

    def give_up(
        self, filling: Filling, waiters: Sequence[Waiter], error: FirstreadError, lane: Lane
    ) -> None:
        """A sector cannot be had from `lane`: find another way, or let its reads fail.

        There may be none: then it is missing only where all of an image is to be on this node.
        """

    def demanded(self, sector: Wanted) -> None:
        """Count the first read that asks for a sector."""

    def requested(self, filling: Filling, size: int) -> None:
        """Count a request of `size` bytes that begins with this sector."""

    def received(self, filling: Filling, count: int) -> None:
        """Count compressed bytes that came for a sector."""

    def policy(self, sector: Wanted) -> PolicyTable:
        """Return what holds for reads of a sector. With the lock held; must not block."""

    def corrupt(
        self, filling: Filling, offset: int, data: bytes, error: ImageError, lane: Lane
    ) -> None:
        """Note wrong bytes of a sector, and where among its compressed ones they begin."""

    def failed(self, filling: Filling, error: FirstreadError, lane: Lane) -> None:
        """Note an attempt that failed; another lane may be asked instead, see `Lane.let_go`."""


class Lane:
    """Fetches sectors of the images in one repository.

    Args:
        name: of the repository, for people.
        open_repository: opens it, when the first sector is wanted.
        filler: where the content goes.
        workers: requests at a time.
        first_retry_s: pause after a first failure; it doubles with each further one.
    """

    def __init__(
        self,
        name: str,
        open_repository: Callable[[], Repository],
        filler: Filler,
        *,
        workers: int,
        first_retry_s: float = 0.1,
    ) -> None:
        self.name = name
        self.source = name  # who answered last, if the repository knows several
        self._open_repository = open_repository
        self._repository: Repository | None = None
        self._opening = threading.Lock()
        self._filler = filler
        self._workers = workers
        self._changed = threading.Condition()
        self._queue = Queue()
        self._fillings: dict[bytes, Filling] = {}  # all that are wanted and not present
        self._waiting: set[Filling] = set()  # those that reads wait for
        self._retries: list[tuple[float, int, Filling]] = []  # heap, by time
        self._serial = itertools.count()
        self._ahead = Ahead()
        self._rate = Rate()
        self._threads = self._idle = 0
        self._last_demand = self._last_progress = 0.0
        self._outage = Outage(first_retry_s)
        self._closed = False

    # -- what is wanted ------------------------------------------------------------------------

    def demand(
        self,
        sector: Wanted,
        waiters: Sequence[Waiter],
        behind: Callable[[Wanted], Wanted | None],
        *,
        failures: int = 0,
    ) -> None:
        """Fetch a sector for reads that wait for it.

        Args:
            sector: which.
            waiters: the reads.
            behind: gives the sector that follows another in its blob.
            failures: attempts elsewhere that failed. A lane that is down makes the pause that they
                ask for, so that lanes that are all down do not pass a sector around in haste.
        """
        with self._changed:
            # It may have been closed between the look for a lane and here.
            closed = self._closed
            first, done = (False, []) if closed else self._demand(sector, waiters, behind)
            filling = self._fillings.get(sector.entry.id)
            if failures and self.is_down and filling is not None and not filling.active:
                filling.failures = max(filling.failures, failures)
                self._queue.remove(filling)
                self._postpone(filling)
        if closed:
            self._filler.give_up(Filling(sector), waiters, NodeError(_UNMOUNTED), self)
        if first:
            self._filler.demanded(sector)
        if done:
            self._filler.answer(done)

    def _demand(
        self, sector: Wanted, waiters: Sequence[Waiter], behind: Callable[[Wanted], Wanted | None]
    ) -> tuple[bool, list[Waiter]]:
        """Return whether it is the first read of the sector, and those that can go on now."""
        first = False
        self._last_demand = time.monotonic()
        filling = self._want(sector, Cause.DEMAND, waiters)
        if filling is None:
            done = list(waiters)
        else:
            first, filling.demanded = not filling.demanded, True
            done = self._satisfied(filling)
            following: Wanted | None = sector
            for count in range(self._ahead.demand(filling) if self._is_fast(sector) else 0):
                if not self._filler.has_spare(count + 1, sector):
                    break
                following = behind(following) if following else None
                ahead = following and self._want(following, Cause.PREFETCH)
                if ahead:
                    self._ahead.go_on(ahead)
        self._staff()
        return first, done

    def complete(self, sector: Wanted) -> None:
        """Fetch a sector that nobody waits for, when there is nothing else to do."""
        with self._changed:
            self._want(sector, Cause.COMPLETION)
            self._staff()

    def forget(self, ids: Container[bytes]) -> None:
        """Do not fetch these sectors any more, unless a read waits or a worker is at it."""
        with self._changed:
            for sector_id, filling in list(self._fillings.items()):
                if sector_id in ids and not filling.active and not filling.waiters:
                    self._drop(filling)

    def let_go_file(self, sector_id: bytes) -> bool:
        """Forget a sector whose file is to be emptied; False if a read waits or a worker is at it.

        What is known of the file's prefix is forgotten with it.
        """
        with self._changed:
            filling = self._fillings.get(sector_id)
            if filling is None:
                return True
            if filling.active or filling.waiters:
                return False
            self._drop(filling)
            return True

    def expire(self) -> None:
        """Give up reads that have waited too long for a source that fails.

        A read on a link that is merely slow is not given up as long as something comes.
        """
        now = time.monotonic()
        lost = []
        with self._changed:
            for filling in list(self._waiting):
                stall_s = self._filler.policy(filling.sector).stall_s
                if filling.failures or now - self._last_progress > stall_s:
                    late = filling.late(now - stall_s)
                    if not filling.waiters:
                        self._waiting.discard(filling)
                        self._queue.relax(filling)
                    lost.append((filling, late, stall_s))
        for filling, waiters, stall_s in lost:
            if waiters:
                error = TransportError(f"nothing came from {self.name} for {stall_s:g} s")
                self._filler.give_up(filling, waiters, error, self)

    def abandon(self, lost: Container[Waiter]) -> list[Waiter]:
        """Forget those of these reads that wait here, because nobody waits for them any more.

        A sector that no read waits for now is fetched when there is nothing else to do.
        """
        found: list[Waiter] = []
        with self._changed:
            for filling in list(self._waiting):
                found += filling.without(lost)
                if not filling.waiters:
                    self._waiting.discard(filling)
                    self._queue.relax(filling)
        return found

    def close(self) -> None:
        """End the workers; what waits still, fails."""
        with self._changed:
            self._closed = True
            lost = [(filling, self._drop(filling)) for filling in list(self._fillings.values())]
            self._changed.notify_all()
        for filling, waiters in lost:
            if waiters:
                self._filler.give_up(filling, waiters, NodeError(_UNMOUNTED), self)
        with self._opening:
            if self._repository is not None:
                self._repository.close()

    def let_go(self, filling: Filling) -> list[Waiter]:
        """Stop fetching a sector, unless a worker is at it; return the reads that wait for it."""
        with self._changed:
            return self._drop(filling) if filling.waiters and not filling.active else []

    @property
    def closed(self) -> bool:
        """Whether no image is mounted from here any more."""
        return self._closed

    @property
    def is_down(self) -> bool:
        """Whether the source has failed more than once since something came last."""
        return self._outage.is_on

    def wanted(self) -> list[bytes]:
        """Return the ids of the sectors that are being fetched or queued."""
        with self._changed:
            return list(self._fillings)

    def _is_fast(self, sector: Wanted) -> bool:
        """Return whether the link has room for what may not be needed."""
        return sector.entry.length < AHEAD_S * self._rate.bytes_per_s

    def _want(self, sector: Wanted, cause: Cause, waiters: Sequence[Waiter] = ()) -> Filling | None:
        """Return the filling of a sector, queued; None if the sector is present."""
        filling = self._fillings.get(sector.entry.id)
        if filling is None:
            size = self._filler.size(sector)
            if size >= sector.entry.size:
                return None
            filling = self._fillings[sector.entry.id] = Filling(sector, filled=size)
        if waiters:
            if not filling.waiters:
                filling.paused = False  # a new reader need not wait out an old pause
            filling.waiters.extend(waiters)
            self._waiting.add(filling)
        if not filling.active and not filling.paused:
            self._queue.put(filling, cause)
        return filling

    # -- workers -------------------------------------------------------------------------------

    def _staff(self) -> None:
        """Wake a worker, or hire one."""
        if self._idle:
            self._changed.notify()
        elif len(self._queue) and self._threads < self._workers:
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
                while self._retries and self._retries[0][0] <= now:
                    _, _, filling = heapq.heappop(self._retries)
                    if filling.paused:
                        self._resume(filling)
                least, wait = self._least(now)
                batch = self._queue.take(least)
                if batch:
                    for filling in batch:
                        filling.active = True
                    self._staff()
                    return batch
                if self._retries:
                    wait = min(wait, self._retries[0][0] - now)
                elif not len(self._queue):
                    wait = until - now
                    if wait <= 0:
                        break
                self._idle += 1
                self._changed.wait(max(0.001, wait))
                self._idle -= 1
            self._threads -= 1
            return []

    def _least(self, now: float) -> tuple[Cause, float]:
        """Return the least urgent cause to fetch for, and for how many seconds this holds."""
        if outage := self._outage.left_s(now):
            return Cause.DEMAND, outage
        quiet = self._last_demand + QUIET_S - now
        return (Cause.PREFETCH, quiet) if quiet > 0 else (Cause.COMPLETION, IDLE_S)

    def _fetch(self, batch: list[Filling], window: Window) -> None:
        """Fetch of `batch`, whose sectors lie behind each other, what one request should cover."""
        first, repository = batch[0], self._opened()
        target = self._begin(first)
        with target:
            with self._changed:
                seconds = slice_seconds(first.cause, first.asks)
                start, stop = first.start, request_end(batch, self._rate.bytes_per_s * seconds)
            length, blob = stop - start, first.sector.blob
            self._filler.requested(first, length)
            with repository.open_blob(blob, offset=start, length=length) as stream:
                transfer = Transfer(stream, length, window, self._rate)
                try:
                    self._fill(first, target, transfer)
                    for filling in batch[1:]:
                        if transfer.left:
                            self._fill(filling, self._begin(filling), transfer)
                except ImageError:
                    stream.distrust()  # the next attempt should go elsewhere
                    raise
        self._rest(batch)

    def prepare(self, blobs: Iterable[Descriptor]) -> None:
        """Open all by its name now that fetching from these blobs will need.

        Later the read that waits may be one of a process that lets no file be opened meanwhile.
        """
        try:
            self._opened().prepare(blobs)
        except FirstreadError as exc:
            log.info("%s is not here now: %s", self.name, exc)  # its reads will wait for it

    def _opened(self) -> Repository:
        with self._opening:
            if self._repository is None:
                self._repository = self._open_repository()
            return self._repository

    def _begin(self, filling: Filling) -> Target:
        """Open the file of a sector, and see to it that its decoder goes on where the file ends."""
        sector = filling.sector
        room = self._filler.admit(sector)
        try:
            with self._changed:
                beside = filling.waiters[0][0].fd if filling.waiters else None
                fd = self._filler.open(sector, beside) if beside is not None else -1
            file = FileIO(fd if fd >= 0 else self._filler.open(sector, None), "r+")
            with self._changed:
                filling.filled = os.fstat(file.fileno()).st_size
                decoder = filling.decoder
                if decoder is None or decoder.verified > filling.filled:
                    decoder = filling.decoder = bare_decoder(sector.entry, sector.geometry)
        except BaseException:
            self._filler.leave(sector, room)
            raise
        return Target(file, decoder, lambda: self._filler.leave(sector, room))

    def _fill(self, filling: Filling, target: Target, transfer: Transfer) -> None:
        """Stream one sector into its file, as far as the request goes."""
        file, decoder = target.file, target.decoder
        filling.asks += 1
        before = transfer.left
        with target:
            try:
                for frame in transfer.frames(decoder, filling.sector.geometry):
                    if decoder.verified > filling.filled:
                        position = decoder.verified - len(frame)
                        self._filler.write(file.fileno(), position, frame)
                    self._progress(filling, decoder.verified)
            except ImageError as exc:
                self._filler.corrupt(filling, *decoder.suspect, exc, self)
                raise
            finally:
                filling.source = self.source = transfer.source or self.name
                self._filler.received(filling, before - transfer.left)
            if decoder.done:
                self._finish(filling, file.fileno())

    def _progress(self, filling: Filling, verified: int) -> None:
        """Let go the reads that the sector's first `verified` bytes cover."""
        with self._changed:
            if verified > filling.filled:
                filling.filled, filling.failures = verified, 0
            self._outage.end()
            self._last_progress = time.monotonic()
            done = self._satisfied(filling)
        if done:
            self._filler.answer(done)

    def _satisfied(self, filling: Filling) -> list[Waiter]:
        done = filling.satisfied()
        if not filling.waiters:
            self._waiting.discard(filling)
        return done

    def _finish(self, filling: Filling, fd: int) -> None:
        self._filler.present(filling, fd)
        with self._changed:
            filling.active = False
            done = self._drop(filling)
        self._filler.answer(done)

    def _rest(self, batch: list[Filling]) -> None:
        """Queue again what a request has not covered."""
        with self._changed:
            for filling in batch:
                if filling.active:
                    self._resume(filling)
            self._staff()

    def _put_off(self, batch: list[Filling]) -> None:
        """Try later what has no read that waits, and so no descriptor; it has not failed."""
        with self._changed:
            for filling in batch:
                if filling.active and filling.waiters:
                    self._resume(filling)
                elif filling.active:
                    self._postpone(filling, HELD_UP_S)
            self._staff()

    # -- failure -------------------------------------------------------------------------------

    def _retry(self, batch: list[Filling], error: FirstreadError) -> None:
        """Try again what failed, after a pause; give up on what cannot get better.

        Only the sector that a worker was at has failed; those behind it are queued again.
        """
        unfinished = [filling for filling in batch if filling.active]
        if not unfinished:
            return
        failed, *others = unfinished
        lost: list[Waiter] | None = None
        with self._changed:
            for filling in others:
                self._resume(filling)
            failed.failures += 1
            if not may_pass(error):
                failed.decoder = None
            else:
                self._outage.fail(time.monotonic())
            policy = self._filler.policy(failed.sector)
            if is_hopeless(error, failed.failures, policy.on_corruption):
                failed.active = False
                lost = self._drop(failed)
            elif failed.waiters or not error.retryable:
                self._postpone(failed, asked_s(error))
            else:
                self._resume(failed)
            self._changed.notify()
        self._filler.failed(failed, error, self)
        if lost is not None:
            self._filler.give_up(failed, lost, error, self)

    def _postpone(self, filling: Filling, least_s: float = 0.0) -> None:
        """Try a sector again after a pause."""
        filling.active, filling.paused = False, True
        due = time.monotonic() + max(self._outage.pause_s(filling.failures), least_s)
        heapq.heappush(self._retries, (due, next(self._serial), filling))
        self._changed.notify()

    def _drop(self, filling: Filling) -> list[Waiter]:
        """Forget a sector; return the reads that still wait for it."""
        waiters, filling.waiters = filling.waiters, []
        if self._fillings.get(filling.sector.entry.id) is filling:
            del self._fillings[filling.sector.entry.id]
        self._queue.remove(filling)
        self._waiting.discard(filling)
        return waiters

    def _resume(self, filling: Filling) -> None:
        """Queue a sector again, unless it was dropped."""
        filling.active = filling.paused = False
        if self._fillings.get(filling.sector.entry.id) is not filling:
            return
        if filling.waiters:
            cause = Cause.DEMAND
        elif filling.asks:
            cause = Cause.COMPLETION
        else:
            cause = filling.cause
        self._queue.put(filling, cause)

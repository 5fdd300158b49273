# SPDX-License-Identifier: Apache-2.0
"""The way of a read through the fetcher: looked at, routed, and passed on.

Owns the step from an event to whoever has its read next: `Dispatcher.handle` → `Lane.request` →
`Repository.open_blob`. Decides nothing; `firstread.fetch.router` does. Does not block.

Invariant: a read is in hand of one thread, or waits where its `awaits` says, until it is answered.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from firstread.cache.clock import Verdict
from firstread.cache.integrity import Checks
from firstread.cache.pending import Awaits, PendingRead
from firstread.cache.presence import Presence
from firstread.device.base import Read
from firstread.errors import FirstreadError, NodeError, from_os_error, from_shortage
from firstread.fetch.fairness import UNSERVED, Fairness
from firstread.fetch.outcomes import Outcomes
from firstread.fetch.providers import Offer, Providers
from firstread.fetch.reads import Reads
from firstread.fetch.router import Action, Seen, Step, after, route
from firstread.sectors.sectorstore import SectorStore
from firstread.sectors.source import Wanted


class Dispatcher:
    """Does with each read what the router says.

    Args:
        reads: the table of them.
        store: names the sector of a file.
        presence: says what is done with a sector, and keeps reads during an emptying.
        checks: of sectors in doubt.
        providers: of sectors.
        fairness: says who may wait.
        outcomes: lets reads go on or fail.
        stall_s: that a read waits at most where no lane waits for it.
    """

    def __init__(
        self,
        reads: Reads,
        store: SectorStore,
        presence: Presence,
        checks: Checks,
        providers: Providers,
        fairness: Fairness,
        outcomes: Outcomes,
        stall_s: float,
    ) -> None:
        self._reads, self._store, self._presence = reads, store, presence
        self._checks = checks
        self._providers, self._fairness, self._outcomes = providers, fairness, outcomes
        self._stall_s = stall_s
        self._lock = threading.Lock()  # of the next: a read is parked while it is so, or not at all
        self._expecting = False  # a mount stands that is not served yet: see `expect`

    def handle(self, event: Read) -> None:
        """Take an event: answer it, or see to it that it will be. Does not block."""
        self._route(self._reads.take(event, time.monotonic()))

    def again(self, reads: Sequence[PendingRead]) -> None:
        """Take reads again whose sector has changed its state meanwhile."""
        for read in reads:
            self._route(read)

    def _route(self, read: PendingRead) -> None:
        offer = None
        try:
            offer = self._find(read)
            seen = self._look(read, offer) if offer else None
            action = route(read.sector_id, seen, is_expecting=self._expecting)
        except OSError as exc:
            action = self._after(read, from_os_error(exc, "cannot look at a sector file"))
        except FirstreadError as exc:
            action = self._after(read, exc)
        self._act(read, action, offer)

    def _find(self, read: PendingRead) -> Offer | None:
        """Return who is to be asked for what is read, and note in the read what it is."""
        if not read.sector_id:
            read.sector_id = self._store.id_of(read.fd)
        offer = self._providers.first(read.sector_id, read.end)
        if offer is not None:
            read.sector, read.note_wait = offer.sector, offer.served.stats.answered
        return offer

    def _look(self, read: PendingRead, offer: Offer) -> Seen:
        """Return what presence says of the file that is read."""
        sector_id, sector = read.sector_id, offer.sector
        read.awaits = Awaits.EMPTYING
        verdict = self._presence.event(read, sector_id)
        if verdict is not Verdict.FETCH:
            return Seen(verdict)
        disputed = self._providers.is_undecided(sector)
        disputed = disputed and os.fstat(read.fd).st_size == sector.entry.size
        return Seen(verdict, self._checks.has_unverified(sector_id), disputed)

    def _act(self, read: PendingRead, action: Action, offer: Offer | None) -> None:
        match action.step:
            case Step.ALLOW:
                self._outcomes.allow([read])
            case Step.FETCH if offer is not None:
                self._fetch(read, offer)
            case Step.CHECK if offer is not None:
                self._check(read, offer, self._checks.read)
            case Step.DECIDE if offer is not None:
                self._providers.note_asked(read.sector_id)
                self._check(read, offer, self._checks.decide)
            case Step.AWAIT_EMPTYING:
                pass  # presence keeps it
            case Step.AWAIT_MOUNT:
                self._await_mount(read)
            case Step.RETRY:
                self._reads.park(read, Awaits.RETRY)
            case Step.DENY if action.error is not None:
                self._outcomes.deny([read], action.error)
            case _:
                raise AssertionError(action)  # ends the process: the read is the next fetcher's

    def _after(self, read: PendingRead, error: FirstreadError) -> Action:
        return after(error, time.monotonic() - read.came, self._stall_s)

    def _fetch(self, read: PendingRead, offer: Offer) -> None:
        served, sector = offer
        if not self._fairness.admit(read, served.image.digest):
            return
        self._outcomes.note_wait(read, served)
        read.awaits = Awaits.FETCH
        served.lane.request(sector, [read], served.sectors.behind)

    def _check(
        self, read: PendingRead, offer: Offer, check: Callable[[PendingRead, Wanted], None]
    ) -> None:
        read.awaits = Awaits.CHECK
        try:
            check(read, offer.sector)
        except OSError as exc:
            error = from_os_error(exc, "cannot look at a sector file")
            self._act(read, self._after(read, error), None)

    def unchecked(self, reads: Sequence[PendingRead], error: Exception, sector: Wanted) -> None:
        """Deny reads of a sector that could not be checked, or take them again if that may pass."""
        if isinstance(error, OSError):
            error = from_os_error(error, "cannot check a sector file")
        error = from_shortage(error) or error
        denied = []
        for read in reads:
            if isinstance(error, FirstreadError) and self._after(read, error).step is Step.RETRY:
                self._reads.park(read, Awaits.RETRY)
            else:
                denied.append(read)
        self._outcomes.deny(denied, error, sector)

    def _await_mount(self, read: PendingRead) -> None:
        self._reads.charge(read, UNSERVED)
        with self._lock:
            if self._expecting:
                self._reads.park(read, Awaits.MOUNT)
                return
        self._route(read)  # it may be served by now

    def expect(self, *, reads: bool) -> None:
        """Note whether reads of sectors that nobody has wait: somebody may have them soon."""
        with self._lock:
            self._expecting = reads
            early = self._reads.recall(Awaits.MOUNT)
        self.again(early)

    def expire(self) -> None:
        """Try reads again that this process was too short of something for; end those too old."""
        self.again(self._reads.recall(Awaits.RETRY))
        since = time.monotonic() - self._stall_s
        late = self._reads.recall(Awaits.MOUNT, which=lambda read: read.came < since)
        self._outcomes.deny(late, NodeError("the mount could not be taken over"))

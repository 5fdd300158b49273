# SPDX-License-Identifier: Apache-2.0
"""What becomes of reads: they go on, go to another source, or fail.

Owns failover between sources, and what is told of failures: in the log, the counters, the feed, the
quarantine and the memory of recent denials. Answers only through `Answers`. Implements
`firstread.fetch.sides.Outcome`.

Invariant: a read is allowed only when the file covers it with verified bytes, and only after a
`touch` of presence, so that the file stays as long as the read takes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Sequence

from firstread.cache.pending import Awaits, PendingRead
from firstread.cache.presence import Presence
from firstread.cache.quarantine import Quarantine
from firstread.errors import FirstreadError, ImageError, NodeError, NotFoundError
from firstread.fetch.answers import Answers
from firstread.fetch.denials import Denials
from firstread.fetch.lane import Lane
from firstread.fetch.providers import Offer, Providers
from firstread.fetch.queue import Cause, Filling
from firstread.fetch.retry import may_pass
from firstread.fetch.served import Served
from firstread.fetch.stats import Feed
from firstread.opener import HeldUpError, Opener
from firstread.sectors.source import Wanted

log = logging.getLogger("fetcher")

PATIENCE = 2  # failures in a row of one source, before another one that has the sector is asked
_WANTED = (Cause.DEMAND, Cause.COMPLETION)  # what is fetched elsewhere though no read waits now
KEEP_S = 1.0  # for wrong bytes to be written to the disk


class Outcomes:
    """Lets reads go on or fail, and moves them between sources.

    Args:
        answers: for reads.
        providers: of sectors.
        denials: that were a moment ago.
        feed: of what happens.
        quarantine: for wrong bytes.
        presence: is told of reads that go on.
    """

    def __init__(
        self,
        answers: Answers,
        providers: Providers,
        denials: Denials,
        feed: Feed,
        quarantine: Quarantine,
        presence: Presence,
    ) -> None:
        self._answers, self._providers, self._denials = answers, providers, denials
        self._feed, self._quarantine, self._presence = feed, quarantine, presence
        self._keeper = Opener("quarantine", KEEP_S)

    # -- reads ---------------------------------------------------------------------------------

    def allow(self, reads: Sequence[PendingRead]) -> None:
        """Let reads go on whose sector is here, as far as they need it."""
        if len(self._denials):
            for sector_id in {read.sector.entry.id for read in reads if read.sector}:
                self._denials.clear(sector_id)
        if covered := [read for read in reads if self._touch(read)]:
            now = time.monotonic()
            self._answers.give(covered, allow=True)
            for read in covered:  # now: nobody waits for it
                self._providers.waited(read, now - read.came)

    def _touch(self, read: PendingRead) -> bool:
        """Tell presence that a read goes on; False if it waits there, for an emptying."""
        read.awaits = Awaits.EMPTYING
        return read.sector is None or self._presence.touch(read, read.sector.entry.id)

    def note_wait(self, read: PendingRead, served: Served) -> None:
        """Note that a read waits for bytes of an image."""
        served.stats.add(waits=1)
        self._feed.tell(
            "read",
            image=served.image.digest,
            sector=read.sector_id.hex(),
            offset=read.offset,
            bytes=read.inside,
            pid=read.pid,
        )

    def deny(
        self,
        reads: Sequence[PendingRead],
        error: Exception,
        sector: Wanted | None = None,
        *,
        alone: bool = False,
        quietly: bool = False,
    ) -> None:
        """Let reads fail.

        Args:
            reads: which.
            error: why.
            sector: of what, if that is known.
            alone: others who wait for the same may wait on.
            quietly: there are many, and others of them are logged.
        """
        if not reads:
            return
        if sector is not None:
            charged = self._providers.charged(sector.entry.id)
            level = logging.DEBUG if quietly else logging.ERROR
            self._note(charged, sector, error, level, "a read fails", failed_reads=len(reads))
            now = time.monotonic()
            for read in reads:
                self._denials.note(read, sector.entry.id, sector.entry.size, now, alone=alone)
        else:
            log.error("a read fails: %s", error)
        self._answers.give(reads, allow=False)

    def deny_each(self, reads: Iterable[PendingRead], error: Exception) -> None:
        """Let reads fail of whatever sectors, though others of the same may wait on."""
        theirs: dict[bytes, list[PendingRead]] = {}
        for read in reads:
            theirs.setdefault(read.sector.entry.id if read.sector else b"", []).append(read)
        for number, its in enumerate(theirs.values()):
            self.deny(its, error, its[0].sector, alone=True, quietly=number > 0)

    # -- fetches -------------------------------------------------------------------------------

    def completed(self, filling: Filling) -> None:
        """Note that a sector came whole: it can be had, and it has the size that it was given."""
        entry = filling.sector.entry
        self._providers.forget_useless(entry.id)
        self._providers.prove(entry.id, entry.size)
        for served in self._providers.sharing(entry.id):
            served.history.present(filling)
        cause = filling.cause.name.lower()
        self._feed.tell("present", sector=entry.id.hex(), cause=cause, source=filling.source)

    def failed(self, filling: Filling, error: FirstreadError, lane: Lane) -> None:
        """Note an attempt that failed, and move its reads to another source if that is better."""
        # The charged image may have another source; this error does not concern that one.
        concerned = self._providers.claiming(filling.sector, lane)
        level = logging.WARNING if filling.failures <= 1 else logging.DEBUG
        what = "a fetch failed and will be tried again"
        self._note(concerned, filling.sector, error, level, what)
        lies = isinstance(error, ImageError | NotFoundError)
        if lies:
            self._providers.note_lie(concerned)
        if not (lies or (may_pass(error) and filling.failures >= PATIENCE)):
            return
        other = self._providers.other(filling.sector, lane)
        # Wrong bytes may come right, but not before whoever was wrong less often is asked.
        worst = min((served.lies for served in concerned), default=0)
        if other is not None and (not lies or other.served.lies < worst):
            failures = 0 if lies else filling.failures
            self._move(lane.release_reads(filling), other, failures=failures)

    def give_up(
        self, filling: Filling, reads: Sequence[PendingRead], error: FirstreadError, lane: Lane
    ) -> None:
        """Ask another source for what `lane` cannot give; if there is none, let its reads fail."""
        sector = filling.sector
        if lane.closed or not (error.retryable or isinstance(error, NodeError)):
            self._providers.note_useless(sector, lane)
            # An image that is not to be asked for again is not: another image is another matter.
            fails = self._providers.policy(sector).on_corruption == "fail"
            final = isinstance(error, ImageError) and fails
            other = self._providers.other(sector, lane, elsewhere=final)
            if other is not None:
                self._move(reads, other)
                if not reads and (filling.must_come or filling.cause in _WANTED):
                    other.served.lane.complete(other.sector)
                return
        self._providers.forget_useless(sector.entry.id)
        self.deny(reads, error, sector)

    def _move(self, reads: Sequence[PendingRead], offer: Offer, *, failures: int = 0) -> None:
        if reads:
            served, sector = offer
            level = logging.WARNING if failures <= PATIENCE else logging.DEBUG
            log.log(level, "trying another source: %s", served.lane.name)
            served.lane.request(sector, reads, served.sectors.behind, failures=failures)

    def corrupt(
        self, filling: Filling, offset: int, data: bytes, error: ImageError, source: str
    ) -> None:
        """Keep wrong bytes of a sector, if a policy wants them kept."""
        sector = filling.sector
        if self._providers.policy(sector).on_corruption == "quarantine":
            images = {served.image.digest for served in self._providers.claiming(sector)}
            origin = {
                "source": source,
                "images": sorted(images),
                "sector": sector.entry.id.hex(),
                "blob": sector.blob.digest,
                "offset": sector.entry.offset + offset,
                "error": str(error),
            }
            with contextlib.suppress(HeldUpError):  # then they are kept later, or not
                self._keeper.do(lambda: self._quarantine.put(data, **origin))

    def _note(
        self,
        concerned: Sequence[Served],
        sector: Wanted,
        error: Exception,
        level: int,
        what: str,
        *,
        failed_reads: int = 0,
    ) -> None:
        """Note an error at all whom it concerns; one line in the log is enough."""
        for number, served in enumerate(concerned):
            served.stats.error(str(error), failed_reads=failed_reads, is_known=number > 0)
        for served in concerned[:1]:
            fields = {
                "image": served.image.digest,
                "sector": sector.entry.id.hex(),
                "offset": sector.entry.offset,
                "source": served.lane.name,
                "error": str(error),
                "hint": getattr(error, "hint", None),
            }
            log.log(level, what, extra={"fields": fields})
        self._feed.tell("error", sector=sector.entry.id.hex(), error=str(error))

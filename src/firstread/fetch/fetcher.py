# SPDX-License-Identifier: Apache-2.0
"""The fetcher: answers events by filling sector files.

Owns which images are served, from which lane, and puts the parts of the way of a read together
(`firstread.fetch.dispatcher` is its beginning). It holds no kernel state of its own: what it knows
of sectors is the size of their files, so it can die at any moment, and the next one goes on. Does
not mount (`firstread.mounts.node` does), and knows no policy beside the lanes'.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from firstread.cache.flush import Flusher
from firstread.cache.integrity import Checks
from firstread.cache.membership import Member
from firstread.cache.nodecache import Cache
from firstread.cache.nodeimage import NodeImage
from firstread.cache.pending import Awaits, PendingRead
from firstread.cache.presence import Presence
from firstread.cache.quarantine import Quarantine
from firstread.config import CacheTable, PolicyTable, PrefetchTable
from firstread.device.base import MOST_READS, Device, Read
from firstread.fetch.answers import Answers
from firstread.fetch.denials import Denials
from firstread.fetch.dispatcher import Dispatcher
from firstread.fetch.fairness import Fairness
from firstread.fetch.lane import Lane
from firstread.fetch.outcomes import Outcomes
from firstread.fetch.providers import Providers
from firstread.fetch.readers import may_have_read
from firstread.fetch.reads import Reads
from firstread.fetch.sectorfiles import SectorFiles
from firstread.fetch.served import Served
from firstread.fetch.stats import Feed, ImageStats, LaneCounts
from firstread.fetch.tracelog import TraceLog
from firstread.oci.repository import Repository
from firstread.registry.access import Access
from firstread.sectors.sectorstore import SectorStore
from firstread.sectors.source import Wanted

NO_LIMITS: Final = PrefetchTable()

Origin = tuple[str, Access]  # name of an image repository, and how it is reached


class Fetcher:
    """Fills sectors of all images of the node.

    Args:
        store: of the sector files.
        device: that asks for them.
        tell: takes the numbers of answered reads, see `Answers`.
        workers: requests at a time to one repository.
        policy: of what is mounted no more, but still used.
        limits: of the store.
        prefetch: limits of what nobody waits for.
        most_waiting: events that there is room for.

    Attributes:
        providers: the images that have a sector.
        totals: counters of all images since this fetcher began.
        ended_logs: gets the records of images that are withdrawn, with their digests.
    """

    def __init__(
        self,
        store: SectorStore,
        device: Device,
        tell: Callable[[Sequence[int]], None],
        *,
        workers: int,
        policy: PolicyTable,
        limits: CacheTable,
        prefetch: PrefetchTable = NO_LIMITS,
        most_waiting: int = MOST_READS,
    ) -> None:
        self.store, self.feed, self.totals = store, Feed(), ImageStats()
        self.presence = Presence(store, device, self.again, self._forget_file)
        self.cache = Cache(self.presence, store, limits)
        self.providers = Providers(self.presence, policy)
        self._reads, denials = Reads(most_waiting), Denials(may_have_read)
        self._answers = Answers(self._reads, device, tell)
        self._outcomes = outcomes = Outcomes(
            self._answers,
            self.providers,
            denials,
            self.feed,
            Quarantine(store.root),
            self.presence,
        )
        self._fairness = Fairness(self._reads, denials, outcomes, self._answers, self._cancel)
        answers = outcomes.allow, self.again, self._unchecked
        self.checks = Checks(store, self.cache, *answers, self.providers.prove)
        self._dispatcher = Dispatcher(
            self._reads,
            store,
            self.presence,
            self.checks,
            self.providers,
            self._fairness,
            outcomes,
            policy.stall_s,
        )
        self.flusher = Flusher(store, self.presence.holding)
        self._files = SectorFiles(store, self.presence, self.cache.admission, self.flusher)
        self._counts = LaneCounts(self.feed, self.providers.sharing)
        self._workers, self._prefetch = workers, prefetch
        self.ended_logs: deque[tuple[str, TraceLog]] = deque(maxlen=0)
        self._lock = threading.Lock()  # of both maps, which are replaced, never changed
        self._lanes: dict[Origin, Lane] = {}
        self._served: dict[tuple[str, Origin], Served] = {}

    # -- images --------------------------------------------------------------------------------

    def serve(
        self,
        image: NodeImage,
        source: Origin,
        open_repository: Callable[[], Repository],
        prepare: Callable[[Member], None] = lambda _: None,
    ) -> Served:
        """Answer events of the sectors of `image` from now on, from one source.

        Args:
            image: which.
            source: images that come from the same one share its lane.
            open_repository: opens it, when it is needed.
            prepare: what is to be known of the sectors before an event is answered.
        """
        key = (image.digest, source)
        with self._lock:
            served = self._served.get(key)
            if served is not None:
                prepare(served.member)
                return served
            lane = self._lanes.get(source) or self._lane(source[0], open_repository)
            served = Served(image, lane, self.totals)
            self.providers.add(served, prepare)
            self._lanes = {**self._lanes, source: lane}
            self._served = {**self._served, key: served}
        return served

    def withdraw(self, served: Served) -> None:
        """Stop serving an image that is not mounted any more from this source."""
        lane = served.lane
        with self._lock:
            self.providers.remove(served)
            self._served = {k: other for k, other in self._served.items() if other is not served}
            is_last = all(other.lane is not lane for other in self._served.values())
            if is_last:
                self._lanes = {k: other for k, other in self._lanes.items() if other is not lane}
        self.ended_logs.append((served.image.digest, served.log))
        self.cache.mounts_changed()
        sharing = self.providers.sharing
        lane.cancel(
            {i for i in served.sectors if all(other.lane is not lane for other in sharing(i))}
        )
        if is_last:
            lane.close()

    def _lane(self, name: str, open_repository: Callable[[], Repository]) -> Lane:
        return Lane(
            name,
            open_repository,
            self._files,
            self._files,
            self._outcomes,
            self._counts,
            self.providers.policy,
            workers=self._workers,
            prefetch=self._prefetch,
        )

    def served(self) -> list[Served]:
        """Return the images that are mounted."""
        return list(self._served.values())

    def wanted(self) -> set[bytes]:
        """Return the sectors that are being fetched or queued, whoever does it."""
        return set[bytes]().union(*(lane.wanted() for lane in list(self._lanes.values())))

    # -- reads ---------------------------------------------------------------------------------

    def handle(self, event: Read) -> None:
        """Take an event: answer it, or see to it that it will be. Does not block."""
        self._dispatcher.handle(event)

    def again(self, reads: Sequence[PendingRead]) -> None:
        """Take reads again whose sector has changed its state meanwhile."""
        self._dispatcher.again(reads)

    def _unchecked(self, reads: Sequence[PendingRead], error: Exception, sector: Wanted) -> None:
        self._dispatcher.unchecked(reads, error, sector)

    def expect(self, *, reads: bool, guarded: bool) -> None:
        """Note that mounts stand which are not served yet, or none any more.

        Args:
            reads: reads of sectors that nobody has wait: somebody may have them soon.
            guarded: there are such mounts, so any sector may be one of theirs.
        """
        self.cache.guard(on=guarded)
        self._dispatcher.expect(reads=reads)

    def expire(self) -> None:
        """Give up the reads that have waited too long, or that nobody waits for any more."""
        for lane in list(self._lanes.values()):
            lane.expire()
        self._dispatcher.expire()
        self._fairness.expire()

    def _cancel(self, lost: set[PendingRead]) -> list[PendingRead]:
        """Take those of these reads out that wait for a fetch, a mount or another attempt."""
        found = self._reads.recall(Awaits.MOUNT, Awaits.RETRY, which=lost.__contains__)
        for lane in list(self._lanes.values()):
            found += lane.cancel_reads(lost)
        return found

    def _forget_file(self, sector_id: bytes) -> bool:
        """Forget what lanes know of a sector's file; False if one is at it, or a read waits."""
        return all(lane.release_file(sector_id) for lane in list(self._lanes.values()))

    def waiting(self) -> int:
        """Return how many reads wait."""
        return len(self._reads)

    def count_answered(self) -> None:
        """Count the reads that were answered without this process by now."""
        for sector_id, count in self.presence.sizes.answered().items():
            for served in self.providers.charged(sector_id):
                served.stats.add(waits=count)

    def freeze(self) -> list[Read]:
        """Answer nothing any more, and return what waits: another process will."""
        return self._answers.freeze()

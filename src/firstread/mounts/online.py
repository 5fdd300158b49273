# SPDX-License-Identifier: Apache-2.0
"""Online maintenance: what ``firstread cache`` asks of a node while its mounts are read.

Owns the answers. `firstread.cache.nodecache` owns the room in the store. Invariant: nothing that a
mount needs goes; a damaged sector of a mount is emptied while its reads wait, and fetched again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping

from msgspec import structs

from firstread.cache.imagestore import ImageStore
from firstread.cache.inspection import Outcome, inspect
from firstread.cache.inventory import Plan, Use, take_inventory
from firstread.cache.nodeimage import NodeImage
from firstread.cache.report import Listing, OnlineFigures, Pruned, Verified
from firstread.errors import FirstreadError
from firstread.fetch.fetcher import Fetcher
from firstread.sectors.sectorstore import SectorStore
from firstread.sectors.source import Wanted

log = logging.getLogger("cache")

REFETCH_S = 60.0  # that a verify waits for what it has emptied


class OnlineMaintenance:
    """Lists, prunes and verifies while mounts are read.

    Args:
        images: of the node.
        store: of the sector files.
        fetcher: that fills them.
        lock: of the mounts.
        uses: says how images are used, by digest.
    """

    def __init__(
        self,
        images: ImageStore,
        store: SectorStore,
        fetcher: Fetcher,
        lock: threading.RLock,
        uses: Callable[[], Mapping[str, Use]],
    ) -> None:
        self._images, self._store, self._fetcher = images, store, fetcher
        self._lock, self._uses = lock, uses

    def figures(self) -> OnlineFigures:
        """Return what the store holds, and what became of sectors in it."""
        checks = self._fetcher.checks
        return OnlineFigures(
            **structs.asdict(self._fetcher.cache.figures()),
            checked=checks.checked,
            damaged=checks.damaged,
        )

    def listing(self) -> Listing:
        """Return what ``firstread cache ls`` lists."""
        return take_inventory(self._images, self._store).listing(self.figures(), self._uses())

    def prune(self, keep_bytes: int, *, dry_run: bool) -> Pruned:
        """Remove what nobody uses, until `keep_bytes` are left. No mount is made meanwhile."""
        with self._lock:
            inventory = take_inventory(self._images, self._store)
            plan = inventory.plan(self._fetcher.presence.is_needed, self._used(), keep_bytes)
            return plan.document() if dry_run else self._carry_out(plan)

    def drop(self, digests: Collection[str]) -> Pruned:
        """Remove images that are not mounted, and the sectors that no other image has."""
        with self._lock:
            idle = set(digests) - self._used()
            inventory = take_inventory(self._images, self._store)
            return self._carry_out(inventory.plan_without(idle, self._fetcher.presence.is_needed))

    def _used(self) -> set[str]:
        return {served.image.digest for served in self._fetcher.served()}

    def _carry_out(self, plan: Plan) -> Pruned:
        """Do what was planned; the lock is held."""
        cache = self._fetcher.cache
        freed = {i: cache.disposal.remove(i).bytes for i in plan.sectors}
        images = [digest for digest in plan.images if self._images.remove(digest)]
        cache.mounts_changed()
        cache.tidy()
        sectors = [sector_id for sector_id, size in freed.items() if size]
        return Plan(sectors, images, sum(freed.values())).document()

    def verify(self, *, repair: bool, check: Callable[[], None] = lambda: None) -> Verified:
        """Check everything; with `repair` fetch damaged sectors again, or remove them.

        Args:
            repair: see there.
            check: raises when nobody waits for the answer any more; called again and again.
        """
        emptied: list[Wanted] = []

        def look(_: NodeImage, sector: Wanted) -> Outcome:
            check()
            outcome = self._check(sector, repair=repair)
            if outcome == "emptied":
                emptied.append(sector)
            return outcome

        def drop(digest: str) -> bool:
            return repair and self._images.drop_damaged(digest)

        inventory = take_inventory(self._images, self._store)
        found = inspect(inventory, look, self._images.damage, drop)
        self._await(emptied, check)
        return found

    def _check(self, sector: Wanted, *, repair: bool) -> Outcome:
        entry = sector.entry
        mounted = self._fetcher.presence.is_mounted(entry.id)
        try:
            outcome = self._fetcher.checks.sweep(sector, repair=repair and mounted)
        except FirstreadError as exc:
            log.warning("cannot check sector %s: %s", entry.id.hex(), exc)
            return "busy"
        if outcome == "damaged" and repair and not mounted:
            return "removed" if self._fetcher.cache.disposal.remove(entry.id) else outcome
        if outcome == "emptied":
            for served, wanted in self._fetcher.providers.having(entry.id):
                served.lane.complete(wanted)
                break
        return outcome

    def _await(self, emptied: list[Wanted], check: Callable[[], None]) -> None:
        """Wait until emptied sectors are here again; if their source is away they come later."""
        deadline = time.monotonic() + REFETCH_S
        while time.monotonic() < deadline and any(
            self._fetcher.presence.size(sector.entry.id) < sector.entry.size for sector in emptied
        ):
            check()
            time.sleep(0.05)

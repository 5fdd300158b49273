# SPDX-License-Identifier: Apache-2.0
"""The cache of a node as its daemon looks after it: what ``firstread cache`` asks for.

Owns the answers; the room in the store is `firstread.node.cache`'s, and mounting `Node`'s. Nothing
that a mount needs is removed; what is damaged of it is emptied while its reads wait, and fetched
again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from firstread.errors import FirstreadError
from firstread.node.fetcher import Fetcher
from firstread.node.filling import Wanted
from firstread.node.images import ImageStore, NodeImage
from firstread.node.inspection import Outcome, inspect
from firstread.node.stock import Plan, Use, take_stock
from firstread.sectors.store import SectorStore

log = logging.getLogger("cache")

REFETCH_S = 60.0  # that a verify waits for what it has emptied


class Attended:
    """Lists, prunes and verifies while mounts are read.

    Args:
        images: of the node.
        store: of the sector files.
        fetcher: that fills them.
        lock: that is held while an image is mounted or unmounted.
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

    def figures(self) -> dict[str, Any]:
        """Return what the store holds, and what has become of sectors in it."""
        cache, checks = self._fetcher.cache, self._fetcher.checks
        held, held_bytes = cache.usage()
        return {
            "bytes": held_bytes,
            "sectors": held,
            **cache.room_figures(),
            "limit_bytes": cache.limit_bytes or None,
            "limit_files": cache.limit_files or None,
            "min_free_bytes": cache.min_free_bytes or None,
            "free_bytes": self._store.free_bytes(),
            "evictions": cache.evictions,
            "evicted_bytes": cache.evicted_bytes,
            "removals": cache.removals,
            "removed_bytes": cache.removed_bytes,
            "checked": checks.checked,
            "damaged": checks.damaged,
        }

    def listing(self) -> dict[str, Any]:
        """Return the document of ``firstread cache ls --json``."""
        stock = take_stock(self._images, self._store)
        return {"store": self.figures(), **stock.listing(self._uses())}

    def prune(self, keep_bytes: int, *, dry_run: bool) -> dict[str, Any]:
        """Remove what nobody uses, until `keep_bytes` are left. No mount is made meanwhile."""
        with self._lock:
            stock = take_stock(self._images, self._store)
            used = {served.image.digest for served in self._fetcher.served()}
            plan = stock.plan(self._fetcher.cache.is_needed, used, keep_bytes)
            if dry_run:
                return plan.document()
            cache = self._fetcher.cache
            freed = {i: cache.remove(i) for i in plan.sectors}
            images = [digest for digest in plan.images if self._images.remove(digest)]
            cache.mounts_changed()
            cache.tidy()
        sectors = [sector_id for sector_id, size in freed.items() if size]
        return Plan(sectors, images, sum(freed.values())).document()

    def verify(self, *, repair: bool, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Check everything; with `repair` what is damaged is fetched again, or goes.

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

        stock = take_stock(self._images, self._store)
        document = inspect(stock, look, self._images.damage, drop)
        self._await(emptied, check)
        return document

    def _check(self, sector: Wanted, *, repair: bool) -> Outcome:
        entry = sector.entry
        mounted = self._fetcher.is_mounted(entry.id)
        try:
            outcome = self._fetcher.checks.sweep(sector, repair=repair and mounted)
        except FirstreadError as exc:
            log.warning("cannot check sector %s: %s", entry.id.hex(), exc)
            return "busy"
        if outcome == "damaged" and repair and not mounted and self._fetcher.cache.remove(entry.id):
            return "removed"
        if outcome == "emptied":
            for served, wanted in self._fetcher.having(entry.id):
                served.lane.complete(wanted)
                break
        return outcome

    def _await(self, emptied: list[Wanted], check: Callable[[], None]) -> None:
        """Wait until what was emptied is here again; if its source is away it comes later."""
        deadline = time.monotonic() + REFETCH_S
        while time.monotonic() < deadline and any(
            self._store.size(sector.entry.id) < sector.entry.size for sector in emptied
        ):
            check()
            time.sleep(0.05)

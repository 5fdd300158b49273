# SPDX-License-Identifier: Apache-2.0
"""The cache of a node on which no daemon runs: what ``firstread cache`` does then.

Owns the lock of the store meanwhile, so that no daemon starts. Mounts can stand without a daemon:
what they need stays as it is, since nobody could let their reads wait.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from firstread.cache.imagestore import ImageStore
from firstread.cache.inspection import Outcome, inspect
from firstread.cache.inventory import Inventory, Use, take_inventory
from firstread.cache.nodeimage import NodeImage
from firstread.cache.report import Listing, Pruned, StoreFigures, Verified
from firstread.daemon.anchor import anchors
from firstread.errors import NodeError
from firstread.mounts.table import MountTable, mounted_erofs
from firstread.private import private_directory
from firstread.sectors.check import is_whole
from firstread.sectors.sectorstore import SectorStore
from firstread.sectors.source import Wanted

log = logging.getLogger("cache")


class Unattended:
    """Images and sectors below a root; `open` it.

    Args:
        images: there.
        store: claimed.
        uses: of images, by digest.
    """

    def __init__(self, images: ImageStore, store: SectorStore, uses: dict[str, Use]) -> None:
        self._images, self._store, self._uses = images, store, uses
        self._inventory = take_inventory(images, store)
        mounted = (image for digest, image in self._inventory.images.items() if digest in uses)
        self._mounted = {sector_id for image in mounted for sector_id in image.ids()}
        self._unknown = [error for d, error in self._inventory.problems.items() if d in uses]

    @classmethod
    @contextlib.contextmanager
    def open(cls, root: Path) -> Iterator[Self]:
        """Claim the store for as long as the context lasts.

        Raises:
            NodeError: there is none, a daemon has it, or others could have written to it.
        """
        if not (root / "format.json").exists():
            raise NodeError(
                f"there is no sector store in {root}", hint="say where it is: --root DIR"
            )
        private_directory(root)
        with SectorStore(root, filesystems=None) as store:
            store.claim()
            uses = _uses(root)
            yield cls(ImageStore(root, is_used=uses.__contains__), store, uses)

    def listing(self) -> Listing:
        """Return what ``firstread cache ls`` lists."""
        figures = _figures(self._store, self._images, self._inventory)
        return self._inventory.listing(figures, self._uses)

    def prune(self, keep_bytes: int, *, dry_run: bool) -> Pruned:
        """Remove what nobody uses, until `keep_bytes` are left.

        Raises:
            NodeError: an image that is mounted cannot be read, and so its sectors are not known.
        """
        self._know_mounted()
        plan = self._inventory.plan(self._mounted.__contains__, self._uses, keep_bytes)
        if not dry_run:
            for sector_id in plan.sectors:
                self._store.unverified.remove(sector_id)
            self._store.remove(plan.sectors)
            self._store.remove(i for i in self._inventory.empty if i not in self._mounted)
            for digest in plan.images:
                self._images.remove(digest)
        return plan.document()

    def verify(self, *, repair: bool) -> Verified:
        """Check everything; what is damaged and not mounted is removed, if `repair`.

        Raises:
            NodeError: as `prune`, if `repair`; or reads wait for the next daemon, and ours would be
                among them.
        """
        if any(anchors(str(self._store.root))):
            raise NodeError(
                "the daemon has died, and reads wait for another one",
                hint="start it, and verify again: firstread daemon",
            )
        if repair:
            self._know_mounted()

        def check(_: NodeImage, sector: Wanted) -> Outcome:
            entry = sector.entry
            try:
                if self._is_good(sector):
                    return "good"
            except NodeError as exc:
                log.warning("cannot check sector %s: %s", entry.id.hex(), exc)
                return "busy"
            if self._store.size(entry.id) < entry.size:
                return "partial"
            if not repair or entry.id in self._mounted:
                return "damaged"
            self._store.remove([entry.id])
            return "removed"

        def drop(digest: str) -> bool:
            return repair and self._images.drop_damaged(digest)

        return inspect(self._inventory, check, self._images.damage, drop)

    def _know_mounted(self) -> None:
        for error in self._unknown:
            raise NodeError(
                f"an image that is mounted cannot be opened: {error.message}",
                hint="start a daemon, or unmount it",
            )

    def _is_good(self, sector: Wanted) -> bool:
        fd = self._store.open(sector.entry.id)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what the disk has, not memory
            return is_whole(fd, sector.entry.id, sector.geometry.frame_size)
        finally:
            os.close(fd)


def _figures(store: SectorStore, images: ImageStore, inventory: Inventory) -> StoreFigures:
    return StoreFigures(
        bytes=sum(inventory.sizes.values()) + sum(inventory.aside.values()),
        sectors=len(inventory.sizes),
        metadata_bytes=images.room.bytes,
        files=len(inventory.sizes)
        + len(inventory.empty)
        + len(inventory.aside)
        + images.room.files,
        free_bytes=store.free_bytes(),
        free_files=store.free_files(),
    )


def _uses(root: Path) -> dict[str, Use]:
    """Return how images are used by mounts that stand."""
    standing = mounted_erofs()
    counts: Counter[str] = Counter()
    pinned = set()
    for mount in MountTable(root).load():
        if mount.is_used() if mount.detached else mount.mountpoint in standing:
            counts[mount.digest] += 1
            pinned |= {mount.digest} if mount.pinned else set()
    return {digest: Use(count, digest in pinned) for digest, count in counts.items()}

# SPDX-License-Identifier: Apache-2.0
"""The inventory: how much of which image is on this node, as it was at one moment.

Owns the figures of ``firstread cache ls`` and the order in which sectors of images go that are not
mounted. Reads the stores once, changes nothing; with a daemon or without one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from firstread.cache.imagestore import ImageStore
from firstread.cache.nodeimage import NodeImage
from firstread.cache.report import ImageRow, Listing, Pruned, StoreFigures, Unclaimed
from firstread.cache.room import Room
from firstread.errors import FirstreadError, NodeError
from firstread.sectors.sectorstore import SectorStore

log = logging.getLogger("cache")


class Use(NamedTuple):
    """How an image is used: its mounts, also those taken away lazily, and whether one is pinned."""

    mounts: int
    pinned: bool


class Plan(NamedTuple):
    """A removal, planned or done.

    Args:
        sectors: that have bytes, in their order.
        images: their metadata and names.
        bytes: of the sectors.
    """

    sectors: list[bytes]
    images: list[str]
    bytes: int

    def document(self) -> Pruned:
        """Return what ``firstread cache prune`` prints."""
        return Pruned(sectors=len(self.sectors), bytes=self.bytes, images=self.images)


@dataclass(frozen=True)
class Inventory:
    """Images and sectors.

    Args:
        images: that can be opened, by digest.
        problems: what is wrong with the others, by digest: as an error, for what cannot be read
            now (NodeError) may be right.
        names: references that stand for an image, by its digest.
        last_used: when each was mounted or unmounted last, in seconds since 1970.
        sizes: bytes of each sector that has some.
        empty: sectors that have a file and no bytes.
        aside: bytes of each unverified file, which a reboot left.
        rooms: what the files of each image take, but for its sectors.
    """

    images: Mapping[str, NodeImage]
    problems: Mapping[str, FirstreadError]
    names: Mapping[str, list[str]]
    last_used: Mapping[str, float]
    sizes: Mapping[bytes, int]
    empty: Collection[bytes]
    aside: Mapping[bytes, int]
    rooms: Mapping[str, Room]

    def owners(self) -> Counter[bytes]:
        """Return how many images have each sector."""
        return Counter(i for image in self.images.values() for i in set(image.ids()))

    def listing(self, store: StoreFigures, uses: Mapping[str, Use]) -> Listing:
        """Return images, the one that was used last first, and what belongs to none.

        Args:
            store: what the store holds.
            uses: by digest; an image that is not in it is not used.
        """
        owners = self.owners()
        lost = [size for i, size in (*self.sizes.items(), *self.aside.items()) if not owners[i]]
        digests = sorted(self.last_used, key=lambda d: (d in uses, self.last_used[d]), reverse=True)
        return Listing(
            store=store,
            images=[
                self._row(digest, uses.get(digest, Use(0, False)), owners) for digest in digests
            ],
            unclaimed=Unclaimed(sectors=len(lost), bytes=sum(lost)),
        )

    def _row(self, digest: str, use: Use, owners: Counter[bytes]) -> ImageRow:
        image = self.images.get(digest)
        sectors = {s.id: s.size for s in image.block_image.index.sectors} if image else {}
        here = {i: self.sizes.get(i, 0) or self.aside.get(i, 0) for i in sectors}
        alone = sum(size for i, size in here.items() if owners[i] == 1)
        return ImageRow(
            digest=digest,
            names=self.names.get(digest, []),
            mounts=use.mounts,
            pinned=use.pinned,
            sectors=len(sectors),
            present=sum(self.sizes.get(i, 0) >= whole for i, whole in sectors.items()),
            bytes=sum(here.values()),
            whole_bytes=sum(sectors.values()),
            alone_bytes=alone,
            shared_bytes=sum(here.values()) - alone,
            metadata_bytes=self.rooms[digest].bytes,
            last_used=self.last_used[digest],
            problem=problem.message if (problem := self.problems.get(digest)) else None,
        )

    def cold(self, is_used: Callable[[bytes], bool]) -> list[bytes]:
        """Return the sectors that nobody uses: those of no image, then of the oldest image.

        One of no image that can be opened may be of one that cannot be read now.
        """
        unread = [d for d, error in self.problems.items() if isinstance(error, NodeError)]
        youngest = max((self.last_used[digest] for digest in unread), default=0.0)
        ages = {i: youngest for i in (*self.sizes, *self.aside) if not is_used(i)}
        for digest, image in self.images.items():
            for sector_id in image.ids():
                if sector_id in ages:
                    ages[sector_id] = max(ages[sector_id], self.last_used[digest])
        return sorted(ages, key=ages.__getitem__)

    def order(self, is_used: Callable[[bytes], bool]) -> list[bytes | str]:
        """Return what can go, in order: the sectors of `cold`, each image behind its last one."""
        sectors = self.cold(is_used)
        last = {i: n for n, i in enumerate(sectors)}
        images: dict[int, list[str]] = {}
        waiting = sorted(self.last_used, key=self.last_used.__getitem__)
        place = -1
        for digest in waiting:
            image = self.images.get(digest)
            ids = image.ids() if image else []
            place = max([place, *(last[i] for i in ids if i in last)])
            images.setdefault(place, []).append(digest)
        found: list[bytes | str] = [*images.get(-1, [])]
        for number, sector_id in enumerate(sectors):
            found += [sector_id, *images.get(number, [])]
        return found

    def plan(
        self, is_used: Callable[[bytes], bool], used: Collection[str], keep_bytes: int
    ) -> Plan:
        """Choose what to remove until `keep_bytes` are left, or all that nobody uses is gone.

        An image goes with the last of its sectors that nobody uses.

        Args:
            is_used: whether a sector must stay.
            used: digests of images that must stay.
            keep_bytes: of sectors.
        """
        size = {i: self.sizes.get(i, 0) + self.aside.get(i, 0) for i in (*self.sizes, *self.aside)}
        excess = sum(size.values()) - keep_bytes
        gone: dict[bytes, None] = {}
        freed = 0
        for sector_id in self.cold(is_used):
            if freed >= excess:
                break
            gone[sector_id] = None
            freed += size[sector_id]
        left = {i for i in size if i not in gone and not is_used(i)}
        idle = [digest for digest in self.last_used if digest not in used]
        images = []
        for digest in idle:
            ids = self.images[digest].ids() if digest in self.images else []
            touched = not gone.keys().isdisjoint(ids) or not keep_bytes
            if touched and left.isdisjoint(ids):
                images.append(digest)
        return Plan(list(gone), images, freed)

    def plan_without(self, digests: Collection[str], is_used: Callable[[bytes], bool]) -> Plan:
        """Choose what to remove with images that are not used: what no other image has.

        Args:
            digests: of the images; those that cannot be opened stay.
            is_used: whether a sector must stay.
        """
        leaving = [digest for digest in digests if digest in self.images]
        stay = {i for d, image in self.images.items() if d not in leaving for i in image.ids()}
        unread = any(isinstance(error, NodeError) for error in self.problems.values())
        size = {
            i: self.sizes.get(i, 0) + self.aside.get(i, 0)
            for d in leaving
            for i in self.images[d].ids()
        }
        gone = [i for i in size if size[i] and i not in stay and not unread and not is_used(i)]
        return Plan(gone, leaving, sum(size[i] for i in gone))


class IdleImages:
    """What of the images and sectors of a node can go: a `firstread.cache.admission.Idle`.

    Args:
        images: of the node.
        store: of its sectors.
        is_mounted: whether a mounted image has a sector.
    """

    def __init__(
        self, images: ImageStore, store: SectorStore, is_mounted: Callable[[bytes], bool]
    ) -> None:
        self._images, self._store, self._is_mounted = images, store, is_mounted

    @property
    def room(self) -> Room:
        return self._images.room

    def cold(self) -> list[bytes | str]:
        """Takes no lock of the node: who holds it may be waiting for the room."""
        return take_inventory(self._images, self._store).order(self._is_mounted)

    def remove(self, digest: str) -> Room:
        try:
            return self._images.remove(digest)
        except FirstreadError as exc:
            log.warning("%s", exc)
            return Room()


def take_inventory(images: ImageStore, store: SectorStore) -> Inventory:
    """Look at everything: 3 us a sector, and the index of each image."""
    found: dict[str, NodeImage] = {}
    problems: dict[str, FirstreadError] = {}
    digests = images.digests()
    for digest in digests:
        try:
            found[digest] = images.load(digest)
        except FirstreadError as exc:
            problems[digest] = exc
    sizes = dict(store.sizes())
    return Inventory(
        images=found,
        problems=problems,
        names=images.names(),
        last_used={digest: images.last_used(digest) for digest in digests},
        sizes={i: size for i, size in sizes.items() if size},
        empty=[i for i, size in sizes.items() if not size],
        aside=store.unverified.sizes(),
        rooms={digest: images.room_of(digest) for digest in digests},
    )

# SPDX-License-Identifier: Apache-2.0
"""An image on this node, opened, and its sectors by id and by place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstread.cache.imagefiles import METADATA
from firstread.sectors.image import BlockImage
from firstread.sectors.source import Wanted


@dataclass(frozen=True)
class NodeImage:
    """An image on this node.

    Args:
        digest: of its manifest.
        directory: where it is.
        block_image: opened.
        config: image config.
        is_fresh: it has just been fetched, so its files are what was verified.
    """

    digest: str
    directory: Path
    block_image: BlockImage
    config: dict[str, Any]
    is_fresh: bool = False

    @property
    def metadata(self) -> Path:
        return self.directory / METADATA

    def ids(self) -> list[bytes]:
        """Return the sector ids in order of device slots."""
        return [sector.id for sector in self.block_image.index.sectors]

    def wanted(self, slot: int) -> Wanted:
        """Return what a lane needs to fetch the sector of a slot."""
        index = self.block_image.index
        entry = index.sectors[slot]
        return Wanted(entry, self.block_image.blobs[entry.blob], index.geometry)


class SectorMap:
    """Finds sectors of one image by id and by place in their blob."""

    def __init__(self, image: NodeImage) -> None:
        self.image = image
        sectors = image.block_image.index.sectors
        self._by_id = {sector.id: slot for slot, sector in enumerate(sectors)}
        self._by_place = {(s.blob, s.offset): slot for slot, s in enumerate(sectors)}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._by_id)

    def __contains__(self, sector_id: object) -> bool:
        return sector_id in self._by_id

    def find(self, sector_id: bytes) -> Wanted | None:
        """Return the sector with this id."""
        slot = self._by_id.get(sector_id)
        return None if slot is None else self.image.wanted(slot)

    def slot(self, sector_id: bytes) -> int | None:
        """Return the device slot of the sector with this id."""
        return self._by_id.get(sector_id)

    def behind(self, sector: Wanted) -> Wanted | None:
        """Return the sector that begins where `sector` ends in its blob."""
        entry = sector.entry
        slot = self._by_place.get((entry.blob, entry.offset + entry.length))
        return None if slot is None else self.image.wanted(slot)

# SPDX-License-Identifier: Apache-2.0
"""An image that the fetcher serves from one source: its sectors, its lane, its counters."""

from __future__ import annotations

from firstread.cache.membership import Member
from firstread.cache.nodeimage import NodeImage, SectorMap
from firstread.config import PolicyTable
from firstread.fetch.lane import Lane
from firstread.fetch.startplan import StartPlan
from firstread.fetch.stats import ImageStats


class Served:
    """An image that is served.

    Args:
        image: which.
        lane: of its source.
    """

    def __init__(self, image: NodeImage, lane: Lane) -> None:
        self.image = image
        self.lane = lane
        self.sectors = SectorMap(image)
        self.hot = image.block_image.hot_sectors()  # places, in the order of a start
        rows = image.block_image.index.sectors
        self.member = Member(rows, (rows[slot].id for slot in self.hot))
        self.stats = ImageStats()
        self.plan: StartPlan | None = None  # what is fetched of it though nobody reads it
        self.policies: dict[str, PolicyTable] = {}  # of its mounts, by mount point; replaced only
        self.lies = 0  # answers of its source that contradict its index

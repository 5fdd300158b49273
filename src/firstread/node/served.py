# SPDX-License-Identifier: Apache-2.0
"""An image that the fetcher serves from one source: its sectors, its lane, its counters."""

from __future__ import annotations

from firstread.config import PolicyTable
from firstread.node.images import NodeImage, SectorMap
from firstread.node.lane import Lane
from firstread.node.stats import ImageStats


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
        self.stats = ImageStats()
        self.policies: dict[str, PolicyTable] = {}  # of its mounts, by mount point; replaced only
        self.pinned = False  # it is not evicted
        self.lies = 0  # answers of its source that were not what its index says
        self.void: set[bytes] = set()  # sectors of which another size was proven
        self.absent = set(self.sectors)  # sectors that are not whole

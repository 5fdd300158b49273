# SPDX-License-Identifier: Apache-2.0
"""An image that the fetcher serves from one source: its sectors, lane, counters and history."""

from __future__ import annotations

import time

from firstread.cache.membership import Member
from firstread.cache.nodeimage import NodeImage, SectorMap
from firstread.config import PolicyTable
from firstread.fetch.history import History
from firstread.fetch.lane import Lane
from firstread.fetch.startplan import StartPlan
from firstread.fetch.stats import ImageStats
from firstread.fetch.tracelog import TraceLog


class Served:
    """An image that is served.

    Args:
        image: which.
        lane: of its source.
        totals: counters of all images.
    """

    def __init__(self, image: NodeImage, lane: Lane, totals: ImageStats) -> None:
        self.image = image
        self.lane = lane
        self.sectors = SectorMap(image)
        self.hot = image.block_image.hot_sectors()  # places, in the order of a start
        note = image.block_image.hot_note
        self.knows_start = bool(self.hot) and (note is None or note.is_traced)  # by a trace
        rows = image.block_image.index.sectors
        self.member = Member(rows, (rows[slot].id for slot in self.hot))
        self.stats = ImageStats(totals)
        self.plan: StartPlan | None = None  # what is fetched of it though nobody reads it
        self.log = TraceLog(time.monotonic())
        self.history = History(self.sectors, self.log)
        self.policies: dict[str, PolicyTable] = {}  # of its mounts, by mount point; replaced only
        self.lies = 0  # answers of its source that contradict its index

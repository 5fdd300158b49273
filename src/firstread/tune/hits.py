# SPDX-License-Identifier: Apache-2.0
"""Hit ratio of a bounded store, for starts that follow each other. Pure.

Owns the sequence of starts; the eviction is the node's own (`firstread.cache.clock`). Invariant:
the store holds no more than its limit, unless a single unit is larger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from firstread.cache.clock import Clock, State
from firstread.tune.layout import Layout
from firstread.tune.replay import Step

GRACE_S = 1.0
READY = 1 / 16  # of the store, that drains in advance


class Hits(NamedTuple):
    """What a store of some size has saved.

    Args:
        limit: bytes of the store.
        starts: that followed each other.
        touched: how often a start needed a unit.
        missed: how often it was absent.
        fetched: uncompressed bytes of those.
    """

    limit: int
    starts: int
    touched: int
    missed: int
    fetched: int

    @property
    def ratio(self) -> float:
        """Share of needed units that were present."""
        return 1 - self.missed / self.touched


def count_hits(layout: Layout, starts: Sequence[Iterable[Step]], limit: int) -> Hits:
    """Return what a store of `limit` bytes saves when `starts` follow each other.

    Args:
        layout: of the image.
        starts: reads of each start.
        limit: bytes of the store.
    """
    clock = Clock(GRACE_S)
    now = 0.0
    touched = missed = fetched = 0
    for start in starts:
        for unit in dict.fromkeys(need.unit for step in start for need in step.needs):
            now += 2 * GRACE_S  # what drains at the next look has had its grace
            entry = layout.units[unit].entry
            touched += 1
            if entry.id in clock:
                # Only a marked sector raises an event; a read of another is not seen.
                if clock.state(entry.id) is State.DRAINS:
                    clock.touch(entry.id)
                continue
            missed += 1
            fetched += entry.size
            now = _make_room(clock, now, limit, entry.size)
            clock.add(entry.id, entry.size)
    return Hits(limit, len(starts), touched, missed, fetched)


def _make_room(clock: Clock, now: float, limit: int, size: int) -> float:
    """Evict until `size` bytes fit, or nothing is left; return when that is done."""
    while (excess := clock.bytes + size - limit) > 0 and clock.count:
        turn = clock.turn(now, excess, int(limit * READY), lambda _: False)
        for sector_id in turn.empty:
            clock.emptied(sector_id)
        now += 2 * GRACE_S
    if clock.bytes + size > limit * (1 - READY):
        clock.turn(now, 0, int(limit * READY), lambda _: False)
    return now

# SPDX-License-Identifier: Apache-2.0
"""Hit ratio of a bounded store, for starts that follow each other. Pure.

Owns which starts need which units; the eviction is the node's own (`firstread.cache.clock`). Starts
may be of several images: layers that they have in common are held once. Invariant: the store holds
no more than its limit, unless a single unit is larger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from firstread.cache.clock import Clock, State
from firstread.tune.layout import Layout
from firstread.tune.replay import Step

GRACE_S = 1.0
READY = 1 / 16  # of the store, that drains in advance


class Held(NamedTuple):
    """A unit as a store holds it: the same id in every image of the same layer, and its bytes."""

    id: bytes
    size: int


def held(layout: Layout, start: Iterable[Step]) -> list[Held]:
    """Return the units that a start needs, in the order of their first reads."""
    wanted = dict.fromkeys(need.unit for step in start for need in step.needs)
    units = [(layout.units[number].blob, layout.units[number].entry) for number in wanted]
    return [
        Held(f"{blob.digest} {entry.offset} {entry.size}".encode(), entry.size)
        for blob, entry in units
    ]


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
        """Share of needed units that were present; 1 if none was needed."""
        return 1 - self.missed / self.touched if self.touched else 1.0


def count_hits(starts: Sequence[Iterable[Held]], limit: int) -> Hits:
    """Return what a store of `limit` bytes saves when `starts` follow each other.

    Args:
        starts: units that each of them needs.
        limit: bytes of the store.
    """
    clock = Clock(GRACE_S)
    now = 0.0
    touched = missed = fetched = 0
    for start in starts:
        for unit in start:
            now += 2 * GRACE_S  # what drains at the next look has had its grace
            touched += 1
            if unit.id in clock:
                # Only a marked sector raises an event; a read of another is not seen.
                if clock.state(unit.id) is State.DRAINS:
                    clock.touch(unit.id)
                continue
            missed += 1
            fetched += unit.size
            now = _make_room(clock, now, limit, unit.size)
            clock.add(unit.id, unit.size)
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

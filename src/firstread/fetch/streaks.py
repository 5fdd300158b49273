# SPDX-License-Identifier: Apache-2.0
"""Recognises sequential readers, and says how far to fetch ahead of each. Pure.

Owns the streaks: stretches of a blob whose sectors are read one behind the other. Everything is
in compressed bytes of the blob, so that it means the same for sectors of every size. Does not know
what is present, and queues nothing: `firstread.fetch.backlog` does. Its lane has one lock for all
of it.

A reader that goes from one sector to the next may only read small files that lie together. What
tells a sequential one is that it *goes on where it was*: it begins a sector at its first byte, or
one that is being filled where the filling is. On a link that brings a sector at once both get a
little; else only the second one gets anything, and what it gets doubles with each sector until it
covers `AHEAD_S` of the link.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from firstread.fetch.queue import Filling
from firstread.sectors.source import Wanted
from firstread.units import MiB

AHEAD_S = 2.0  # of the link: longer than any round trip, and what a reader that stops has cost
MOST_AHEAD_BYTES = 128 * MiB  # for one streak
FIRST_SECTORS = 2
AT_ONCE_S = 0.025  # a link that takes longer for a sector has no room for a mere guess
MOST_STREAKS = 64
IN_ORDER = 2  # sectors that a reader has gone on to, before it is taken to read the next one whole
WHOLE_S = 0.010  # in which the link has to bring that one


@dataclass(slots=True, eq=False)
class Streak:
    """A stretch of a blob that is read in order.

    Args:
        at: where in the blob the sector begins that was asked for last.
        last: the sector furthest behind it that is wanted.
        reach: how many bytes behind that sector should be wanted.
        went_on: sectors, one behind the other, that the reader has gone on to.
    """

    at: int
    last: Wanted
    reach: float = 0.0
    went_on: int = 0

    def has(self, sector: Wanted) -> bool:
        """Return whether a reader of `sector` may be the one of this streak."""
        span, last = sector.span, self.last.span
        return span.blob.digest == last.blob.digest and self.at <= span.start <= last.stop

    def is_short(self, sector: Wanted) -> bool:
        """Return whether more is to be wanted: less than half of what should be, is."""
        return self.last.span.stop - sector.span.stop < self.reach / 2

    def is_in_order(self, sector: Wanted, bytes_per_s: float) -> bool:
        """Return whether reads of a sector should wait for all of it.

        The reader wants it all, and it comes at once. So a reader that is faster than the link
        waits once for each sector; the kernel alone serves its other reads.
        """
        return self.went_on >= IN_ORDER and sector.span.length < WHOLE_S * bytes_per_s

    def covers(self, sector: Wanted) -> bool:
        """Return whether enough is wanted, for a reader that is at `sector`."""
        return self.last.span.stop >= sector.span.stop + self.reach


class Streaks:
    """The streaks of one source."""

    def __init__(self) -> None:
        self._streaks: deque[Streak] = deque(maxlen=MOST_STREAKS)  # the last seen is first

    def demand(self, filling: Filling, offset: int, bytes_per_s: float) -> Streak | None:
        """Note a read that waits for a sector; return its streak if somebody reads it in order.

        Args:
            filling: the sector.
            offset: first byte of it that is wanted.
            bytes_per_s: of the link.
        """
        sector = filling.sector
        streak = next((streak for streak in self._streaks if streak.has(sector)), None)
        if streak is None:
            self._streaks.appendleft(Streak(sector.span.start, sector))
            return None
        if streak is not self._streaks[0]:
            self._streaks.remove(streak)
            self._streaks.appendleft(streak)
        if sector.span.start != streak.at:
            self._move(streak, sector, bytes_per_s, goes_on=offset <= filling.filled)
        return streak if streak.reach else None

    def _move(self, streak: Streak, sector: Wanted, bytes_per_s: float, *, goes_on: bool) -> None:
        span = sector.span
        streak.at = span.start
        if span.stop > streak.last.span.stop:
            streak.last = sector
        first = FIRST_SECTORS * span.length
        streak.went_on = streak.went_on + 1 if goes_on else 0
        if goes_on:
            most = min(max(first, AHEAD_S * bytes_per_s), MOST_AHEAD_BYTES)
            streak.reach = min(max(2 * streak.reach, first), most)
        elif span.length < AT_ONCE_S * bytes_per_s:
            streak.reach = max(streak.reach, min(first, MOST_AHEAD_BYTES))
        else:
            streak.reach = 0.0

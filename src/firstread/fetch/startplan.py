# SPDX-License-Identifier: Apache-2.0
"""What a node fetches of an image beside what is read: lazy or full, decided. Pure.

Owns the one comparison. A classic pull cannot be ready before all of the image has come; a lazy
start can be late by a round trip for each cold read beyond its hot sectors. If all of it comes in
the time of `MISSES` such reads, the rest follows the hot sectors at once, so that ready is never
later than a pull. On any other link it would only take bytes from reads.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from firstread.fetch.rate import Rate
from firstread.sectors.image import PREFETCH
from firstread.sectors.source import Wanted
from firstread.units import KiB

MISSES = 16  # cold reads, one after the other, that a start may make beyond its hot sectors
MISS_BYTES = 256 * KiB  # that each of them waits for: a frame

Mode = Literal["none", "hot", "all"]
MODES: Final[tuple[Mode, ...]] = ("none", "hot", "all")


class Rest(enum.StrEnum):
    """When what is not hot is fetched though nobody reads it."""

    NEVER = "never"
    AT_ONCE = "at once"  # behind the hot sectors
    WHEN_QUIET = "when quiet"


@dataclass(frozen=True)
class StartPlan:
    """The order of fetches that nobody waits for, and the numbers behind it.

    Args:
        mode: that holds for the image.
        hot_bytes: compressed, of hot sectors that are absent.
        all_bytes: likewise, of all sectors.
        bytes_per_s: of the link; None: not measured yet.
        latency_s: until an answer begins; likewise.
        rest: when what is not hot is fetched.
        knows_start: a trace says what is hot.
    """

    mode: Mode
    hot_bytes: int
    all_bytes: int
    bytes_per_s: float | None
    latency_s: float | None
    rest: Rest
    knows_start: bool

    @property
    def may_be_full(self) -> bool:
        """Whether all of it may follow at once, on a link that is near enough."""
        return self.mode == "all" or (self.mode == "hot" and self.knows_start)

    @property
    def is_guess(self) -> bool:
        """Whether hot sectors are streamed only as far as reads confirm them."""
        return self.mode == "hot" and self.hot_bytes > 0 and not self.knows_start

    @property
    def hot_s(self) -> float | None:
        """Seconds until the hot sectors have come."""
        return self._seconds(self.hot_bytes)

    @property
    def all_s(self) -> float | None:
        """Seconds until all has come, as with the fastest classic pull."""
        return self._seconds(self.all_bytes)

    def _seconds(self, count: int) -> float | None:
        if self.bytes_per_s is None or self.latency_s is None:
            return None
        return self.latency_s + count / self.bytes_per_s if count else 0.0


def decide(
    mode: Mode, hot_bytes: int, all_bytes: int, link: Rate, *, knows_start: bool
) -> StartPlan:
    """Return what is fetched of an image.

    An image whose start is unknown stays lazy, unless all of it is wanted.

    Args:
        mode: what holds for it.
        hot_bytes: compressed, of hot sectors that are absent.
        all_bytes: likewise, of all sectors, the hot ones included.
        link: as far as it was measured.
        knows_start: a trace says what is hot.
    """
    rest = Rest.WHEN_QUIET if mode == "all" else Rest.NEVER
    rate = latency = None
    if link.is_known:
        rate, latency = link.bytes_per_s, link.latency_s
    plan = StartPlan(mode, hot_bytes, all_bytes, rate, latency, rest, knows_start)
    if rate is None or latency is None or not plan.may_be_full:
        return plan
    misses_s = MISSES * (latency + MISS_BYTES / rate)
    is_near = (all_bytes - hot_bytes) / rate <= misses_s
    return dataclasses.replace(plan, rest=Rest.AT_ONCE) if is_near else plan


class Undecided:
    """Sectors of images that are not hot, until the hot ones are here and the link is measured."""

    def __init__(self) -> None:
        self._rests: list[tuple[StartPlan, list[Wanted]]] = []

    def add(self, plan: StartPlan, rest: Sequence[Wanted]) -> None:
        """Decide later about the sectors of an image that are not hot."""
        if rest and plan.may_be_full:
            self._rests.append((plan, list(rest)))

    def cancel(self, ids: Container[bytes]) -> None:
        """Forget these sectors: their image is unmounted."""
        left = [(plan, [s for s in rest if s.entry.id not in ids]) for plan, rest in self._rests]
        self._rests = [(plan, rest) for plan, rest in left if rest]

    def settle(self, link: Rate, size: Callable[[Wanted], int]) -> list[list[Wanted]]:
        """Decide now; return the sectors that follow at once, by image.

        Args:
            link: as it was measured.
            size: gives the bytes that the file of a sector has.
        """
        rests, self._rests = self._rests, []
        follow = []
        for plan, rest in rests:
            absent = [sector for sector in rest if size(sector) < sector.entry.size]
            count = sum(sector.entry.length for sector in absent)
            again = decide(plan.mode, 0, count, link, knows_start=plan.knows_start)
            if again.rest is Rest.AT_ONCE:
                follow.append(absent)
        return follow


def mode_of(
    asked: Iterable[str | None], annotations: Mapping[str, str] | None, configured: Mode
) -> Mode:
    """Return what holds for an image that is mounted.

    What a mount asks for comes first, the most of those that share it; then what the image says;
    then what the node is configured to. No image overrides a node that wants nothing.

    Args:
        asked: by those who share the mount; None: nothing.
        annotations: of the image's manifest: text from outside, of which three words count.
        configured: of the node.
    """
    wishes = set(asked)
    given = [mode for mode in MODES if mode in wishes]
    said = (annotations or {}).get(PREFETCH)
    if not given and configured != "none":
        given = [mode for mode in MODES if mode == said]
    return given[-1] if given else configured

# SPDX-License-Identifier: Apache-2.0
"""How far a start set is streamed: as far as reads confirm it. Pure.

A start set is a guess at the image's own command, and another command reads other things. So a read
of one of its sectors brings a window of the set, from that sector on, in the order of the set.
Where nothing is read, nothing comes. Invariant: each sector brings its window once.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from firstread.sectors.source import Wanted
from firstread.units import MiB

WINDOW_BYTES = 2 * MiB  # compressed; docs/adr/0117-a-start-set-is-streamed-as-reads-confirm-it.md


class StartWindows:
    """The start sets of the images of a lane."""

    def __init__(self) -> None:
        self._places: dict[bytes, tuple[Sequence[Wanted], int]] = {}  # id -> (its set, where in it)

    def add(self, start_set: Sequence[Wanted]) -> None:
        """Note the start set of an image, in its order."""
        for number, sector in enumerate(start_set):
            self._places[sector.entry.id] = start_set, number

    def confirm(self, sector_id: bytes) -> Iterator[Wanted]:
        """Yield what should be streamed after a read of a sector: its window, if it has one."""
        start_set, number = self._places.pop(sector_id, ((), 0))
        left = WINDOW_BYTES
        while left > 0 and number < len(start_set):
            yield start_set[number]
            left -= start_set[number].entry.length
            number += 1

    def cancel(self, ids: Container[bytes]) -> None:
        """Forget these sectors: their image is unmounted."""
        self._places = {i: place for i, place in self._places.items() if i not in ids}

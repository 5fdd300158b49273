# SPDX-License-Identifier: Apache-2.0
"""The text of the annotation that says what is hot in an image. Pure.

Owns both directions. It stands in a manifest, which anyone who may push can write, so its length
and all numbers have bounds. Invariant: whatever the text says, reading it costs time and memory in
proportion to the sectors of the image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from firstread.errors import ImageError

MAX_RANGES = 256  # of sectors that stay where they are; the rest is not listed
MAX_SIZE = 4096  # characters
NO_TRACE = "sha256:" + 64 * "0"  # in the place of a digest: of a start set, which no run has shown

_NOTE = re.compile(
    r"v1 granule=([0-9]{1,10}) reads=([0-9]{1,10}) trace=(sha256:[0-9a-f]{64})"
    r"(?: whole=([0-9,-]{1,3800}))?"
)
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


@dataclass(frozen=True)
class HotNote:
    """The hot data of an image.

    Args:
        granule: bytes of the smallest chunk.
        reads: of the trace that hot sectors serve.
        trace: digest of the trace file; `NO_TRACE` for a start set.
        whole: device slots of sectors that a start reads as a whole, so that they stay in the blobs
            of their layers, in the order of the start; its text may order many more coarsely.
    """

    granule: int
    reads: int
    trace: str
    whole: tuple[int, ...] = ()

    @property
    def is_traced(self) -> bool:
        """Whether a start has read what is hot."""
        return self.trace != NO_TRACE

    def __str__(self) -> str:
        ranges = [
            str(first) if first == last else f"{first}-{last}" for first, last in _runs(self.whole)
        ]
        whole = f" whole={','.join(ranges)}" if ranges else ""
        return f"v1 granule={self.granule} reads={self.reads} trace={self.trace}{whole}"

    @classmethod
    def parse(cls, text: str, sectors: int) -> HotNote:
        """Read the text of an annotation.

        Args:
            text: as `str` gives it.
            sectors: device slots of the image.

        Raises:
            ImageError: it is something else, or names a slot that the image lacks.
        """
        match = _NOTE.fullmatch(text) if len(text) <= MAX_SIZE else None
        if match is None:
            raise ImageError("the annotation of its hot sectors is malformed")
        whole: dict[int, None] = {}
        left = sectors
        for part in (match[4] or "").split(",") if match[4] else ():
            found = _RANGE.fullmatch(part)
            first = int(found[1]) if found else sectors
            last = int(found[2] or first) if found else 0
            left -= last - first + 1
            if not first <= last < sectors or left < 0:
                raise ImageError("the annotation of its hot sectors names sectors that it lacks")
            whole.update(dict.fromkeys(range(first, last + 1)))
        return cls(int(match[1]), int(match[2]), match[3], tuple(whole))


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return (first, last) of each run of ascending numbers, as many as are listed.

    Too many runs are joined: the numbers are sorted within windows, which are as small as it takes.
    """
    window, runs = 1, _ascending(numbers)
    while len(runs) > MAX_RANGES and window < len(numbers):
        window *= 2
        windows = (numbers[at : at + window] for at in range(0, len(numbers), window))
        runs = _ascending(number for part in windows for number in sorted(part))
    return runs[:MAX_RANGES]


def _ascending(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return (first, last) of each run of ascending numbers."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs

# SPDX-License-Identifier: Apache-2.0
"""Which frames of a sector are on this node. Pure.

Owns the arithmetic of sets of frames, kept as the bytes that the frames take: neither a read nor a
file knows a frame size. The common case is a prefix, one number; pieces behind a hole exist only
where a device may fill at random. Invariant: pieces are in order, do not touch each other, and lie
behind the prefix with a gap.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrameSet:
    """The verified bytes of a sector.

    Args:
        prefix: bytes from the beginning, in one piece.
        pieces: (start, end) of each other piece.
    """

    prefix: int = 0
    pieces: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all pieces together; those of the whole sector if nothing is missing."""
        return self.prefix + sum(end - start for start, end in self.pieces)

    @property
    def has_holes(self) -> bool:
        """Whether something is missing in front of something that is here."""
        return bool(self.pieces)

    @property
    def end(self) -> int:
        """Where the last piece ends: the size that the file has at least."""
        return self.pieces[-1][1] if self.pieces else self.prefix

    def covers(self, start: int, end: int) -> bool:
        """Return whether all bytes from `start` to `end` are here."""
        return end <= self.prefix or any(
            first <= start and end <= last for first, last in self.pieces
        )

    def having(self, start: int, end: int) -> FrameSet:
        """Return the set with the bytes from `start` to `end` added."""
        if start <= self.prefix and not self.pieces:
            return FrameSet(max(self.prefix, end))
        merged = [(0, self.prefix)]
        for first, last in sorted([*self.pieces, (start, end)]):
            if first <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(merged[-1][1], last)
            else:
                merged.append((first, last))
        return FrameSet(merged[0][1], tuple(merged[1:]))


NOTHING = FrameSet()

# SPDX-License-Identifier: Apache-2.0
"""What a lane meets: the files that it fills, the space, the outcome of reads, and counters.

Interfaces only. `sectorfiles` implements `Files` and `Space`, `outcomes` implements `Outcome`,
`stats` implements `Counts`; tests bring their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from firstread.cache.pending import PendingRead
from firstread.errors import FirstreadError, ImageError
from firstread.fetch.queue import Filling
from firstread.sectors.source import Wanted

if TYPE_CHECKING:
    from firstread.fetch.lane import Lane


class Files(Protocol):
    """The sector files that verified content goes to. Called without the lane's lock."""

    def admit(self, sector: Wanted) -> int:
        """Wait for room for a sector, and keep its file from being emptied; return the room.

        Raises:
            NodeError: there is none.
        """

    def open(self, sector: Wanted, beside: int | None) -> int:
        """Return a new descriptor of the sector's file.

        Args:
            sector: which.
            beside: descriptor of the file that came with an event, if a read waits. Then it is
                called with the lock held, and must not block.

        Raises:
            HeldUpError: it cannot be opened by its name just now.
        """

    def write(self, sector: Wanted, fd: int, position: int, frame: memoryview) -> None:
        """Write a verified frame of a sector into its file at `position`."""

    def commit(self, sector: Wanted, fd: int) -> None:
        """The sector is whole: no more events are needed of it."""

    def leave(self, sector: Wanted, room: int) -> None:
        """The file is not written to any more; `room` is what `admit` gave."""


class Space(Protocol):
    """The bytes on disk, and the room left. Called with the lane's lock held: must not block."""

    def size(self, sector: Wanted) -> int:
        """Return the bytes that the sector's file has."""

    def has_spare(self, sectors: int, sector: Wanted) -> bool:
        """Return whether so many sectors like this one fit that nobody waits for."""


class Outcome(Protocol):
    """What becomes of reads and of attempts. Called without the lane's lock, by any worker."""

    def allow(self, reads: Sequence[PendingRead]) -> None:
        """Let reads go on."""

    def completed(self, filling: Filling) -> None:
        """Note that a sector came whole."""

    def failed(self, filling: Filling, error: FirstreadError, lane: Lane) -> None:
        """Note an attempt that failed; its reads may go elsewhere, see `Lane.release_reads`."""

    def corrupt(
        self, filling: Filling, offset: int, data: bytes, error: ImageError, lane: Lane
    ) -> None:
        """Note wrong bytes of a sector, and where among its compressed ones they begin."""

    def give_up(
        self, filling: Filling, reads: Sequence[PendingRead], error: FirstreadError, lane: Lane
    ) -> None:
        """A sector cannot be had from `lane`: find another way, or let its reads fail.

        There may be none: then it is missing only where all of an image is to be on this node.
        """


class Counts(Protocol):
    """Counts what a lane does. Called without the lane's lock."""

    def demanded(self, sector: Wanted) -> None:
        """Count the first read that asks for a sector."""

    def requested(self, filling: Filling, size: int) -> None:
        """Count a request of `size` bytes that begins with this sector."""

    def received(self, filling: Filling, count: int) -> None:
        """Count compressed bytes that came for a sector."""

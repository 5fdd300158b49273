# SPDX-License-Identifier: Apache-2.0
"""Turns the compressed bytes of one sector, as they arrive, into verified frames.

No I/O: the caller writes into `SectorDecoder.buffer` and says how far it is filled. Invariant: a
frame leaves only after its SHA-256 matched a frame table that matched the sector id.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate

import zstandard

from firstread.errors import ImageError
from firstread.sectors.format import FrameTable, Geometry, SectorEntry
from firstread.units import KiB

_MARGIN = 1.1  # frames of one sector compress unevenly
_MARGIN_BYTES = 16 * KiB


class SectorDecoder:
    """Decodes one sector.

    Args:
        entry: row of the sector index.
        geometry: of the image.
        buffer: at least ``entry.length`` bytes that the caller fills from the front with the
            sector's bytes; None to make one.
        frame_buffer: at least ``geometry.frame_size`` bytes; what is given out next overwrites
            it, and decoders of one thread may share it.
    """

    def __init__(
        self,
        entry: SectorEntry,
        geometry: Geometry,
        buffer: memoryview | None = None,
        frame_buffer: bytearray | None = None,
    ) -> None:
        self.entry = entry
        self.buffer = (buffer or memoryview(bytearray(entry.length)))[: entry.length]
        self.number = 0  # of the next frame
        self.verified = 0  # where in the sector it begins, in bytes
        self._geometry = geometry
        self._frame = memoryview(frame_buffer or bytearray(geometry.frame_size))
        self._table: FrameTable | None = None
        self._starts: list[int] = []  # of frames in the sector's bytes, and their end; by the table
        self._base = 0  # what of the sector's bytes is not in the buffer
        self._left = b""  # what has come of the next frame when it rested
        self._decompressor = frame_decompressor(geometry)

    @property
    def done(self) -> bool:
        return self.verified == self.entry.size

    @property
    def offset(self) -> int:
        """Which of the sector's compressed bytes comes next, also after a rest."""
        return self._next + len(self._left)

    @property
    def _next(self) -> int:
        """Where the next frame begins in the sector's compressed bytes; 0 before the table."""
        return self._starts[self.number] if self._starts else 0

    def reach(self, end: int) -> int:
        """Return how many of the sector's compressed bytes give its first `end` bytes.

        Exact once the frame table is here; before that as many as an even compression would need,
        and a little more.
        """
        frames = -(-min(end, self.entry.size) // self._geometry.frame_size)
        if self._starts:
            return self._starts[frames]
        share = frames / self._geometry.frames(self.entry.size)
        return min(self.entry.length, int(self.entry.length * share * _MARGIN) + _MARGIN_BYTES)

    def extents(self, frames: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Yield where among the sector's compressed bytes some frames lie, as (start, stop).

        Leaves out what has come already of the next frame. As long as the frame table is not here,
        there is one extent for all, as `reach` estimates it.

        Args:
            frames: their numbers, ascending.
        """
        if not self._starts:
            end = max((number + 1 for number in frames), default=0) * self._geometry.frame_size
            yield self.offset, max(self.reach(end), self.needed)
            return
        for number in frames:
            start = self.offset if number == self.number else self._starts[number]
            yield start, self._starts[number + 1]

    def go_to(self, offset: int) -> None:
        """Go on with the frame that begins at a byte of the compressed ones, whichever is next.

        Raises:
            ImageError: no known frame begins there.
        """
        if offset == self.offset:
            return
        if offset not in (self._starts or [0]):
            raise ImageError(f"no frame begins at byte {offset} of the sector's compressed bytes")
        self._left = b""
        self.number = self._starts.index(offset) if self._starts else 0
        self.verified = min(self.number * self._geometry.frame_size, self.entry.size)

    @property
    def needed(self) -> int:
        """Return how far to fill the buffer for the next step: the table, or a frame."""
        if self._table is None:
            return self._geometry.table_size(self.entry.size)
        return self._starts[self.number + (not self.done)] - self._base

    def step(self, most: int) -> int:
        """Return `needed`, or the end of the last frame that lies within the next `most` bytes."""
        if not self._starts:
            return self.needed
        last = bisect_right(self._starts, self._next + most) - 1
        return max(self.needed, self._starts[last] - self._base)

    @property
    def suspect(self) -> tuple[int, bytes]:
        """Return what `advance` has just refused, and where in the sector's bytes it begins."""
        return self._next, bytes(self.buffer[self._next - self._base : self.needed])

    def rest(self, filled: int) -> None:
        """Stop for now: keep what the first `filled` bytes of the buffer have of the next frame."""
        self._left = bytes(self.buffer[self._next - self._base : filled])
        self.buffer = self._frame = memoryview(b"")

    def resume(self, buffer: memoryview, frame_buffer: bytearray) -> int:
        """Go on with another buffer; return how far it is filled already.

        Args:
            buffer: at least ``entry.length`` bytes. The sector's bytes from `offset` on go behind
                what is returned.
            frame_buffer: as for the constructor.
        """
        self._frame = memoryview(frame_buffer)
        self._base = self._next
        self.buffer = buffer[: self.entry.length - self._base]
        filled = len(self._left)
        self.buffer[:filled] = self._left
        self._left = b""
        return filled

    def advance(self, filled: int) -> Iterator[memoryview]:
        """Yield the frames that the first `filled` bytes of the buffer complete, in order.

        As many at a time as the frame buffer takes; valid until the next ones are asked for.

        Raises:
            ImageError: the bytes are not this sector.
        """
        if self._table is None:
            size = self._geometry.table_size(self.entry.size)
            if filled < size:
                return
            table = FrameTable.unpack(self.buffer[:size], self._geometry)
            table.check(self.entry, self._geometry)
            self._table = table
            self._starts = list(accumulate(table.lengths, initial=size))
        filled += self._base
        while self._is_complete(filled):
            begun, error = self.verified, None
            try:
                room = self._frame
                while self._is_complete(filled):
                    self._decode(self._table, room)
                    room = self._frame[self.verified - begun :]
                    if len(room) < self._geometry.frame_size:
                        break
            except ImageError as exc:
                error = exc
            if self.verified > begun:
                yield self._frame[: self.verified - begun]
            if error is not None:
                raise error

    def _is_complete(self, end: int) -> bool:
        """Return whether the sector's bytes before `end` have all of the next frame."""
        return not self.done and self._starts[self.number + 1] <= end

    def _decode(self, table: FrameTable, room: memoryview) -> None:
        """Decode the next frame to the beginning of `room`."""
        number = self.number
        start = self._starts[number] - self._base
        end = self._starts[number + 1] - self._base
        size = min(self._geometry.frame_size, self.entry.size - self.verified)
        frame = room[:size]
        try:
            decode_frame(self._decompressor, self.buffer[start:end], frame, table.digests[number])
        except ImageError as exc:
            exc.message = f"frame {number} {exc.message}"
            raise
        self.number += 1
        self.verified += size


def frame_decompressor(geometry: Geometry) -> zstandard.ZstdDecompressor:
    """Return a decompressor that takes no more memory than a frame of `geometry` needs.

    zstd itself would take up to 128 MiB if a frame says that it needs them.
    """
    return zstandard.ZstdDecompressor(max_window_size=geometry.frame_size)


def decode_frame(
    decompressor: zstandard.ZstdDecompressor,
    stored: bytes | memoryview,
    frame: memoryview,
    digest: bytes,
) -> None:
    """Decompress one frame and verify it.

    Args:
        decompressor: see `frame_decompressor`.
        stored: the compressed frame, and nothing else.
        frame: of the length that the frame must have; filled.
        digest: SHA-256 that it must have.

    Raises:
        ImageError: it is another frame; the caller puts its name before the message.
    """
    filled = 0
    try:
        with decompressor.stream_reader(stored, read_across_frames=True) as reader:
            while filled < len(frame) and (count := reader.readinto(frame[filled:])):
                filled += count
            filled += reader.readinto(bytearray(1))  # longer than stated?
    except zstandard.ZstdError as exc:
        raise ImageError(f"cannot be decompressed: {exc}") from exc
    if filled != len(frame) or hashlib.sha256(frame).digest() != digest:
        raise ImageError("does not match its digest")

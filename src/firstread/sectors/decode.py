# SPDX-License-Identifier: Apache-2.0
"""Turns the compressed bytes of one sector, as they arrive, into verified frames.

No I/O: whoever fetches writes into `SectorDecoder.buffer` and says how far it is filled. Invariant:
a frame leaves here only after its SHA-256 matched a frame table that matched the sector id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

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
        buffer: at least ``entry.length`` bytes to be filled from the front with the sector's
            bytes; one is made if None. `frame` buffers can be shared between decoders of one
            thread through `frame_buffer`.
        frame_buffer: at least ``geometry.frame_size`` bytes; overwritten by each frame.
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
        self.verified = 0  # bytes of the sector that have been given out
        self._geometry = geometry
        self._frame = memoryview(frame_buffer or bytearray(geometry.frame_size))
        self._table: FrameTable | None = None
        self._number = 0  # of the next frame
        self._offset = geometry.table_size(entry.size)  # of the next frame in the sector's bytes
        self._base = 0  # what of the sector's bytes is not in the buffer
        self._left = b""  # what has come of the next frame when it rested
        self._decompressor = frame_decompressor(geometry)

    @property
    def done(self) -> bool:
        return self.verified == self.entry.size

    @property
    def offset(self) -> int:
        """Which of the sector's compressed bytes is needed next: where to go on after a rest."""
        return self._next + len(self._left)

    @property
    def _next(self) -> int:
        """Where the next frame begins in the sector's compressed bytes; 0 before the table."""
        return self._offset if self._table is not None else 0

    def reach(self, end: int) -> int:
        """Return how many of the sector's compressed bytes are needed for its first `end` bytes.

        Exact once the frame table is here; before that what an even compression would need, and a
        little more.
        """
        frames = -(-min(end, self.entry.size) // self._geometry.frame_size)
        if self._table is not None:
            return self._geometry.table_size(self.entry.size) + sum(self._table.lengths[:frames])
        share = frames / self._geometry.frames(self.entry.size)
        return min(self.entry.length, int(self.entry.length * share * _MARGIN) + _MARGIN_BYTES)

    @property
    def needed(self) -> int:
        """Return how far the buffer must be filled for the next step: the table, or a frame."""
        if self._table is None:
            return self._geometry.table_size(self.entry.size)
        if self.done:
            return self._offset - self._base
        return self._offset + self._table.lengths[self._number] - self._base

    @property
    def suspect(self) -> tuple[int, bytes]:
        """Return what `advance` has just refused, and where in the sector's bytes it begins."""
        return self._base, bytes(self.buffer[: self.needed])

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
        """Yield each frame that the first `filled` bytes of the buffer complete, in order.

        A frame is valid until the next one is asked for.

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
        filled += self._base
        while not self.done and self._offset + self._table.lengths[self._number] <= filled:
            frame = self._decode(self._table, self._number)
            self._offset += self._table.lengths[self._number]
            self._number += 1
            self.verified += len(frame)
            yield frame

    def _decode(self, table: FrameTable, number: int) -> memoryview:
        start = self._offset - self._base
        end = start + table.lengths[number]
        size = min(self._geometry.frame_size, self.entry.size - self.verified)
        frame = self._frame[:size]
        try:
            decode_frame(self._decompressor, self.buffer[start:end], frame, table.digests[number])
        except ImageError as exc:
            exc.message = f"frame {number} {exc.message}"
            raise
        return frame


def frame_decompressor(geometry: Geometry) -> zstandard.ZstdDecompressor:
    """Return a decompressor that takes no more memory than a frame of `geometry` needs.

    zstd itself would take up to 128 MiB for a frame that says that it needs them.
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
        frame: as long as the frame is to be; filled.
        digest: SHA-256 that it must have.

    Raises:
        ImageError: it is another frame; the message is to be preceded by its name.
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

# SPDX-License-Identifier: Apache-2.0
"""The compressed bytes of a request, as they arrive, turned into verified frames.

Owns the memory of one worker, which holds one compressed and one plain frame however long the
sector is, and the measuring of the link. Knows neither files nor readers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from firstread.errors import TransportError
from firstread.oci.repository import BlobStream
from firstread.sectors.decode import SectorDecoder
from firstread.sectors.format import Geometry, SectorEntry, compress_bound
from firstread.units import KiB

MEASURED_BYTES = 16 * KiB  # smaller reads say nothing about the rate of a link


class Rate:
    """How fast answers come, in bytes per second: infinitely fast until measured."""

    def __init__(self) -> None:
        self.bytes_per_s = math.inf

    def note(self, count: int, seconds: float) -> None:
        """Note that `count` bytes took `seconds`."""
        if count < MEASURED_BYTES:
            return
        rate, known = count / max(seconds, 1e-6), self.bytes_per_s
        self.bytes_per_s = rate if known == math.inf else known + (rate - known) / 4


class Window:
    """Memory for one frame, compressed and plain; grows to the largest that was asked for."""

    def __init__(self) -> None:
        self.stored = bytearray()
        self.frame = bytearray()

    def fit(self, geometry: Geometry, size: int) -> None:
        """Have room for each frame, and for the frame table, of a sector of `size` bytes."""
        stored = max(geometry.table_size(size), compress_bound(geometry.frame_size))
        if len(self.stored) < stored:
            self.stored = bytearray(stored)
        if len(self.frame) < geometry.frame_size:
            self.frame = bytearray(geometry.frame_size)


def bare_decoder(entry: SectorEntry, geometry: Geometry) -> SectorDecoder:
    """Return a decoder that has no memory of its own: `Transfer` lends it some."""
    return SectorDecoder(entry, geometry, memoryview(b"\0"), bytearray(1))


class Transfer:
    """One request for sectors that lie behind each other.

    Args:
        stream: the answer.
        length: compressed bytes that were asked for.
        window: memory of the worker.
        rate: of the link.

    Attributes:
        left: compressed bytes that are still to come.
    """

    def __init__(self, stream: BlobStream, length: int, window: Window, rate: Rate) -> None:
        self.left = length
        self._stream = stream
        self._window = window
        self._rate = rate

    @property
    def source(self) -> str:
        """Who gave the last bytes; ``""`` if the repository is one place."""
        return self._stream.source

    def frames(self, decoder: SectorDecoder, geometry: Geometry) -> Iterator[memoryview]:
        """Yield the frames of the sector that comes next in the answer.

        Ends with the sector or with the answer; then the decoder rests, and can go on with the
        byte behind it. A frame is valid until the next one is asked for.

        Args:
            decoder: of the sector, and as far as the answer.
            geometry: of its image.

        Raises:
            ImageError: the bytes are not this sector.
            SourceError: no more of them can be had; the decoder rests.
        """
        self._window.fit(geometry, decoder.entry.size)
        while not decoder.done and self.left:
            filled = decoder.resume(memoryview(self._window.stored), self._window.frame)
            until = min(decoder.needed, filled + self.left)
            try:
                self._read(decoder.buffer[filled:until])
            except BaseException:
                decoder.rest(filled)
                raise
            yield from decoder.advance(until)
            decoder.rest(until)

    def _read(self, target: memoryview) -> None:
        started = time.monotonic()
        count = self._stream.readinto(target)
        if count < len(target):
            raise TransportError("the answer ended before the sector did")
        self._rate.note(count, time.monotonic() - started)
        self.left -= count

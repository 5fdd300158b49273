# SPDX-License-Identifier: Apache-2.0
"""Writes a sector blob: compressed sectors in order, then the layer record.

Owns compression, the digests of the blob and the buffers of sectors. Invariants: sectors reach the
blob in the order of `BlobWriter.submit`, whoever compresses them first; no thread outlives the
context.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, Self

import msgspec
import zstandard

from firstread.convert.record import PackedSector, Parameters
from firstread.sectors.format import (
    SKIPPABLE_RECORD,
    FrameTable,
    Geometry,
    pack_skippable,
    sector_id,
)

ONLY_SECTOR_LEVEL = 9  # at least, for the only sector of a layer: takes 0.1 s and saves 5 %


class PackedLayer(msgspec.Struct, frozen=True):
    """A layer whose data is in a sector blob.

    Args:
        record: the encoded `LayerRecord`; empty for hot sectors, which are no layer of the source.
        record_offset: of the record in the blob, its frame header included.
        digest: ``sha256:…`` of the blob.
        size: bytes of the blob; a layer without data has a blob with only the record.
        diff_id: ``sha256:…`` of the uncompressed blob: its sectors back to back.
    """

    record: bytes
    record_offset: int
    digest: str
    size: int
    diff_id: str


class BlobWriter:
    """Compresses sectors on a pool and writes them to the blob in the order of `submit`.

    Args:
        out: takes the blob.
        parameters: geometry and level.
        jobs: sectors compressed at a time.
        in_flight: sectors that may wait for compression or for their turn to be written.
    """

    def __init__(self, out: BinaryIO, parameters: Parameters, jobs: int, in_flight: int) -> None:
        self._out = out
        self._geometry = parameters.geometry
        self._level = parameters.level
        self._first: tuple[int, memoryview] | None = None
        self._several = False
        self._zeros = bytes(parameters.sector_size)
        self._in_flight = in_flight
        self._free: list[memoryview] = []
        self._pending: deque[Future[None]] = deque()
        self._sectors: dict[int, PackedSector] = {}
        self._size = 0
        self._blob = hashlib.sha256()
        self._content = hashlib.sha256()
        self._compression = ThreadPoolExecutor(jobs, thread_name_prefix="pack")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="write")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Work is pending here only after an error, and nobody waits for it any more.
        self._writing.shutdown(wait=False, cancel_futures=True)
        self._compression.shutdown(cancel_futures=True)
        self._writing.shutdown()

    def take(self) -> memoryview:
        """Return a buffer of one sector, with arbitrary content."""
        return self._free.pop() if self._free else memoryview(bytearray(len(self._zeros)))

    def submit(self, number: int, buffer: memoryview, size: int, *, whole: bool = False) -> None:
        """Hand over the first `size` bytes of a buffer as sector `number`.

        A whole sector of one file that holds only zeros becomes a hole of that file.

        Raises:
            OSError: an earlier sector could not be written.
        """
        if whole and buffer.obj == self._zeros:
            self._sectors[number] = PackedSector(b"", size, 0, 0)
            self._free.append(buffer)
            return
        data = buffer[:size]
        if not self._several and self._first is None:
            self._first = number, data  # it may remain the only one: see ONLY_SECTOR_LEVEL
            return
        if self._first is not None:
            self._compress(*self._first, self._level)
            self._first, self._several = None, True
        self._compress(number, data, self._level)

    def _compress(self, number: int, data: memoryview, level: int) -> None:
        packed = self._compression.submit(compress_sector, data, self._geometry, level)
        self._pending.append(self._writing.submit(self._write_sector, number, data, packed))
        if len(self._pending) > self._in_flight:
            self._pending.popleft().result()

    def finish(self) -> list[PackedSector]:
        """Write all pending sectors; return every sector in the order of its number."""
        if self._first is not None:
            self._compress(*self._first, max(self._level, ONLY_SECTOR_LEVEL))
        while self._pending:
            self._pending.popleft().result()
        return [self._sectors[number] for number in range(len(self._sectors))]

    def seal(self, record: bytes) -> PackedLayer:
        """End the blob with the layer record; hot sectors have none, and `record` is empty."""
        offset = self._size
        if record:
            self._write(pack_skippable(SKIPPABLE_RECORD, record))
        self._out.flush()
        return PackedLayer(
            record,
            offset,
            "sha256:" + self._blob.hexdigest(),
            self._size,
            "sha256:" + self._content.hexdigest(),
        )

    def _write_sector(
        self, number: int, data: memoryview, packed: Future[tuple[bytes, bytes]]
    ) -> None:
        self._content.update(data)
        identity, stored = packed.result()
        self._sectors[number] = PackedSector(identity, len(data), self._size, len(stored))
        self._write(stored)
        self._free.append(memoryview(data.obj))

    def _write(self, stored: bytes) -> None:
        self._blob.update(stored)
        self._out.write(stored)
        self._size += len(stored)


class _Compressors(threading.local):
    """One compressor for each thread and level: sharing is unsafe, and making one is slow."""

    def __init__(self) -> None:
        self.by_level: dict[int, zstandard.ZstdCompressor] = {}


_compressors = _Compressors()


def compress_sector(data: memoryview, geometry: Geometry, level: int) -> tuple[bytes, bytes]:
    """Return the id of a sector and its bytes in a blob: frame table and frames.

    Args:
        data: the sector; its length a multiple of `BLOCK_SIZE`.
        geometry: of the image.
        level: zstd compression level.
    """
    compressor = _compressors.by_level.get(level)
    if compressor is None:
        compressor = _compressors.by_level[level] = zstandard.ZstdCompressor(level=level)
    digests, frames = [], []
    for start in range(0, len(data), geometry.frame_size):
        frame = data[start : start + geometry.frame_size]
        digests.append(hashlib.sha256(frame).digest())
        frames.append(compressor.compress(frame))
    table = FrameTable(len(data), [len(frame) for frame in frames], digests)
    identity = sector_id(len(data), geometry.frame_size, digests)
    return identity, b"".join([table.pack(geometry.frame_size), *frames])

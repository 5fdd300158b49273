# SPDX-License-Identifier: Apache-2.0
"""A sector blob in memory, and a repository that gives ranges of it.

Owns made-up sectors. No sockets, no files. Invariant: the same call gives the same sectors. Faults
are put before it by `faultsource`.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from dataclasses import dataclass

import zstandard

from firstread.errors import NotFoundError, TransportError
from firstread.node.filling import Wanted
from firstread.oci.model import Descriptor, describe
from firstread.oci.reference import parse_reference
from firstread.oci.repository import BlobStream, ReadOnly, clamp
from firstread.sectors.format import SECTORS_MEDIA_TYPE, FrameTable, Geometry, SectorEntry
from firstread.units import KiB


@dataclass(frozen=True)
class Sectors:
    """Sectors that lie behind each other in one blob.

    Args:
        blob: its bytes.
        wanted: what a lane needs to fetch each sector.
        contents: of each sector.
    """

    blob: bytes
    wanted: list[Wanted]
    contents: list[bytes]

    def behind(self, sector: Wanted) -> Wanted | None:
        """Return the sector that follows `sector` in the blob."""
        number = self.wanted.index(sector) + 1
        return self.wanted[number] if number < len(self.wanted) else None


def make_sectors(
    count: int,
    *,
    size: int = 64 * KiB,
    geometry: Geometry | None = None,
    seed: int = 1,
) -> Sectors:
    """Return `count` sectors of `size` bytes that compress to about half."""
    geometry = geometry or Geometry(64 * KiB, 4 * KiB)
    numbers = random.Random(seed)
    compressor = zstandard.ZstdCompressor(level=1)
    blob, rows, contents = bytearray(), [], []
    for _ in range(count):
        content = b"".join(numbers.randbytes(512) + bytes(512) for _ in range(size // KiB))
        parts = [
            content[start : start + geometry.frame_size]
            for start in range(0, size, geometry.frame_size)
        ]
        frames = [compressor.compress(part) for part in parts]
        digests = [hashlib.sha256(part).digest() for part in parts]
        table = FrameTable(size, [len(frame) for frame in frames], digests)
        data = table.pack(geometry.frame_size) + b"".join(frames)
        rows.append(SectorEntry(table.id(geometry.frame_size), size, 0, len(blob), len(data)))
        blob += data
        contents.append(content)
    descriptor = describe(bytes(blob), SECTORS_MEDIA_TYPE)
    return Sectors(bytes(blob), [Wanted(row, descriptor, geometry) for row in rows], contents)


class MemorySource(ReadOnly):
    """A repository of one blob.

    Args:
        sectors: what is in it.
        bytes_per_s: of the link.
        name: of the repository.
    """

    def __init__(
        self,
        sectors: Sectors,
        *,
        bytes_per_s: float = math.inf,
        name: str = "memory.test/sectors",
    ) -> None:
        super().__init__(parse_reference(name))
        self.closed = False
        self._blob = sectors.blob
        self._bytes_per_s = bytes_per_s

    def get_manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        raise NotFoundError("a source of sectors has no manifests")

    def has_blob(self, blob: Descriptor) -> bool:
        return True

    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        count = clamp(blob, offset, length)
        reader = _Reader(self._blob[offset : offset + count], self._bytes_per_s)
        return BlobStream(blob, reader, length=count, verify=False, image=str(self.reference))

    def close(self) -> None:
        self.closed = True


class _Reader:
    def __init__(self, data: bytes, bytes_per_s: float) -> None:
        self._data = memoryview(data)
        self._bytes_per_s = bytes_per_s

    def readinto(self, buffer: memoryview, /) -> int:
        count = min(len(buffer), len(self._data))
        if not count:
            raise TransportError("it hung up")
        time.sleep(count / self._bytes_per_s)
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count

    def close(self) -> None:
        pass

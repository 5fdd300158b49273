# SPDX-License-Identifier: Apache-2.0
"""Blobs in memory, such as one of made-up sectors, and a repository that gives ranges of them.

No sockets, no files. Invariant: the same call makes the same sectors. `faultsource` puts faults
before it.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from dataclasses import dataclass

import zstandard

from firstread.errors import DigestError, NotFoundError
from firstread.oci.blobstream import BlobStream, clamp
from firstread.oci.model import Descriptor, describe, missing_blob
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Repository, naming
from firstread.sectors.format import SECTORS_MEDIA_TYPE, FrameTable, Geometry, SectorEntry
from firstread.sectors.source import Wanted
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


class MemorySource(Repository):
    """A repository whose blobs are a dict, open to damage. It has no manifests.

    Args:
        sectors: whose blob is in it.
        bytes_per_s: of the link.
        name: of the repository.

    Attributes:
        blobs: by digest.
    """

    def __init__(
        self,
        sectors: Sectors | None = None,
        *,
        bytes_per_s: float = math.inf,
        name: str = "memory.test/sectors",
    ) -> None:
        super().__init__(parse_reference(name))
        self.closed = False
        self.blobs: dict[str, bytes] = {}
        self._bytes_per_s = bytes_per_s
        if sectors is not None:
            self.blobs[sectors.wanted[0].blob.digest] = sectors.blob

    def get_manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        raise NotFoundError("a source of sectors has no manifests")

    def has_blob(self, blob: Descriptor) -> bool:
        return blob.digest in self.blobs

    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        with naming(self.reference):
            count = clamp(blob, offset, length)
            data = self.blobs.get(blob.digest)
            if data is None:
                raise missing_blob(blob)
            if len(data) != blob.size:
                raise DigestError(f"blob {blob.digest} has {len(data)} bytes, not {blob.size}")
        reader = _Reader(data[offset : offset + count], self._bytes_per_s)
        verify, image = count == blob.size, str(self.reference)
        return BlobStream(blob, reader, length=count, verify=verify, image=image)

    def close(self) -> None:
        self.closed = True


class _Reader:
    def __init__(self, data: bytes, bytes_per_s: float) -> None:
        self._data = memoryview(data)
        self._bytes_per_s = bytes_per_s

    def readinto(self, buffer: memoryview, /) -> int:
        count = min(len(buffer), len(self._data))
        time.sleep(count / self._bytes_per_s)
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count

    def close(self) -> None:
        pass

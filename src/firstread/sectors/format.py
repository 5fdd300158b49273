# SPDX-License-Identifier: Apache-2.0
"""On-disk structs of sector blobs and of the sector index; docs/format.md is their specification.

Owns byte layouts and the digests over them, for both directions; no I/O. Everything is
little-endian. Changing anything here breaks every image made before: raise `FORMAT_VERSION`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from firstread.errors import ImageError, LimitError, UsageError
from firstread.units import GiB, KiB, MiB, format_size, round_up

FORMAT_VERSION = 1
BLOCK_SIZE = 4096  # bytes; the EROFS block, and so the granularity of a sector's size

DEFAULT_SECTOR_SIZE = 2 * MiB  # by measurement: docs/adr/0115
DEFAULT_FRAME_SIZE = 256 * KiB
MIN_FRAME_SIZE = 4 * KiB
MAX_FRAME_SIZE = 4 * MiB  # a node holds one, twice, for each request that it makes at a time
MAX_SECTOR_SIZE = 1 * GiB  # a sector is held in memory while it is packed
MAX_SECTORS = 65535  # the EROFS superblock counts extra devices in 16 bits
MAX_METADATA_SIZE = 1 * GiB  # bound of what a node fetches before it mounts

# containerd asks a snapshotter before it fetches, for types that begin like this (docs/adr/0022).
METADATA_MEDIA_TYPE = "application/vnd.oci.image.layer.firstread.metadata.v1+zstd"
SECTORS_MEDIA_TYPE = "application/vnd.oci.image.layer.firstread.sectors.v1+zstd"
LAYER_LABEL = "containerd.io/snapshot/firstread.layer"
ARTIFACT_TYPE = "application/vnd.firstread.image.v1"  # of an image attached to its original

# zstd: 16 magic numbers are set aside for frames that a decoder skips (RFC 8878, 3.1.2).
SKIPPABLE_TABLE = 0x184D2A50  # frame table, before the frames of a sector
SKIPPABLE_RECORD = 0x184D2A51  # layer record, once, behind the last sector

_SKIPPABLE = struct.Struct("<II")  # magic, payload bytes
_TABLE = struct.Struct("<II")  # sector bytes, frame bytes
_ROW = struct.Struct("<I32s")  # compressed bytes, SHA-256 of the uncompressed frame
_ID_CONTEXT = b"firstread sector v1\0"


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sector and frame size of an image, in bytes: powers of two, the frame not above the sector.

    Raises:
        UsageError: the sizes are not possible.
    """

    sector_size: int = DEFAULT_SECTOR_SIZE
    frame_size: int = DEFAULT_FRAME_SIZE

    def __post_init__(self) -> None:
        for name, size in (("sector", self.sector_size), ("frame", self.frame_size)):
            if size < MIN_FRAME_SIZE or size & (size - 1):
                raise UsageError(
                    f"{name} size {size} is not a power of two of at least 4 KiB",
                    hint=f"use for example --{name}-size "
                    f"{'4MiB' if name == 'sector' else '256KiB'}",
                )
        if self.frame_size > self.sector_size:
            raise UsageError("the frame size is larger than the sector size")
        if self.frame_size > MAX_FRAME_SIZE:
            raise UsageError(f"the frame size is above {format_size(MAX_FRAME_SIZE)}")
        if self.sector_size > MAX_SECTOR_SIZE:
            raise UsageError(f"the sector size is above {format_size(MAX_SECTOR_SIZE)}")

    def frames(self, size: int) -> int:
        """Return how many frames a sector of `size` bytes has."""
        return -(-size // self.frame_size)

    def table_size(self, size: int) -> int:
        """Return the bytes of the frame table of a sector of `size` bytes, its header included."""
        return _SKIPPABLE.size + _TABLE.size + _ROW.size * self.frames(size)

    def max_compressed(self, size: int) -> int:
        """Return the most bytes that a sector of `size` bytes can take in a blob."""
        whole, rest = divmod(size, self.frame_size)
        tail = compress_bound(rest) if rest else 0
        return self.table_size(size) + whole * compress_bound(self.frame_size) + tail


def compress_bound(size: int) -> int:
    """Return the most bytes that zstd makes of `size` (zstd.h, ZSTD_COMPRESSBOUND)."""
    return size + (size >> 8) + (((128 * KiB - size) >> 11) if size < 128 * KiB else 0)


def sector_id(size: int, frame_size: int, digests: Iterable[bytes]) -> bytes:
    """Return the sector id: the root of a two-level Merkle tree over its frame digests.

    Args:
        size: bytes of the sector.
        frame_size: bytes of each frame but the last.
        digests: SHA-256 of each uncompressed frame, in order.
    """
    root = hashlib.sha256(_ID_CONTEXT + _TABLE.pack(size, frame_size))
    for digest in digests:
        root.update(digest)
    return root.digest()


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Frame table of one sector.

    Args:
        size: bytes of the sector.
        lengths: compressed bytes of each frame.
        digests: SHA-256 of each uncompressed frame.
    """

    size: int
    lengths: Sequence[int]
    digests: Sequence[bytes]

    def pack(self, frame_size: int) -> bytes:
        """Return the table as the skippable frame that precedes the frames."""
        rows = b"".join(map(_ROW.pack, self.lengths, self.digests))
        payload = _TABLE.pack(self.size, frame_size) + rows
        return _SKIPPABLE.pack(SKIPPABLE_TABLE, len(payload)) + payload

    def id(self, frame_size: int) -> bytes:
        """Return the id of the sector that has this table."""
        return sector_id(self.size, frame_size, self.digests)

    @classmethod
    def unpack(cls, data: bytes | memoryview, geometry: Geometry) -> FrameTable:
        """Read a frame table; its lengths are bounded, its digests are not trusted yet.

        Args:
            data: the skippable frame, whole.
            geometry: of the image.

        Raises:
            ImageError: this is not a frame table of such a sector.
        """
        if len(data) < _SKIPPABLE.size + _TABLE.size:
            raise ImageError("sector has no frame table")
        magic, length = _SKIPPABLE.unpack_from(data)
        size, frame_size = _TABLE.unpack_from(data, _SKIPPABLE.size)
        if magic != SKIPPABLE_TABLE or length + _SKIPPABLE.size != len(data):
            raise ImageError("sector has no frame table")
        if (
            frame_size != geometry.frame_size
            or not 0 < size <= geometry.sector_size
            or size % BLOCK_SIZE
            or geometry.table_size(size) != len(data)
        ):
            raise ImageError("frame table states sizes that are not the image's")
        rows = list(_ROW.iter_unpack(data[_SKIPPABLE.size + _TABLE.size :]))
        table = cls(size, [row[0] for row in rows], [row[1] for row in rows])
        if max(table.lengths) > compress_bound(frame_size):
            raise ImageError("frame table states an impossible frame length")
        return table

    def check(self, entry: SectorEntry, geometry: Geometry) -> None:
        """Check the table against the row of the index; after that its digests are trusted.

        Raises:
            ImageError: the table is not the one of this sector.
        """
        if self.size != entry.size or self.id(geometry.frame_size) != entry.id:
            raise ImageError("frame table does not match the sector id")
        if geometry.table_size(entry.size) + sum(self.lengths) != entry.length:
            raise ImageError("frame table states another length than the index")


def pack_skippable(magic: int, payload: bytes) -> bytes:
    """Return `payload` as a zstd skippable frame.

    Raises:
        LimitError: it is longer than such a frame can be.
    """
    if len(payload) >= 1 << 32:
        raise LimitError(f"{format_size(len(payload))} do not fit in a zstd skippable frame")
    return _SKIPPABLE.pack(magic, len(payload)) + payload


SKIPPABLE_HEADER_SIZE = _SKIPPABLE.size  # bytes


def skippable_header(data: bytes | memoryview) -> tuple[int, int]:
    """Return (magic, payload bytes) of a skippable frame from its first 8 bytes."""
    magic, length = _SKIPPABLE.unpack_from(data)
    return magic, length


def unpack_skippable(magic: int, data: bytes) -> bytes:
    """Return the payload of the skippable frame that `data` is, whole.

    Raises:
        ImageError: it is something else.
    """
    if len(data) < _SKIPPABLE.size or _SKIPPABLE.unpack_from(data) != (
        magic,
        len(data) - _SKIPPABLE.size,
    ):
        raise ImageError("blob has no layer record where its annotation says")
    return data[_SKIPPABLE.size :]


# -- header and sector index, both in the metadata ---------------------------------------------

_HEADER = struct.Struct("<8sHBBIIIQ")  # magic, version, sector bits, frame bits, sectors, blobs,
#                                        index bytes, reserved
_HEADER_MAGIC = b"FIRSTRD\x01"
_BLOB_ROW = struct.Struct("<32sQ")  # SHA-256 of the blob, its bytes
_SECTOR_ROW = struct.Struct("<IIQ")  # blob number, compressed bytes, offset in the blob


@dataclass(frozen=True, slots=True)
class Blob:
    """A sector blob, as the index names it: SHA-256 digest (32 bytes) and size in bytes."""

    digest: bytes
    size: int


@dataclass(frozen=True, slots=True)
class SectorEntry:
    """One row of the sector index.

    Args:
        id: sector id, 32 bytes.
        size: bytes of the sector, a multiple of `BLOCK_SIZE`.
        blob: number of its blob in `SectorIndex.blobs`.
        offset: where in the blob its frame table begins, bytes.
        length: bytes of its frame table and frames.
    """

    id: bytes
    size: int
    blob: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class SectorIndex:
    """Where every sector of an image lies; row i is the EROFS extra device i + 1."""

    geometry: Geometry
    blobs: Sequence[Blob]
    sectors: Sequence[SectorEntry]

    def header(self) -> bytes:
        """Return the header that stands at offset 0 of the metadata."""
        return _HEADER.pack(
            _HEADER_MAGIC,
            FORMAT_VERSION,
            self.geometry.sector_size.bit_length() - 1,
            self.geometry.frame_size.bit_length() - 1,
            len(self.sectors),
            len(self.blobs),
            _index_size(len(self.sectors), len(self.blobs)),
            0,
        )

    def pack(self) -> bytes:
        """Return the index that ends the metadata; ids and sizes are in the EROFS device table."""
        blobs = b"".join(_BLOB_ROW.pack(blob.digest, blob.size) for blob in self.blobs)
        rows = (_SECTOR_ROW.pack(row.blob, row.length, row.offset) for row in self.sectors)
        return blobs + b"".join(rows)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of the metadata, read: what is needed to find the index."""

    geometry: Geometry
    sectors: int
    blobs: int

    @property
    def index_size(self) -> int:
        return _index_size(self.sectors, self.blobs)

    @classmethod
    def unpack(cls, metadata: bytes | memoryview) -> Header:
        """Read the header of `metadata`.

        Raises:
            ImageError: these bytes are not firstread metadata of this version.
        """
        if len(metadata) < _HEADER.size or metadata[:8] != _HEADER_MAGIC:
            raise ImageError("this is not firstread metadata")
        _, version, sector_bits, frame_bits, sectors, blobs, index_size, reserved = (
            _HEADER.unpack_from(metadata)
        )
        if version != FORMAT_VERSION:
            raise ImageError(
                f"metadata has format version {version}, this firstread reads {FORMAT_VERSION}"
            )
        try:
            geometry = Geometry(1 << min(sector_bits, 63), 1 << min(frame_bits, 63))
        except UsageError as exc:
            raise ImageError(f"metadata states impossible sizes: {exc.message}") from exc
        if reserved or sectors > MAX_SECTORS or index_size != _index_size(sectors, blobs):
            raise ImageError("metadata header contradicts itself")
        return cls(geometry, sectors, blobs)


def _index_size(sectors: int, blobs: int) -> int:
    return sectors * _SECTOR_ROW.size + blobs * _BLOB_ROW.size


def index_offset(header: Header, metadata_size: int) -> int:
    """Return where the sector index begins: it takes the last whole blocks of the metadata.

    Raises:
        ImageError: it cannot fit.
    """
    offset = metadata_size - round_up(header.index_size, BLOCK_SIZE)
    if offset < BLOCK_SIZE or metadata_size % BLOCK_SIZE:
        raise ImageError("metadata is too short for its sector index")
    return offset


def unpack_index(
    header: Header, data: bytes | memoryview, devices: Sequence[tuple[bytes, int]]
) -> SectorIndex:
    """Read the sector index and check each row against its blob and its device.

    Args:
        header: of the same metadata.
        data: the index, `Header.index_size` bytes.
        devices: (sector id, bytes) of every slot of the EROFS device table, in order.

    Raises:
        ImageError: it does not match the device table, or a row lies outside its blob.
    """
    if len(devices) != header.sectors:
        raise ImageError(f"sector index has {header.sectors} rows, the device table {len(devices)}")
    if len({identity for identity, _ in devices}) != len(devices):
        raise ImageError("the device table names a sector twice")
    split = header.blobs * _BLOB_ROW.size
    blobs = [Blob(digest, size) for digest, size in _BLOB_ROW.iter_unpack(data[:split])]
    rows = []
    for number, (identity, (blob, length, offset)) in enumerate(
        zip(devices, _SECTOR_ROW.iter_unpack(data[split : header.index_size]), strict=True)
    ):
        row = SectorEntry(*identity, blob, offset, length)
        check_row(row, number, header.geometry, blobs)
        rows.append(row)
    return SectorIndex(header.geometry, blobs, rows)


def check_row(row: SectorEntry, number: int, geometry: Geometry, blobs: Sequence[Blob]) -> None:
    """Check one row of a sector index.

    Raises:
        ImageError: it lies outside its blob, or has a size or length that no sector has.
    """
    if row.blob >= len(blobs) or row.offset + row.length > blobs[row.blob].size:
        raise ImageError(f"sector {number} lies outside its blob")
    if not 0 < row.size <= geometry.sector_size or row.size % BLOCK_SIZE:
        raise ImageError(f"sector {number} has an impossible size of {row.size} bytes")
    if not geometry.table_size(row.size) < row.length <= geometry.max_compressed(row.size):
        raise ImageError(f"sector {number} has an impossible length of {row.length} bytes")

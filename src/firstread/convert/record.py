# SPDX-License-Identifier: Apache-2.0
"""The layer record: a layer without the data that went into sectors.

Owns the document and its bytes. A record has everything that merging needs (the entries of the tar,
in order, with the addresses of their data) and everything that the sector index needs, so nobody
reads a packed layer again. It stands in the sector blob itself, behind the last sector, and in the
local layer cache. Invariant: it depends only on the layer and the parameters.

A layer can have millions of entries, so they are encoded in batches as they come, and decoded batch
by batch for the merge: as Python objects they would take six times the memory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
import zstandard

from firstread.errors import ImageError, LimitError
from firstread.sectors.format import FORMAT_VERSION, Geometry
from firstread.units import KiB, MiB, format_size

DEFAULT_LEVEL = 3
RECORD_LEVEL = 9  # 20 % smaller than at 3; higher levels gain nothing
MAX_RECORD_SIZE = 512 * MiB  # uncompressed: 4 million entries of 128 bytes, real ones have 75
BATCH = 2048  # entries at most
BATCH_SIZE = 256 * KiB  # bytes after which a batch ends
_ARRAY_HEADER = 3  # bytes

ENCODER = "zstd-" + ".".join(map(str, zstandard.ZSTD_VERSION))
"""Part of a packed layer's key: another zstd library can give other bytes."""


class Parameters(msgspec.Struct, frozen=True):
    """The parameters of packing.

    Args:
        sector_size: bytes.
        frame_size: bytes.
        level: zstd compression level.
        encoder: the zstd library.
    """

    sector_size: int = Geometry().sector_size
    frame_size: int = Geometry().frame_size
    level: int = DEFAULT_LEVEL
    encoder: str = ENCODER

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.sector_size, self.frame_size)

    @property
    def key(self) -> str:
        """One line that names these parameters, the format and the encoder."""
        return (
            f"v{FORMAT_VERSION} sector={self.sector_size} frame={self.frame_size}"
            f" level={self.level} {self.encoder}"
        )

    @classmethod
    def of_key(cls, key: str) -> Parameters:
        """Return the parameters that have this `key`.

        Raises:
            ImageError: there are none in this format version.
        """
        match = _KEY.fullmatch(key)
        if match is None:
            raise ImageError("the image does not say with which parameters it was converted")
        return cls(int(match[1]), int(match[2]), int(match[3]), match[4])


_KEY = re.compile(
    rf"v{FORMAT_VERSION} sector=([0-9]{{4,10}}) frame=([0-9]{{4,7}}) level=([0-9]{{1,2}})"
    r" (zstd-[0-9.]{1,20})"
)


def layer_key(diff_id: str, parameters: Parameters) -> str:
    """Return what names a packed layer wherever it is kept: 64 hexadecimal digits."""
    return hashlib.sha256(f"{diff_id} {parameters.key}".encode()).hexdigest()


# Bounds for reading: a record can come from a registry.
_Uint16 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
_Uint32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Owner = Annotated[int, msgspec.Meta(ge=0, lt=(1 << 32) - 1)]  # the last one is none
_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Seconds = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Nanoseconds = Annotated[int, msgspec.Meta(ge=0, lt=1_000_000_000)]


class Entry(msgspec.Struct, array_like=True, gc=False):
    """One entry of a layer, in the order of its tar; a whiteout is an entry with its own name.

    Args:
        path: as the tar states it.
        mode: file type and permission bits; the type is 0 for a hard link.
        mtime: seconds, floor.
        mtime_nsec: nanoseconds on top.
        size: bytes of a regular file.
        link: target of a symbolic or hard link.
        rdev: (major, minor).
        chunk_size: bytes that each chunk covers.
        chunks: chunk addresses within the layer, 8 bytes little-endian each.
    """

    path: bytes
    mode: _Uint16
    uid: _Owner = 0
    gid: _Owner = 0
    mtime: _Seconds = 0
    mtime_nsec: _Nanoseconds = 0
    size: _Size = 0
    link: bytes = b""
    rdev: tuple[_Uint32, _Uint32] = (0, 0)
    xattrs: dict[bytes, bytes] | None = None
    chunk_size: _Size = 0
    chunks: bytes = b""


class PackedSector(msgspec.Struct, array_like=True, frozen=True):
    """A sector of the layer: id (32 bytes; empty for zeros), size, and position in the blob."""

    id: bytes
    size: _Size
    offset: _Size
    length: _Size


class LayerRecord(msgspec.Struct, frozen=True):
    """A packed layer without its data.

    Args:
        diff_id: of the source layer.
        parameters: `Parameters.key` of its packing.
        sectors: in order of their numbers.
        batches: the entries in the order of the tar, encoded: see `encode_entries`.
        size: bytes of the uncompressed layer tar.
        dropped_xattrs: names that an image cannot have: see `firstread.convert.pack`.
    """

    diff_id: str
    parameters: str
    sectors: list[PackedSector]
    batches: list[bytes]
    size: int = 0
    dropped_xattrs: list[bytes] = []

    def entries(self) -> Iterator[Entry]:
        """Yield the entries in the order of the tar.

        Raises:
            ImageError: the record is corrupt.
        """
        for batch in self.batches:
            try:
                entries = _entries_decoder.decode(batch)
            except _DAMAGE as exc:
                raise ImageError(f"layer record is corrupt: {exc}") from exc
            yield from entries

    def encode(self) -> bytes:
        """Return the record as zstd-compressed MessagePack.

        Raises:
            LimitError: it is larger than `MAX_RECORD_SIZE`.
        """
        data = _encoder.encode(self)
        _check_size(len(data), MAX_RECORD_SIZE)
        return zstandard.ZstdCompressor(level=RECORD_LEVEL).compress(data)

    @classmethod
    def decode(cls, data: bytes) -> LayerRecord:
        """Read the bytes of `encode`.

        Raises:
            ImageError: these bytes are not a layer record.
        """
        try:
            if not 0 < zstandard.frame_content_size(data) <= MAX_RECORD_SIZE:
                raise ImageError("layer record states an impossible size")
            plain = zstandard.ZstdDecompressor().decompress(data)
            return _decoder.decode(plain)
        except _DAMAGE as exc:
            raise ImageError(f"layer record is corrupt: {exc}") from exc


def encode_entries(entries: Iterable[Entry], limit: int = MAX_RECORD_SIZE) -> list[bytes]:
    """Return `entries` in batches, each a MessagePack array.

    Raises:
        LimitError: they have more than `limit` bytes.
    """
    batches: list[bytes] = []
    batch = bytearray(_ARRAY_HEADER)
    count = size = 0
    for entry in entries:
        _encoder.encode_into(entry, batch, -1)
        count += 1
        if count == BATCH or len(batch) >= BATCH_SIZE:
            size += len(batch)
            _check_size(size, limit)  # while it grows, to bound memory
            batches.append(_array(batch, count))
            batch, count = bytearray(_ARRAY_HEADER), 0
    if count:
        batches.append(_array(batch, count))
    return batches


def _array(batch: bytearray, count: int) -> bytes:
    """Return `batch` as an array of `count`: MessagePack's array 16, big-endian."""
    batch[:_ARRAY_HEADER] = b"\xdc" + count.to_bytes(2, "big")
    return bytes(batch)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise LimitError(
            f"the record of the layer's entries is larger than {format_size(limit)}",
            hint="it has too many entries, or their names and attributes are too long",
        )


_DAMAGE = (zstandard.ZstdError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LayerRecord)
_entries_decoder = msgspec.msgpack.Decoder(list[Entry])

# SPDX-License-Identifier: Apache-2.0
"""Writes the metadata of an image from the records of its layers.

Owns the step from the merged tree to EROFS: the device slots of sectors, and their order.
Invariant: the records alone decide; a sector that occurs twice has one slot, an unused sector has
none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, BinaryIO, Final

import zstandard

from firstread.convert.blobwriter import PackedLayer
from firstread.convert.layers import LayerMerger
from firstread.convert.record import LayerRecord, PackedSector
from firstread.erofs.chunks import chunk_format
from firstread.erofs.tree import HOLE, Device, Node, walk
from firstread.erofs.writer import ErofsDraft
from firstread.errors import LimitError, SectorCountError
from firstread.sectors.format import (
    BLOCK_SIZE,
    MAX_METADATA_SIZE,
    MAX_SECTORS,
    Blob,
    Geometry,
    SectorEntry,
    SectorIndex,
    check_row,
)
from firstread.units import MiB, format_size

# Nodes wait for these few bytes, so the ratio counts: docs/adr/0124. Bytes, and zstd's parameters.
_SMALL, _MEDIUM = 8 * MiB, 16 * MiB
_JOBS: Final = {"threads": 2, "job_size": 3 * MiB, "overlap_log": 5}  # as many on every machine


@dataclass(frozen=True)
class LayerFacts:
    """Facts of a layer: sectors, uncompressed bytes, dropped attributes."""

    sectors: int
    size: int
    dropped_xattrs: list[bytes]


@dataclass
class MergedLayers:
    """The tree of an image, and the parts of its layers' records that outlive the merge.

    Args:
        root: of the tree; chunk addresses in it count sectors over all layers.
        sectors: (number of the layer, sector), over all layers.
        layers: facts of each layer.
    """

    root: Node
    sectors: list[tuple[int, PackedSector]]
    layers: list[LayerFacts]


def merge(records: Iterable[LayerRecord]) -> MergedLayers:
    """Merge layers, lowest first; `records` are taken one by one, and not kept.

    Raises:
        ImageError: the layers do not fit together.
    """
    merger = LayerMerger()
    merged = MergedLayers(merger.root, [], [])
    for number, record in enumerate(records):
        merger.apply(record)
        merged.sectors += [(number, sector) for sector in record.sectors]
        merged.layers.append(LayerFacts(len(record.sectors), record.size, record.dropped_xattrs))
    merged.root = merger.root
    return merged


def leave_out_zeros(merged: MergedLayers) -> None:
    """Make chunks in sectors of zeros, which have no id, holes, as the metadata of an image does.

    To be done before anything hot is planned.
    """
    zeros = {number for number, (_, sector) in enumerate(merged.sectors) if not sector.id}
    if zeros:
        for _, node in walk(merged.root):
            node.chunks = tuple(HOLE if chunk >> 32 in zeros else chunk for chunk in node.chunks)


def index_blob(packed: PackedLayer) -> Blob:
    """Return how the sector index names the blob of a layer."""
    return Blob(bytes.fromhex(packed.digest.removeprefix("sha256:")), packed.size)


def assign_slots(merged: MergedLayers, blobs: Sequence[int], sector_size: int) -> list[SectorEntry]:
    """Give a device slot to every sector that the tree uses, and rewrite its chunk addresses.

    Args:
        merged: afterwards its chunk addresses count device slots, and a file of one chunk has the
            chunk size of a whole sector: fewer different ones compress better.
        blobs: for each layer, and for the hot sectors behind the last, the number of its blob in
            the index. A sector that is in both is a hot one.
        sector_size: of the image, bytes.

    Returns:
        the rows of the sector index, in order of slots.

    Raises:
        SectorCountError: an EROFS image cannot have so many devices.
    """
    nodes = {id(node): node for _, node in walk(merged.root) if node.chunks}
    files = list(nodes.values())
    used = sorted({chunk >> 32 for node in files for chunk in node.chunks if chunk != HOLE})
    rows: dict[bytes, tuple[int, SectorEntry]] = {}
    slots: dict[int, int] = {}  # sector over all layers -> slot; sectors of zeros have none
    for number in used:
        layer, sector = merged.sectors[number]
        if sector.id:
            row = SectorEntry(sector.id, sector.size, blobs[layer], sector.offset, sector.length)
            slots[number] = rows.setdefault(sector.id, (len(rows), row))[0]
            if layer == len(merged.layers):
                rows[sector.id] = slots[number], row
    if len(rows) > MAX_SECTORS:
        raise SectorCountError(
            f"the image has {len(rows)} sectors, an EROFS image can have {MAX_SECTORS}",
            excess=len(rows) / MAX_SECTORS,
        )
    for node in files:
        node.chunks = tuple(_readdress(chunk, slots) for chunk in node.chunks)
        if len(node.chunks) == 1 and node.size <= node.chunk_size:
            chunk_format(node.chunk_size)  # a record can come from a registry
            node.chunk_size = max(node.chunk_size, sector_size)
    return [row for _, row in rows.values()]


def _readdress(chunk: int, slots: dict[int, int]) -> int:
    slot = slots.get(chunk >> 32)
    return HOLE if slot is None else slot << 32 | chunk & 0xFFFFFFFF


class _Digested:
    """A file that digests everything written to it.

    Args:
        out: takes the bytes.
        limit: bytes.
    """

    def __init__(self, out: IO[bytes], limit: int) -> None:
        self._out = out
        self._limit = limit
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:
        self.size += len(data)
        if self.size > self._limit:
            raise LimitError(
                f"the metadata is larger than {format_size(self._limit)}",
                hint="the image has too many files or chunks",
            )
        self._digest.update(data)
        return self._out.write(data)

    def digest(self) -> str:
        return "sha256:" + self._digest.hexdigest()


@dataclass(frozen=True)
class WrittenMetadata:
    """A metadata layer.

    Args:
        digest: of the layer.
        diff_id: of its content.
        size: bytes of its content.
        ids: of the sectors, in order of the device slots.
        inodes: in it.
    """

    digest: str
    diff_id: str
    size: int
    ids: list[bytes]
    inodes: int


def _compressor(size: int) -> zstandard.ZstdCompressor:
    """Return the compressor of metadata of `size` bytes; on every machine it gives the same."""
    if size <= _SMALL:
        return zstandard.ZstdCompressor(level=19)
    if size > _MEDIUM:
        return zstandard.ZstdCompressor(level=9)
    parameters = zstandard.ZstdCompressionParameters.from_level(17, source_size=size, **_JOBS)
    return zstandard.ZstdCompressor(compression_params=parameters)


def write_metadata_layer(
    out: BinaryIO,
    merged: MergedLayers,
    blobs: Sequence[Blob],
    geometry: Geometry,
    limit: int = MAX_METADATA_SIZE,
) -> WrittenMetadata:
    """Write the metadata layer of an image.

    Args:
        out: takes the compressed bytes.
        merged: the layers; consumed.
        blobs: the sector blob of each layer, and that of the hot sectors, if there are any.
        geometry: of the image.
        limit: bytes of the metadata, compressed or not.

    Raises:
        LimitError: the image is larger than the format allows.
        ImageError: a record contradicts its blob.
    """
    numbers = {blob: number for number, blob in enumerate(dict.fromkeys(blobs))}
    rows = assign_slots(merged, [numbers[blob] for blob in blobs], geometry.sector_size)
    index = SectorIndex(geometry, list(numbers), rows)
    for number, row in enumerate(rows):  # a record can come from a registry
        check_row(row, number, geometry, index.blobs)
    table = index.pack()
    draft = ErofsDraft(
        merged.root,
        [Device(row.id, row.size // BLOCK_SIZE) for row in rows],
        boot=index.header(),
        trailer=table,
        uuid=hashlib.sha256(table).digest()[:16],
    )
    layer = _Digested(out, limit)
    # Not as a block, whose end would complain of the size and hide the error.
    stream = _compressor(draft.size).stream_writer(layer, size=draft.size, closefd=False)  # type: ignore[arg-type]
    content = _Digested(stream, limit)
    draft.write(content)  # type: ignore[arg-type]
    stream.close()  # type: ignore[no-untyped-call]
    ids = [row.id for row in rows]
    return WrittenMetadata(layer.digest(), content.digest(), content.size, ids, draft.inodes)

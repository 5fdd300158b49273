# SPDX-License-Identifier: Apache-2.0
"""Reads the sector blobs of a converted image back, and checks every digest.

Each blob is streamed once, which checks its own digest, the diff_id in the config, every frame and
every sector id. `fingerprint` needs the digests of files' chunks, so they are computed on the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from firstread.convert.fingerprint import chunks_of, is_zero
from firstread.convert.stream import Feed
from firstread.erofs.tree import HOLE, Node, split_address, walk
from firstread.errors import DigestError, FirstreadError, ImageError
from firstread.oci.model import Descriptor
from firstread.oci.repository import Repository
from firstread.sectors.decode import decode_frame, frame_decompressor
from firstread.sectors.format import (
    BLOCK_SIZE,
    SKIPPABLE_HEADER_SIZE,
    SKIPPABLE_RECORD,
    FrameTable,
    Geometry,
    SectorEntry,
    skippable_header,
)
from firstread.sectors.image import BlockImage

Address = tuple[int, int]  # device slot, 4 KiB block


@dataclass
class Checked:
    """Counts of what was read and checked; bytes are uncompressed."""

    blobs: int = 0
    sectors: int = 0
    frames: int = 0
    bytes: int = 0


class BlobCheck:
    """Checks the sector blobs of an image, and digests its files' chunks on the way.

    Args:
        repository: has the image.
        image: with its metadata checked.
        root: its tree, to digest chunks for a comparison; None for none.
    """

    def __init__(self, repository: Repository, image: BlockImage, root: Node | None) -> None:
        self.checked = Checked()
        self.digests: dict[tuple[Address, int], bytes] = {}  # (address, bytes) -> SHA-256, if any
        self._repository = repository
        self._geometry = image.index.geometry
        self._slots = {sector.id: slot for slot, sector in enumerate(image.index.sectors)}
        self._rows: dict[int, dict[int, SectorEntry]] = {}  # blob -> offset -> sector
        for sector in image.index.sectors:
            self._rows.setdefault(sector.blob, {})[sector.offset] = sector
        self._runs: dict[int, set[tuple[int, int]]] = {}  # slot -> (block, bytes) of its chunks
        for _, node in walk(root) if root else ():
            for length, address in chunks_of(node):
                if address != HOLE:
                    slot, block = split_address(address)
                    self._runs.setdefault(slot, set()).add((block, length))

    def blob(self, number: int, descriptor: Descriptor, diff_id: str) -> None:
        """Read one whole blob.

        Raises:
            ImageError: the blob contradicts the manifest, the config or the index.
        """
        content = hashlib.sha256()
        rows = self._rows.pop(number, {})
        try:
            with self._repository.open_blob(descriptor) as stream:
                for offset, table, data in read_sectors(stream, self._geometry):
                    content.update(data)
                    self._sector(rows.pop(offset, None), offset, table, data)
            if rows:
                raise ImageError("the index names sectors that the blob does not have")
            if "sha256:" + content.hexdigest() != diff_id:
                raise DigestError("the content is not what the config's diff_id says")
        except FirstreadError as exc:
            exc.about(layer=descriptor.digest)
            raise
        self.checked.blobs += 1

    def _sector(
        self, entry: SectorEntry | None, offset: int, table: FrameTable, data: memoryview
    ) -> None:
        """Check a sector against its row of the index, if it has one; digest its chunks."""
        if entry is not None:
            try:
                table.check(entry, self._geometry)
            except ImageError as exc:
                exc.message = f"the sector at byte {offset}: {exc.message}"
                raise
        self.checked.sectors += 1
        self.checked.frames += len(table.lengths)
        self.checked.bytes += len(data)
        slot = self._slots.get(table.id(self._geometry.frame_size), -1)
        for block, length in self._runs.pop(slot, ()):
            chunk = data[block * BLOCK_SIZE : block * BLOCK_SIZE + length]
            digest = b"" if is_zero(chunk) else hashlib.sha256(chunk).digest()
            self.digests[(slot, block), length] = digest


def read_sectors(
    chunks: Iterable[bytes | memoryview], geometry: Geometry
) -> Iterator[tuple[int, FrameTable, memoryview]]:
    """Yield (offset, frame table, content) of each sector in a blob; one buffer holds all contents.

    Raises:
        ImageError: the blob does not consist of sectors and a record, or a frame contradicts the
            digest in its table.
    """
    feed = Feed(map(bytes, chunks))
    buffer = memoryview(bytearray(geometry.sector_size))
    decompressor = frame_decompressor(geometry)
    while not feed.at_end():
        offset = feed.position
        header = feed.exact(SKIPPABLE_HEADER_SIZE)
        magic, length = skippable_header(header)
        if magic == SKIPPABLE_RECORD:
            feed.skip(length)
            if not feed.at_end():
                raise ImageError("the layer record is not at the end of the blob")
            return
        if length > geometry.table_size(geometry.sector_size):
            raise ImageError(f"there is no sector at byte {offset}")
        table = FrameTable.unpack(header + feed.exact(length), geometry)
        position = 0
        for number, stored in enumerate(table.lengths):
            size = min(geometry.frame_size, table.size - position)
            frame = buffer[position : position + size]
            try:
                decode_frame(decompressor, feed.exact(stored), frame, table.digests[number])
            except ImageError as exc:
                exc.message = f"frame {number} of the sector at byte {offset} {exc.message}"
                raise
            position += size
        yield offset, table, buffer[: table.size]

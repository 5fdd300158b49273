# SPDX-License-Identifier: Apache-2.0
"""Reads a converted image back, checks every digest, and compares it with its source.

Each sector blob is streamed once: its own digest, the digest of its content that the config names,
every frame, every sector id. For the comparison every file gets a fingerprint, a digest over the
digests of its content in pieces of a sector, taken on the way from the sectors here and from the
source's tar there, so that neither image is ever unpacked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from firstread.convert.entry import TarEntry, TarKind
from firstread.convert.layers import LayerMerger
from firstread.convert.pack import entry_record
from firstread.convert.record import Entry, LayerRecord, encode_entries
from firstread.convert.stream import Feed, decompress
from firstread.convert.tar import TarReader
from firstread.erofs.tree import HOLE, Node, split_address, walk
from firstread.errors import DigestError, FirstreadError, ImageError
from firstread.oci.model import Descriptor
from firstread.oci.repository import Repository
from firstread.printable import printable
from firstread.sectors.content import ContentReader
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
from firstread.units import MiB

Address = tuple[int, int]  # device slot, 4 KiB block


@dataclass
class Checked:
    """What was read and checked; bytes are those of the sectors, uncompressed."""

    blobs: int = 0
    sectors: int = 0
    frames: int = 0
    bytes: int = 0


class BlobCheck:
    """Checks the sector blobs of `image`, and digests its files' chunks on the way.

    Args:
        repository: where the image is.
        image: its metadata checked already.
        root: its tree, if its files are to be compared.
    """

    def __init__(self, repository: Repository, image: BlockImage, root: Node | None) -> None:
        self.checked = Checked()
        self.digests: dict[tuple[Address, int], bytes] = {}  # (address, bytes) -> SHA-256, if any
        self._repository = repository
        self._geometry = image.index.geometry
        self._slots = {sector.id: slot for slot, sector in enumerate(image.index.sectors)}
        self._places: dict[int, dict[int, SectorEntry]] = {}  # blob -> offset -> sector
        for sector in image.index.sectors:
            self._places.setdefault(sector.blob, {})[sector.offset] = sector
        self._runs: dict[int, set[tuple[int, int]]] = {}  # slot -> (block, bytes) of its chunks
        for _, node in walk(root) if root else ():
            for length, address in _chunks(node):
                if address != HOLE:
                    slot, block = split_address(address)
                    self._runs.setdefault(slot, set()).add((block, length))

    def blob(self, number: int, descriptor: Descriptor, diff_id: str) -> None:
        """Read one blob whole.

        Raises:
            ImageError: a byte of it is not what the manifest, the config or the index say.
        """
        content = hashlib.sha256()
        places = self._places.pop(number, {})
        try:
            with self._repository.open_blob(descriptor) as stream:
                for offset, table, data in read_sectors(stream, self._geometry):
                    content.update(data)
                    self._sector(places.pop(offset, None), offset, table, data)
            if places:
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
        """Check a sector against its row of the index, None if it has none; digest its chunks."""
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
            digest = b"" if _is_zero(chunk) else hashlib.sha256(chunk).digest()
            self.digests[(slot, block), length] = digest


def read_sectors(
    chunks: Iterable[bytes | memoryview], geometry: Geometry
) -> Iterator[tuple[int, FrameTable, memoryview]]:
    """Yield (offset, frame table, content) of each sector in a blob; the content is reused.

    Raises:
        ImageError: the blob is not made of sectors and a record behind them, or a frame has
            another digest than its table says.
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


# -- comparison ------------------------------------------------------------------------------


def _chunks(node: Node) -> Iterator[tuple[int, int]]:
    """Yield (bytes, address) of each chunk of a file."""
    for number, address in enumerate(node.chunks):
        yield min(node.chunk_size, node.size - number * node.chunk_size), address


class Fingerprint:
    """Digest of one file: SHA-256 over the number and the SHA-256 of each piece that has data.

    A piece of zeros counts as having none, however it is stored, so that a file of holes costs
    nothing, whatever its size.

    Args:
        size: bytes of the file.
        piece_size: bytes of a piece; the last may be shorter.
    """

    def __init__(self, size: int, piece_size: int) -> None:
        self._size = size
        self._piece_size = piece_size
        self._total = hashlib.sha256()
        self._piece = hashlib.sha256()
        self._number = 0  # of the current piece
        self._filled = 0  # bytes of it that are digested
        self._has_data = False  # whether they are not all zeros

    def data(self, offset: int, view: memoryview) -> None:
        """Add what the file has at `offset`, not before what was added last; gaps are zeros."""
        while view:
            number, start = divmod(offset, self._piece_size)
            if number != self._number:
                self._end_piece()
                self._number = number
            self._zeros(start)
            part = view[: self._piece_size - start]
            self._piece.update(part)
            self._filled += len(part)
            self._has_data = self._has_data or not _is_zero(part)
            offset += len(part)
            view = view[len(part) :]

    def piece(self, number: int, digest: bytes) -> None:
        """Add a whole piece that has data by its digest."""
        self._total.update(number.to_bytes(8, "little") + digest)

    def digest(self) -> bytes:
        """Return the fingerprint."""
        self._end_piece()
        return self._total.digest()

    def _end_piece(self) -> None:
        if self._has_data:
            self._zeros(min(self._piece_size, self._size - self._number * self._piece_size))
            self.piece(self._number, self._piece.digest())
        if self._filled:
            self._piece, self._filled, self._has_data = hashlib.sha256(), 0, False

    def _zeros(self, end: int) -> None:
        while self._filled < end:
            count = min(end - self._filled, len(_ZEROS))
            self._piece.update(_ZEROS[:count])
            self._filled += count


_ZEROS = memoryview(bytes(MiB))


def _is_zero(view: memoryview) -> bool:
    """Return whether all of `view` is zero; the first byte that is not ends the search."""
    return all(
        view[start : start + len(_ZEROS)] == _ZEROS[: len(view) - start]
        for start in range(0, len(view), len(_ZEROS))
    )


def fingerprint_image(
    root: Node, check: BlobCheck, content: ContentReader, piece_size: int
) -> None:
    """Put the fingerprint of each regular file of a converted image into its `target`.

    Args:
        root: of the image.
        check: after all blobs were read.
        content: for the sparse files whose chunks are smaller than a piece.
        piece_size: bytes of a sector.
    """
    for _, node in walk(root):
        if not node.is_file or node.target:
            continue
        seal = Fingerprint(node.size, piece_size)
        if node.chunk_size == piece_size or len(node.chunks) == 1:
            for number, (length, address) in enumerate(_chunks(node)):
                if address != HOLE and (digest := check.digests[split_address(address), length]):
                    seal.piece(number, digest)
        else:
            for offset, data in content.data(node):
                seal.data(offset, data)
        node.target = seal.digest()


def source_tree(
    repository: Repository, layers: Iterable[tuple[Descriptor, str]], piece_size: int
) -> Node:
    """Return the tree of an ordinary image, with each file's fingerprint as its `target`.

    Args:
        repository: where the image is.
        layers: (descriptor, diff_id), the lowest first.
        piece_size: bytes of a piece of the fingerprints.

    Raises:
        FirstreadError: the image cannot be read; names the layer.
    """
    merger = LayerMerger()
    for descriptor, diff_id in layers:
        try:
            with repository.open_blob(descriptor) as stream:
                feed = Feed(decompress(stream, descriptor.media_type))
                reader = TarReader(feed)
                batches = encode_entries(_fingerprinted(tar, reader, piece_size) for tar in reader)
                feed.drain()  # what is read to its end is verified
            merger.apply(LayerRecord(diff_id, "", [], batches))
        except FirstreadError as exc:
            exc.layer = descriptor.digest
            raise
    return merger.root


def _fingerprinted(tar: TarEntry, reader: TarReader, piece_size: int) -> Entry:
    entry = entry_record(tar)
    if tar.kind is TarKind.REGULAR:
        seal = Fingerprint(tar.size, piece_size)
        for offset, view in reader.data(tar):
            seal.data(offset, view)
        entry.link = seal.digest()
    return entry


def differences(source: Node, result: Node) -> Iterator[str]:
    """Yield a line for each name that is not the same in both trees: what differs and how.

    Fingerprinted trees compare by content. Two names that are links to one inode in one tree and
    not in the other differ in the number of their links or in what they are linked to.
    """
    left, right = dict(walk(source)), dict(walk(result))
    there: dict[int, Node] = {}  # id() of a node of the source -> the one of the result
    back: dict[int, Node] = {}  # and the other way round
    for path in sorted(left.keys() | right.keys()):
        name = "/" + printable(path)
        if path not in right:
            yield f"{name}: missing in the converted image"
        elif path not in left:
            yield f"{name}: not in the source"
        else:
            a, b = left[path], right[path]
            if there.setdefault(id(a), b) is not b:
                yield f"{name}: not the hard link that it is in the source"
            elif back.setdefault(id(b), a) is not a:
                yield f"{name}: a hard link that it is not in the source"
            yield from (
                f"{name}: {_shown(field, b)}, in the source {_shown(field, a)}"
                for field in _COMPARED
                if getattr(a, field) != getattr(b, field)
            )


_COMPARED = ("mode", "uid", "gid", "mtime", "mtime_nsec", "rdev", "size", "xattrs", "target")


def _shown(field: str, node: Node) -> str:
    value = getattr(node, field)
    if field == "mode":
        return f"mode {value:o}"
    if field == "target":
        return f"content {value.hex()[:12]}" if node.is_file else f"target {value!r}"
    return f"xattrs {dict(value)!r}" if field == "xattrs" else f"{field} {value}"

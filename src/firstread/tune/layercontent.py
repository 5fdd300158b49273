# SPDX-License-Identifier: Apache-2.0
"""The content of an image, as its layer records tell it: files, sectors, compressed sizes.

Owns the way from a converted image to the sizes that `firstread.tune.layout` packs anew, deleted
files included. It reads the metadata's neighbours only: the records behind the sectors of each
blob, and the frame tables of sectors that a trace touches. Invariant: it fetches no file data.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from firstread.convert.hotplan import find_file
from firstread.convert.metadata import merge
from firstread.convert.record import Entry, LayerRecord, PackedSector, Parameters
from firstread.convert.recorded import RecordedLayers
from firstread.erofs.tree import HOLE, Node, split_address
from firstread.errors import ImageError, UnsupportedError
from firstread.oci.model import Descriptor, diff_ids
from firstread.oci.repository import Repository
from firstread.oci.resolve import ResolvedImage
from firstread.sectors.format import BLOCK_SIZE, FrameTable
from firstread.sectors.image import HOT, PARAMETERS, SOURCE_DIFF_ID, BlockImage
from firstread.units import round_up

REQUESTS = 8  # frame tables at a time
MAX_TABLES = 4096  # sectors whose frames are looked at; others count by their average


class FileKey(NamedTuple):
    """A file with data: the number of its layer, and its own among those of the layer."""

    layer: int
    number: int


class LayerFile(NamedTuple):
    """A file of a layer.

    Args:
        size: bytes.
        chunk_size: bytes that each of `chunks` covers.
        chunks: addresses within the layer, as it is packed now.
    """

    size: int
    chunk_size: int
    chunks: Sequence[int]

    def extents(self) -> list[tuple[int, int]] | None:
        """Return the (offset, length) of the data of a sparse file; None for other files."""
        if HOLE not in self.chunks:
            return None
        numbers = [number for number, chunk in enumerate(self.chunks) if chunk != HOLE]
        starts = [number * self.chunk_size for number in numbers]
        return [(start, min(self.chunk_size, self.size - start)) for start in starts]


@dataclass
class LayerContent:
    """A layer.

    Args:
        blob: its sector blob.
        files: with data, in the order of the tar; those that upper layers delete, too.
        sectors: as it is packed now.
        rest: bytes of its blob that are no sector.
        frames: compressed bytes of each frame of the sectors that were looked at.
    """

    blob: Descriptor
    files: list[LayerFile]
    sectors: list[PackedSector]
    rest: int
    frames: dict[int, list[int]] = field(default_factory=dict)


class Content:
    """The layers of an image, and its files by path.

    Args:
        layers: lowest first.
        root: of the tree; its chunk addresses count the sectors of all layers.
        parameters: what the image was converted with.
        metadata_size: bytes of the metadata layer.
    """

    def __init__(
        self, layers: list[LayerContent], root: Node, parameters: Parameters, metadata_size: int
    ) -> None:
        self.layers, self.parameters, self.metadata_size = layers, parameters, metadata_size
        self._geometry = parameters.geometry
        self.root = root
        counts = (len(layer.sectors) for layer in layers)
        self._firsts = list(itertools.accumulate(counts, initial=0))[:-1]
        self._keys = {
            (number, first): FileKey(number, file)
            for number, layer in enumerate(layers)
            for file, entry in enumerate(layer.files)
            for first in [next((chunk for chunk in entry.chunks if chunk != HOLE), HOLE)]
            if first != HOLE
        }

    def find(self, path: bytes) -> FileKey | None:
        """Return the file with data at `path`, without a leading slash; None if there is none."""
        node = find_file(self.root, path)
        return self.key(node) if node else None

    def key(self, node: Node) -> FileKey | None:
        """Return which file a node of the tree is; None if it has no data."""
        address = next((chunk for chunk in node.chunks if chunk != HOLE), None)
        if address is None:
            return None
        sector, block = split_address(address)
        layer = bisect_right(self._firsts, sector) - 1
        return self._keys.get((layer, sector - self._firsts[layer] << 32 | block))

    def file(self, key: FileKey) -> LayerFile:
        return self.layers[key.layer].files[key.number]

    def ranges(self, key: FileKey, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield the (sector, start, end) in which a range of a file, to whole blocks, lies now."""
        file = self.file(key)
        end = min(round_up(offset + length, BLOCK_SIZE), round_up(file.size, BLOCK_SIZE))
        while offset < end:
            number, within = divmod(offset, file.chunk_size)
            step = min(file.chunk_size - within, end - offset)
            if file.chunks[number] != HOLE:
                sector, block = split_address(file.chunks[number])
                start = block * BLOCK_SIZE + within
                yield sector, start, start + step
            offset += step

    def stored(self, key: FileKey, offset: int, length: int) -> float:
        """Return the compressed bytes that a range of a file, to whole blocks, takes now.

        Exact for frames whose table is known; others count by the average of their sector.
        """
        layer, total = self.layers[key.layer], 0.0
        for number, start, end in self.ranges(key, offset, length):
            frames = layer.frames.get(number)
            if frames is None:
                sector = layer.sectors[number]
                table = self._geometry.table_size(sector.size) if sector.id else 0
                total += (sector.length - table) * (end - start) / sector.size
                continue
            size = self.parameters.frame_size
            whole = layer.sectors[number].size
            for frame in range(start // size, -(-end // size)):
                first, last = frame * size, min(frame * size + size, whole)
                share = (min(end, last) - max(start, first)) / (last - first)
                total += frames[frame] * share
        return total


def read_content(repository: Repository, resolved: ResolvedImage, image: BlockImage) -> Content:
    """Read the records of an image's layers.

    Raises:
        UnsupportedError: it has none.
        FirstreadError: they cannot be read.
    """
    parameters = Parameters.of_key((resolved.manifest.annotations or {}).get(PARAMETERS, ""))
    recorded = RecordedLayers(repository, resolved.manifest, diff_ids(resolved.config))
    layers: list[LayerContent] = []

    def records() -> Iterator[LayerRecord]:
        for blob in image.blobs:
            annotations = blob.annotations or {}
            if HOT in annotations:
                continue
            try:
                packed = recorded.read(annotations[SOURCE_DIFF_ID])
            except KeyError as exc:
                raise UnsupportedError(
                    "its layers have lost their annotations, so nobody can pack them anew",
                    hint="convert the original again",
                ) from exc
            record = LayerRecord.decode(packed.record)
            rest = blob.size - packed.record_offset
            layers.append(LayerContent(blob, list(_files(record)), record.sectors, rest))
            yield record

    merged = merge(records())
    return Content(layers, merged.root, parameters, resolved.manifest.layers[0].size)


def _files(record: LayerRecord) -> Iterator[LayerFile]:
    sizes = [sector.size for sector in record.sectors]
    for entry in record.entries():
        if entry.chunks:
            chunks = array("Q")
            chunks.frombytes(entry.chunks[: len(entry.chunks) // 8 * 8])
            if not _is_possible(entry, chunks, sizes):
                raise ImageError(f"a layer record states a file that cannot be: {entry.path!r}")
            yield LayerFile(entry.size, entry.chunk_size, chunks)


def _is_possible(entry: Entry, chunks: Sequence[int], sizes: Sequence[int]) -> bool:
    """Return whether each chunk of a file lies within a sector: a record is text from outside."""
    chunk_size = entry.chunk_size
    if chunk_size < BLOCK_SIZE or chunk_size % BLOCK_SIZE:
        return False
    if len(chunks) != -(-entry.size // chunk_size):
        return False
    for number, chunk in enumerate(chunks):
        if chunk != HOLE:
            sector, block = split_address(chunk)
            length = round_up(min(chunk_size, entry.size - number * chunk_size), BLOCK_SIZE)
            if sector >= len(sizes) or block * BLOCK_SIZE + length > sizes[sector]:
                return False
    return True


def read_frames(repository: Repository, content: Content, keys: Iterable[FileKey]) -> None:
    """Read the frame tables of the sectors that have data of some files, `REQUESTS` at a time.

    Raises:
        FirstreadError: they cannot be read.
    """
    wanted = dict.fromkeys(
        (key.layer, sector)
        for key in keys
        for sector, _, _ in content.ranges(key, 0, content.file(key).size)
        if content.layers[key.layer].sectors[sector].id
    )
    geometry = content.parameters.geometry

    def read(place: tuple[int, int]) -> None:
        layer = content.layers[place[0]]
        sector = layer.sectors[place[1]]
        size = geometry.table_size(sector.size)
        with repository.open_blob(layer.blob, offset=sector.offset, length=size) as stream:
            table = FrameTable.unpack(b"".join(map(bytes, stream)), geometry)
        if table.id(geometry.frame_size) != sector.id:
            raise ImageError("a frame table does not match its sector id")
        layer.frames[place[1]] = list(table.lengths)

    with ThreadPoolExecutor(REQUESTS) as pool:
        results: list[Any] = list(pool.map(read, itertools.islice(wanted, MAX_TABLES)))
    del results

# SPDX-License-Identifier: Apache-2.0
"""Layouts: in which units the bytes of an image would lie, for a setting. Pure.

Owns four ways to cut an image. ``plain`` packs it as the converter would, with the converter's own
planner; ``hot`` does the same and copies what a trace reads into hot sectors; ``files`` and
``chunks`` fetch whole files, or chunks of files, on their own, as other formats do. A unit is what
one request can ask for and one file of the store would hold: a sector, a file, a chunk.

Invariant: with the sector and frame size that the image has, ``plain`` gives the sizes that the
image has.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, TypeAlias

from firstread.convert.hotblob import HOT_LEVEL, LARGE, LARGE_LEVEL
from firstread.convert.plan import Placement, Planner
from firstread.erofs.tree import HOLE, split_address
from firstread.errors import LimitError
from firstread.oci.model import Descriptor
from firstread.sectors.format import (
    BLOCK_SIZE,
    DEFAULT_FRAME_SIZE,
    MAX_SECTORS,
    SECTORS_MEDIA_TYPE,
    Geometry,
    SectorEntry,
)
from firstread.sectors.source import Wanted
from firstread.tune.layercontent import Content, FileKey
from firstread.units import KiB, MiB, round_up

Kind: TypeAlias = Literal["plain", "hot", "files", "chunks"]

MAX_UNITS = 1 << 19  # of an image, each some hundred bytes of memory
SLOT_SIZE = 64  # bytes of compressed metadata for one more sector: its id is random

_FRAME_COST = (1.21, 1.158, 1.124, 1.107, 1.079, 1.049, 1.0, 0.964, 0.932, 0.886, 0.865)
"""Compressed size with frames of 4 KiB, 8 KiB … 4 MiB, against 256 KiB; zstd-3. Measured on the
files of the benchmark images redis (144 MB: 1.201 … 0.863) and nodejs (168 MB: 1.218 … 0.866)."""


@functools.lru_cache(1 << 16)
def frame_cost(size: int) -> float:
    """Return how the compressed size changes with frames of `size` bytes instead of 256 KiB."""
    at = math.log2(min(max(size, 4 * KiB), 4 * MiB)) - 12
    low = min(int(at), len(_FRAME_COST) - 2)
    return _FRAME_COST[low] + (_FRAME_COST[low + 1] - _FRAME_COST[low]) * (at - low)


_LEVEL_COST = {3: 1.0, 6: 0.974, 9: 0.943, 12: 0.939, 15: 0.886, 19: 0.873}
"""Compressed size of hot frames at a zstd level, against 3: docs/adr/0095."""


class FileRange(NamedTuple):
    """A range of a file."""

    key: FileKey
    offset: int
    length: int


class HotChunk(NamedTuple):
    """A chunk of a file that is copied into a hot sector; `chunk_size` is one for all of a file."""

    key: FileKey
    offset: int
    length: int
    chunk_size: int


class Need(NamedTuple):
    """A range of a unit that a read asks for; units fill from the front, so it waits for `end`."""

    unit: int
    start: int
    end: int


class _Part(NamedTuple):
    """A range of a file, to whole blocks, and where in its unit it lies."""

    start: int
    length: int
    key: FileKey
    offset: int


class Layout(ABC):
    """The units of an image; each kind fills it in its own way.

    Args:
        content: of the image.
        frame_size: bytes of a frame; 0 if a unit is verified as a whole.

    Attributes:
        units: by number.
        stream: numbers of the hot ones, in the order of a start.
        metadata: bytes of the metadata, which comes before the mount.
        devices: sectors, which the mount opens.
    """

    def __init__(self, content: Content, frame_size: int) -> None:
        self.content = content
        self.units: list[Wanted] = []
        self.stream: Sequence[int] = ()
        self.frame_size = frame_size
        # The simulation knows units of any size, so this is not checked as that of an image is.
        self._geometry = Geometry(frame_size=frame_size or DEFAULT_FRAME_SIZE)
        self._parts: list[list[_Part]] = []
        self._frames: dict[int, Sequence[tuple[int, int]]] = {}
        self._at: dict[tuple[str, int], Wanted] = {}  # units by blob and offset

    @abstractmethod
    def needs(self, key: FileKey, offset: int, length: int) -> Iterable[Need]:
        """Yield what a read of a file waits for."""

    @property
    def devices(self) -> int:
        return sum(unit.entry.length > 0 for unit in self.units)

    @property
    def metadata(self) -> int:
        packed = sum(len(layer.sectors) for layer in self.content.layers)
        return max(self.content.metadata_size + (len(self.units) - packed) * SLOT_SIZE, BLOCK_SIZE)

    @property
    def size(self) -> int:
        """Bytes of the image in a registry."""
        records = sum(layer.rest for layer in self.content.layers)
        return self.metadata + records + sum(unit.entry.length for unit in self.units)

    def behind(self, unit: Wanted) -> Wanted | None:
        """Return the unit that follows another in its blob."""
        return self._at.get((unit.blob.digest, unit.span.stop))

    def frames(self, number: int) -> Sequence[tuple[int, int]]:
        """Return where each frame of a unit ends: among its bytes, and among the stored ones."""
        found = self._frames.get(number)
        if found is None:
            found = self._frames[number] = self._cut(number)
        return found

    def _cut(self, number: int) -> list[tuple[int, int]]:
        entry = self.units[number].entry
        if not self.frame_size:
            return [(entry.size, entry.length)]
        count = -(-entry.size // self.frame_size)
        stored = [0.0] * count
        for part in self._parts[number]:
            at, end = part.start, part.start + part.length
            while at < end:
                frame = at // self.frame_size
                stop = min(end, (frame + 1) * self.frame_size)
                stored[frame] += self.content.stored(
                    part.key, part.offset + at - part.start, stop - at
                )
                at = stop
        table = self._geometry.table_size(entry.size)
        # What remains of rounding, and of the cost of frames, is spread over all of them.
        scale = (entry.length - table) / (sum(stored) or 1.0)
        ends = [table + round(end * scale) for end in accumulate(stored)]
        return [(min((n + 1) * self.frame_size, entry.size), end) for n, end in enumerate(ends)]

    def _add(
        self, blob: Descriptor, offset: int, parts: list[_Part], level_cost: float = 1.0
    ) -> int:
        """Add a unit that lies at `offset` of its blob; return where it ends."""
        number, size = len(self.units), parts[-1].start + parts[-1].length
        table = self._geometry.table_size(size) if self.frame_size else 0
        stored = sum(self.content.stored(part.key, part.offset, part.length) for part in parts)
        cost = frame_cost(min(self.frame_size or size, size))
        before = self.content.parameters.frame_size
        cost *= level_cost / frame_cost(min(before, size))
        length = table + max(1, round(stored * cost)) if stored else 0  # a sector of zeros has none
        entry = SectorEntry(number.to_bytes(8, "big"), size, 0, offset, length)
        unit = Wanted(entry, blob, self._geometry)
        self.units.append(unit)
        self._parts.append(parts)
        if length:
            self._at[blob.digest, offset] = unit
        return offset + length


def _blob(name: str) -> Descriptor:
    return Descriptor(media_type=SECTORS_MEDIA_TYPE, digest=name, size=0)


class PlainLayout(Layout):
    """Sectors, as the converter packs them.

    Args:
        content: of the image.
        sector_size: bytes.
        frame_size: bytes.
        keys: files that `needs` will be asked for.

    Raises:
        LimitError: the image cannot have such sectors.
    """

    def __init__(
        self, content: Content, sector_size: int, frame_size: int, keys: Container[FileKey]
    ) -> None:
        super().__init__(content, frame_size)
        self._placed: dict[FileKey, tuple[int, Placement]] = {}
        for number in range(len(content.layers)):
            first = len(self.units)
            sectors = self._pack(number, Planner(sector_size), first, keys)
            blob, offset = content.layers[number].blob, 0
            for parts in sectors:
                offset = self._add(blob, offset, parts)
        if self.devices > MAX_SECTORS:
            raise LimitError(f"{self.devices} sectors, {MAX_SECTORS} are the limit")

    def _pack(
        self, layer: int, planner: Planner, first: int, keys: Container[FileKey]
    ) -> list[list[_Part]]:
        """Place the files of a layer, whose units begin with `first`; return the parts of each."""
        sectors: list[list[_Part]] = []
        for number, file in enumerate(self.content.layers[layer].files):
            key = FileKey(layer, number)
            placement = planner.place(file.size, file.extents())
            if key in keys:
                self._placed[key] = first, placement
            for piece in placement.pieces:
                if piece.sector == len(sectors):
                    sectors.append([])
                length = round_up(piece.length, BLOCK_SIZE)
                part = _Part(piece.block * BLOCK_SIZE, length, key, piece.offset)
                sectors[piece.sector].append(part)
        return sectors

    def needs(self, key: FileKey, offset: int, length: int) -> Iterable[Need]:
        first, placement = self._placed[key]
        end = min(offset + length, round_up(self.content.file(key).size, BLOCK_SIZE))
        while offset < end:
            number, within = divmod(offset, placement.chunk_size)
            step = min(placement.chunk_size - within, end - offset)
            sector, block = split_address(placement.chunks[number])
            if placement.chunks[number] != HOLE and self.units[first + sector].entry.length:
                start = block * BLOCK_SIZE + within
                yield Need(first + sector, start, start + step)
            offset += step


class HotLayout(Layout):
    """Sectors, and hot sectors that hold copies of what a start reads.

    Args:
        plain: the sectors.
        sector_size: bytes of a hot sector.
        chunks: hot ones, in the order of a start.
        whole: ranges that a start reads as a whole, so that they are streamed from where they are.
    """

    def __init__(
        self,
        plain: PlainLayout,
        sector_size: int,
        chunks: Iterable[HotChunk],
        whole: Iterable[FileRange] = (),
    ) -> None:
        super().__init__(plain.content, plain.frame_size)
        self._plain = plain
        self.units, self._parts, self._at = [*plain.units], [*plain._parts], {**plain._at}
        self._hot: dict[tuple[FileKey, int], tuple[int, int]] = {}  # unit, and first byte in it
        self._chunk_sizes: dict[FileKey, int] = {}
        parts: list[_Part] = []
        top = plain.content.layers[-1].blob.digest
        used, blob, offset = 0, _blob(f"hot {top}"), 0
        cut = list(_cut_to(sector_size, chunks))
        level_cost = self._level_cost(sum(chunk.length for chunk in cut))
        for key, start, length, chunk_size in cut:
            stored = round_up(length, BLOCK_SIZE)
            if used + stored > sector_size:
                offset = self._add(blob, offset, parts, level_cost)
                parts, used = [], 0
            self._chunk_sizes[key] = chunk_size
            self._hot[key, start] = len(self.units), used
            parts.append(_Part(used, stored, key, start))
            used += stored
        if parts:
            self._add(blob, offset, parts, level_cost)
        numbers = range(len(plain.units), len(self.units))
        hot = [number for number in numbers if self.units[number].entry.length]
        kept = (need.unit for part in whole for need in plain.needs(*part))
        self.stream = list(dict.fromkeys([*hot, *kept]))

    @staticmethod
    def _level_cost(size: int) -> float:
        """Return what the level at which so many hot bytes are compressed makes of them."""
        level = HOT_LEVEL if size < LARGE else LARGE_LEVEL
        return next(cost for known, cost in _LEVEL_COST.items() if known >= level)

    def needs(self, key: FileKey, offset: int, length: int) -> Iterable[Need]:
        size = self._chunk_sizes.get(key)
        if size is None:
            yield from self._plain.needs(key, offset, length)
            return
        end = min(offset + length, round_up(self.content.file(key).size, BLOCK_SIZE))
        while offset < end:
            within = offset % size
            step = min(size - within, end - offset)
            hot = self._hot.get((key, offset - within))
            if hot is None:
                yield from self._plain.needs(key, offset, step)
            elif self.units[hot[0]].entry.length:  # it is not all zeros
                yield Need(hot[0], hot[1] + within, hot[1] + within + step)
            offset += step


def _cut_to(most: int, chunks: Iterable[HotChunk]) -> Iterator[HotChunk]:
    """Yield chunks in parts of `most` bytes: none may straddle a sector."""
    for key, start, length, chunk_size in chunks:
        for at in range(start, start + length, most):
            yield HotChunk(key, at, min(most, start + length - at), min(most, chunk_size))


class FileLayout(Layout):
    """Whole files, or chunks of files: each is compressed and verified on its own.

    Args:
        content: of the image.
        chunk_size: bytes of a chunk; 0 for whole files.

    Raises:
        LimitError: there are more than `MAX_UNITS` of them.
    """

    def __init__(self, content: Content, chunk_size: int) -> None:
        super().__init__(content, 0)
        self._chunk_size = chunk_size
        self._first: dict[FileKey, int] = {}
        files = [file for layer in content.layers for file in layer.files]
        count = sum(-(-file.size // chunk_size) if chunk_size else 1 for file in files)
        if count > MAX_UNITS:
            raise LimitError(f"{count} chunks, {MAX_UNITS} are the limit")
        for layer, its in enumerate(content.layers):
            for number, file in enumerate(its.files):
                key = FileKey(layer, number)
                self._first[key] = len(self.units)
                blob, offset = _blob(f"file {number} of {its.blob.digest}"), 0
                size = round_up(file.size, BLOCK_SIZE)
                for start in range(0, size, chunk_size or size):
                    length = min(chunk_size or size, size - start)
                    offset = self._add(blob, offset, [_Part(0, length, key, start)])

    @property
    def devices(self) -> int:
        return 0

    def needs(self, key: FileKey, offset: int, length: int) -> Iterator[Need]:
        end = min(offset + length, round_up(self.content.file(key).size, BLOCK_SIZE))
        first, chunk_size = self._first[key], self._chunk_size or 1 << 62
        for number in range(offset // chunk_size, -(-end // chunk_size)):
            entry = self.units[first + number].entry
            if entry.length:  # it is no hole
                yield Need(first + number, 0, entry.size)

# SPDX-License-Identifier: Apache-2.0
"""Packs one layer: a tar stream in, a sector blob and its layer record out.

Owns the pipeline of one layer. Four stages overlap, and all of them spend their time in C with
the GIL released: a thread reads and decompresses ahead, the caller's thread parses the tar and
copies file data into sector buffers, a pool hashes and compresses full sectors, and one more thread
writes the results in order. Invariant: memory is bounded by the sectors in flight and the encoded
entries, whatever the layer's size, and no thread outlives a call.
"""

from __future__ import annotations

import hashlib
import stat
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from sys import byteorder
from typing import BinaryIO, Self

import msgspec
import zstandard

from firstread.convert.ahead import ReadAhead
from firstread.convert.entry import TarEntry, TarKind
from firstread.convert.plan import Piece, Planner
from firstread.convert.record import (
    Entry,
    LayerRecord,
    PackedSector,
    Parameters,
    encode_entries,
)
from firstread.convert.stream import Feed, decompress
from firstread.convert.tar import TarReader
from firstread.erofs.xattrs import supported_xattr
from firstread.errors import DigestError, LimitError
from firstread.printable import printable
from firstread.sectors.format import (
    BLOCK_SIZE,
    SKIPPABLE_RECORD,
    FrameTable,
    Geometry,
    pack_skippable,
    sector_id,
)
from firstread.units import KiB, round_up

_TYPES = {
    TarKind.REGULAR: stat.S_IFREG,
    TarKind.SYMLINK: stat.S_IFLNK,
    TarKind.CHAR: stat.S_IFCHR,
    TarKind.BLOCK: stat.S_IFBLK,
    TarKind.DIRECTORY: stat.S_IFDIR,
    TarKind.FIFO: stat.S_IFIFO,
}
_SPECIAL = frozenset((TarKind.SYMLINK, TarKind.CHAR, TarKind.BLOCK, TarKind.FIFO))
_USER = b"user."

ONLY_SECTOR_LEVEL = 9  # at least, for the only sector of a layer: it takes 0.1 s, and 5 % less room
_ZEROS = memoryview(bytes(64 * KiB))


class PackedLayer(msgspec.Struct, frozen=True):
    """What packing a layer gives.

    Args:
        record: the encoded `LayerRecord`.
        record_offset: where in the blob it stands, its frame header included.
        digest: ``sha256:…`` of the blob.
        size: bytes of the blob; it has at least the record, if the layer has no data.
        diff_id: ``sha256:…`` of the uncompressed blob, which is its sectors back to back.
    """

    record: bytes
    record_offset: int
    digest: str
    size: int
    diff_id: str


def pack_layer(
    chunks: Iterable[bytes | memoryview],
    media_type: str,
    diff_id: str,
    parameters: Parameters,
    blob: BinaryIO,
    *,
    jobs: int = 1,
    in_flight: int = 2,
    on_bytes: Callable[[int], None] | None = None,
) -> PackedLayer:
    """Write the sector blob of a layer.

    Args:
        chunks: the layer as its registry holds it; whoever gives them verifies their digest.
        media_type: of the layer.
        diff_id: digest that the uncompressed layer must have.
        parameters: sector size, frame size, compression level.
        blob: where the blob goes, from its start.
        jobs: sectors compressed at a time.
        in_flight: sectors in memory at a time, beside the two being filled.
        on_bytes: called with the number of uncompressed bytes of each step.

    Raises:
        ImageError: the layer is corrupt, or not the one that `diff_id` names.
    """
    algorithm = diff_id.partition(":")[0]
    content = hashlib.new(algorithm)

    def hashed() -> Iterator[bytes]:
        for chunk in decompress(chunks, media_type):
            content.update(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
            yield chunk

    with ReadAhead(hashed()) as ahead, BlobWriter(blob, parameters, jobs, in_flight) as writer:
        feed = Feed(ahead)
        packer = _Packer(TarReader(feed), parameters, writer)
        batches = encode_entries(map(packer.entry, packer.reader))
        feed.drain()
        packer.close()
        found = f"{algorithm}:{content.hexdigest()}"  # complete: drain() met the end of the stream
        if found != diff_id:
            raise DigestError(
                f"the layer's content is {found}, the image's config says {diff_id}",
                hint="the image is damaged at its source: push it again",
            )
        record = LayerRecord(
            diff_id=diff_id,
            parameters=parameters.key,
            sectors=writer.finish(),
            batches=batches,
            size=feed.position,
            dropped_xattrs=sorted(packer.dropped_xattrs),
        ).encode()
        return writer.seal(record)


class _Packer:
    """Copies the data of each entry to the places that the planner gives."""

    def __init__(self, reader: TarReader, parameters: Parameters, writer: BlobWriter) -> None:
        self.reader = reader
        self.dropped_xattrs: set[bytes] = set()
        self._planner = Planner(parameters.sector_size)
        self._writer = writer
        self._shared: _Target | None = None  # the open packed sector

    def entry(self, tar: TarEntry) -> Entry:
        """Return the record of one entry, its data packed."""
        entry = entry_record(tar)
        if tar.xattrs:
            self.dropped_xattrs.update(tar.xattrs.keys() - (entry.xattrs or {}).keys())
        if tar.kind is TarKind.REGULAR and tar.size:
            try:
                placement = self._planner.place(tar.size, tar.extents)
            except LimitError as exc:
                exc.message = f"tar entry {printable(tar.path)!r}: {exc.message}"
                raise
            entry.chunk_size = placement.chunk_size
            entry.chunks = _little_endian(placement.chunks)
            self._copy(tar, placement.pieces)
        return entry

    def _copy(self, tar: TarEntry, pieces: Iterable[Piece]) -> None:
        """Copy the stored data of `tar`; every piece has some, and both come in file order."""
        todo = iter(pieces)
        target: _Target | None = None
        start = end = 0  # of the current piece in the file
        for position, data in self.reader.data(tar):
            offset, view = position, data
            while view:
                while target is None or offset >= end:
                    self._done(target)
                    piece = next(todo)
                    start, end = piece.offset, piece.offset + piece.length
                    target = self._target(piece)
                part = view[: end - offset]
                target.put(offset - start, part)
                view = view[len(part) :]
                offset += len(part)
        self._done(target)

    def _target(self, piece: Piece) -> _Target:
        """Return where `piece` goes; a packed sector that it does not belong to is complete."""
        if piece.whole:
            return _Target(self._writer.take(), piece)
        if self._shared is None or self._shared.sector != piece.sector:
            self.close()
            self._shared = _Target(self._writer.take(), piece)
        else:
            self._shared.next(piece)
        return self._shared

    def _done(self, target: _Target | None) -> None:
        """End the current piece; hand its sector over if nothing else goes there."""
        if target is not None:
            target.fill()
            if target.whole:
                self._writer.submit(target.sector, target.buffer, target.filled, whole=True)

    def close(self) -> None:
        """Hand over the open packed sector."""
        if self._shared is not None:
            self._writer.submit(self._shared.sector, self._shared.buffer, self._shared.filled)
            self._shared = None


class _Target:
    """A sector that is being filled from its front; what no piece covers becomes zeros.

    Buffers are used again and again, so zeros are written where they belong, and only there.
    """

    __slots__ = ("_end", "_start", "buffer", "filled", "sector", "whole")

    def __init__(self, buffer: memoryview, piece: Piece) -> None:
        self.buffer = buffer
        self.sector = piece.sector
        self.whole = piece.whole
        self.filled = 0
        self.next(piece)

    def next(self, piece: Piece) -> None:
        """Go on with `piece`, which begins where the one before ended."""
        self._start = piece.block * BLOCK_SIZE
        self._end = self._start + round_up(piece.length, BLOCK_SIZE)

    def put(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset` of the piece, zeros before it."""
        at = self._start + offset
        if at > self.filled:
            self._zeros(at)
        self.filled = at + len(data)
        self.buffer[at : self.filled] = data

    def fill(self) -> None:
        """Write zeros up to the end of the piece's last block."""
        if self.filled < self._end:
            self._zeros(self._end)

    def _zeros(self, end: int) -> None:
        while self.filled < end:
            count = min(end - self.filled, len(_ZEROS))
            self.buffer[self.filled : self.filled + count] = _ZEROS[:count]
            self.filled += count


def entry_record(tar: TarEntry) -> Entry:
    """Return the record of a tar entry, without the place of its data.

    Only files and directories have attributes of users (xattr(7)). The kernel lists one of another
    inode but does not give its value, so that overlayfs could not copy the inode up.
    """
    xattrs = None
    if tar.xattrs:
        special = tar.kind in _SPECIAL
        kept = {
            name: tar.xattrs[name]
            for name in sorted(tar.xattrs)
            if supported_xattr(name) and not (special and name.startswith(_USER))
        }
        xattrs = kept or None
    return Entry(
        tar.path,
        _TYPES[tar.kind] | tar.mode if tar.kind is not TarKind.HARDLINK else 0,
        tar.uid,
        tar.gid,
        tar.mtime,
        tar.mtime_nsec,
        tar.size,
        tar.link,
        tar.rdev,
        xattrs,
    )


class BlobWriter:
    """Compresses sectors on a pool and writes them to the blob in the order of `submit`.

    Args:
        out: where the blob goes.
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
        # Nobody waits any more for what is not done: either there is nothing, or an error.
        self._writing.shutdown(wait=False, cancel_futures=True)
        self._compression.shutdown(cancel_futures=True)
        self._writing.shutdown()

    def take(self) -> memoryview:
        """Return a buffer of one sector; what is in it does not matter."""
        return self._free.pop() if self._free else memoryview(bytearray(len(self._zeros)))

    def submit(self, number: int, buffer: memoryview, size: int, *, whole: bool = False) -> None:
        """Hand over a sector: its number, its buffer, and how many bytes of it count.

        A sector that belongs to one file and holds only zeros becomes a hole of that file.

        Raises:
            OSError: a sector before could not be written.
        """
        if whole and buffer.obj == self._zeros:
            self._sectors[number] = PackedSector(b"", size, 0, 0)
            self._free.append(buffer)
            return
        data = buffer[:size]
        if not self._several and self._first is None:
            self._first = number, data  # until it is known whether it stays the only one
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
        """Write what is pending; return all sectors in order of their numbers."""
        if self._first is not None:
            self._compress(*self._first, max(self._level, ONLY_SECTOR_LEVEL))
        while self._pending:
            self._pending.popleft().result()
        return [self._sectors[number] for number in range(len(self._sectors))]

    def seal(self, record: bytes) -> PackedLayer:
        """End the blob with the layer record."""
        offset = self._size
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
    """One compressor a thread and level: they cannot be shared, and are dear to make."""

    def __init__(self) -> None:
        self.by_level: dict[int, zstandard.ZstdCompressor] = {}


_compressors = _Compressors()


def compress_sector(data: memoryview, geometry: Geometry, level: int) -> tuple[bytes, bytes]:
    """Return the id of a sector, and the bytes of it in a blob: frame table and frames.

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


def _little_endian(chunks: array[int]) -> bytes:
    if byteorder == "big":
        chunks = array("Q", chunks)
        chunks.byteswap()
    return chunks.tobytes()

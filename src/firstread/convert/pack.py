# SPDX-License-Identifier: Apache-2.0
"""Packs one layer: a tar stream in, a sector blob and its layer record out.

Owns the pipeline of one layer. Four stages overlap, and all spend their time in C with the GIL
released: one thread reads and decompresses ahead, the caller's thread parses the tar and copies
file data into sector buffers, and the threads of `BlobWriter` compress full sectors and write them
in order. Invariant: only the sectors in flight and the encoded entries bound memory, whatever the
layer's size, and no thread outlives a call.
"""

from __future__ import annotations

import hashlib
import stat
from array import array
from collections.abc import Iterable, Iterator
from sys import byteorder
from typing import BinaryIO

from firstread.convert.ahead import ReadAhead
from firstread.convert.blobwriter import BlobWriter, PackedLayer
from firstread.convert.entry import TarEntry, TarKind
from firstread.convert.plan import Piece, Planner
from firstread.convert.record import Entry, LayerRecord, Parameters, encode_entries
from firstread.convert.stream import Feed, decompress
from firstread.convert.tar import TarReader
from firstread.erofs.xattrs import supported_xattr
from firstread.errors import DigestError, LimitError
from firstread.printable import printable
from firstread.sectors.format import BLOCK_SIZE
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
_USER, _TRUSTED = b"user.", b"trusted."

_ZEROS = memoryview(bytes(64 * KiB))


def pack_layer(
    chunks: Iterable[bytes | memoryview],
    media_type: str,
    diff_id: str,
    parameters: Parameters,
    blob: BinaryIO,
    *,
    jobs: int = 1,
    in_flight: int = 2,
) -> PackedLayer:
    """Write the sector blob of a layer.

    Args:
        chunks: the layer as its registry holds it; their source verifies the blob's digest.
        media_type: of the layer.
        diff_id: digest that the uncompressed layer must have.
        parameters: sector size, frame size, compression level.
        blob: takes the blob, from its start.
        jobs: sectors compressed at a time.
        in_flight: sectors in memory at a time, besides the two being filled.

    Raises:
        ImageError: the layer is corrupt, or not the one that `diff_id` names.
    """
    content = _Content(chunks, media_type, diff_id)
    with ReadAhead(iter(content)) as ahead, BlobWriter(blob, parameters, jobs, in_flight) as writer:
        feed = Feed(ahead)
        packer = _Packer(TarReader(feed), parameters, writer)
        batches = encode_entries(map(packer.entry, packer.reader))
        feed.drain()
        packer.close()
        content.check()
        record = LayerRecord(
            diff_id=diff_id,
            parameters=parameters.key,
            sectors=writer.finish(),
            batches=batches,
            size=feed.position,
            dropped_xattrs=sorted(packer.dropped_xattrs),
        ).encode()
        return writer.seal(record)


class _Content:
    """The uncompressed layer, digested while it is iterated once.

    Args:
        chunks: of the layer, compressed.
        media_type: of the layer.
        diff_id: that it must have.
    """

    def __init__(self, chunks: Iterable[bytes | memoryview], media_type: str, diff_id: str) -> None:
        self._chunks = chunks
        self._media_type = media_type
        self._diff_id = diff_id
        self._algorithm = diff_id.partition(":")[0]
        self._digest = hashlib.new(self._algorithm)

    def __iter__(self) -> Iterator[bytes]:
        for chunk in decompress(self._chunks, self._media_type):
            self._digest.update(chunk)
            yield chunk

    def check(self) -> None:
        """Compare the digest, once the iteration has met the end."""
        found = f"{self._algorithm}:{self._digest.hexdigest()}"
        if found != self._diff_id:
            raise DigestError(
                f"the layer's content is {found}, the image's config says {self._diff_id}",
                hint="the image is damaged at its source: push it again",
            )


class _Packer:
    """Copies the data of each entry to where the planner puts it."""

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
        """Return the target of `piece`; a piece of another packed sector ends the open one."""
        if piece.whole:
            return _Target(self._writer.take(), piece)
        if self._shared is None or self._shared.sector != piece.sector:
            self.close()
            self._shared = _Target(self._writer.take(), piece)
        else:
            self._shared.next(piece)
        return self._shared

    def _done(self, target: _Target | None) -> None:
        """End the current piece; hand its sector over if the piece has it to itself."""
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
    """A sector being filled from its front; gaps between pieces become zeros.

    Buffers are reused, so zeros are written exactly where they belong.
    """

    __slots__ = ("_end", "_start", "buffer", "filled", "sector", "whole")

    def __init__(self, buffer: memoryview, piece: Piece) -> None:
        self.buffer = buffer
        self.sector = piece.sector
        self.whole = piece.whole
        self.filled = 0
        self.next(piece)

    def next(self, piece: Piece) -> None:
        """Continue with `piece`, which begins where the previous one ended."""
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
    """Return the record of a tar entry, without the addresses of its data.

    Only files and directories can have user attributes (xattr(7)). The kernel would list one on
    another kind of inode and refuse its value, and overlayfs could not copy the inode up. Those of
    the class "trusted" are the node's own: overlayfs takes orders from them (docs/adr/0164).
    """
    xattrs = None
    if tar.xattrs:
        foreign = (_TRUSTED, _USER) if tar.kind in _SPECIAL else (_TRUSTED,)
        kept = {
            name: tar.xattrs[name]
            for name in sorted(tar.xattrs)
            if supported_xattr(name) and not name.startswith(foreign)
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


def _little_endian(chunks: array[int]) -> bytes:
    if byteorder == "big":
        chunks = array("Q", chunks)
        chunks.byteswap()
    return chunks.tobytes()

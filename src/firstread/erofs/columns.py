# SPDX-License-Identifier: Apache-2.0
"""Checks a whole EROFS image at once: each field of all its inodes and entries is one array.

Owns the quick half of `firstread.erofs.validation`: a start waits for it. Invariant: what is
vouched for here is valid to `firstread.erofs.reader`, whose checks these are, and which says what
is wrong with all else. Time and memory are proportional to the image, whatever its bytes.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's, which makes a thread for each core

import numpy as np
from numpy.typing import NDArray

from firstread.erofs.erofsimage import NO_ID, NSEC, ErofsImage
from firstread.erofs.format import (
    BLOCK,
    BLOCK_BITS,
    CHUNK_BASED,
    CHUNK_BITS_MASK,
    CHUNK_INDEX_SIZE,
    CHUNK_INDEXES,
    DIRENT_SIZE,
    EXTENDED,
    FILE_TYPES,
    FLAT_INLINE,
    FT_DIR,
    HOLE_INDEX,
    INODE_COMPACT,
    INODE_EXTENDED,
    LAYOUT_MASK,
    MAX_NAME,
    MAX_TARGET,
    NID_BITS,
    SLOT,
)
from firstread.erofs.indexruns import IndexRuns, pack_run
from firstread.erofs.inode import shape_of
from firstread.erofs.xattrs import body_size

Column = NDArray[np.int64]
Pair = tuple[Column, Column]
Mask = NDArray[np.bool_]

BATCH = 4096  # inodes: their columns stay in the processor's cache, and in memory used before
MAX_DEPTH = 1024  # levels of directories: each takes 0.3 ms, however little is in it

_NONE: Pair = (np.zeros(0, np.int64),) * 2
_SLOT_WORDS = SLOT // 4
_DIR, _LINK = 0o4, 0o12  # upper four bits of a mode
_NAMES_END = bytes(MAX_NAME + 8)  # a name is read in words of 8 bytes
_TYPES = np.array(FILE_TYPES, np.uint8)
_SHAPES = [[shape_of(form, 0, kind << 12) for form in range(16)] for kind in range(16)]
_IS_SHAPE = np.array([[bool(shape) for shape in shapes] for shapes in _SHAPES])
_HAS_DATA = np.array([[bool(shape and shape[1]) for shape in shapes] for shapes in _SHAPES])
# What of 8 bytes in big-endian order belongs to a name of which so many bytes are left.
_LEFT = np.array([(1 << 64) - (1 << 64 - 8 * left) for left in range(9)], np.uint64)


class _DoubtError(Exception):
    """The image is not one that can be vouched for here."""


def vouch(image: ErofsImage) -> tuple[bool, IndexRuns] | None:
    """Return whether an image has xattrs, and its runs of chunk indexes; None: it may be invalid.

    Raises:
        ImageError: extended attributes are malformed.
    """
    try:
        return _Check(image).run()
    except _DoubtError:
        return None


def _require(*conditions: Mask | np.bool_ | bool) -> None:
    for condition in conditions:
        if not (condition if isinstance(condition, bool) else condition.all()):
            raise _DoubtError


@dataclass(frozen=True, slots=True)
class _Inodes:
    """Some inodes, a column for each field; names as of `firstread.erofs.inode.Inode`."""

    nid: Column
    kind: Column  # upper four bits of the mode
    layout: Column
    nlink: Column
    size: Column
    i_u: Column
    tail: Column  # offset behind the xattrs
    xattr_size: Column
    stored: Column

    @property
    def indexes_offset(self) -> Column:
        return self.tail + CHUNK_INDEX_SIZE - 1 & -CHUNK_INDEX_SIZE


class _Entries:
    """The entries of some directories, in order.

    Args:
        directory: number of its directory among them.
        nid: as stored.
        type: as stored.
        text: the names, one behind the other, and zeros.
        length: of its name, in bytes.
    """

    def __init__(
        self, directory: Column, nid: Column, type_: Column, text: bytes, length: Column
    ) -> None:
        self.directory, self.nid, self.type = directory, nid, type_
        self.text, self.length = text, length
        self.start = np.cumsum(length) - length

    def check_order(self) -> None:
        """Check that the names of each directory ascend: eight bytes more where all were equal."""
        words: NDArray[np.uint64] = np.ndarray(len(self.text) - 7, ">u8", self.text, strides=(1,))
        names, done = np.flatnonzero(self.directory[1:] == self.directory[:-1]), 0
        while names.size:
            this, following = (
                words[self.start[each] + done]
                & _LEFT[np.minimum(np.maximum(self.length[each] - done, 0), 8)]
                for each in (names, names + 1)
            )
            _require(this <= following)
            names = names[this == following]
            done += 8
            _require(self.length[names + 1] > done)


class _Check:
    """The check of one image."""

    def __init__(self, image: ErofsImage) -> None:
        self.image = image
        self.words = np.frombuffer(image.data, "<u4")
        self.slots = self.words.reshape(-1, _SLOT_WORDS)
        self.first_slot = image.superblock.meta_blkaddr << BLOCK_BITS - NID_BITS
        self.bytes_left = image.size  # not used by any inode yet
        self.inodes_left = image.superblock.inodes
        self.with_xattrs: list[int] = []  # nids
        self.rooms = np.array([-1, *(device.blocks for device in image.devices)])  # by number

    def run(self) -> tuple[bool, IndexRuns]:
        nids, types = self._walk()
        _require(nids < len(self.slots))
        names = np.bincount(nids)
        unique = np.flatnonzero(names)
        type_of = np.zeros(names.size, np.uint8)
        runs = array("Q")
        for first in range(0, unique.size, BATCH):
            inodes = self._inodes(unique[first : first + BATCH])
            self._count(inodes)
            type_of[inodes.nid] = _TYPES[inodes.kind]
            _require(inodes.nlink == names[inodes.nid])
            self._check_links(inodes)
            runs.frombytes(self._check_chunks(inodes))
        _require(type_of[nids] == types, not self.inodes_left)
        for nid in self.with_xattrs:
            self.image.xattrs(self.image.inode(nid))
        return bool(self.with_xattrs), IndexRuns(runs)

    def _walk(self) -> tuple[Column, Column]:
        """Check all directories, level by level; return nid and type of all else in them."""
        place = np.full(len(self.slots), -1, np.int32)  # of a directory in its level, by nid
        others = [_NONE]
        level = [(np.array([self.image.root_nid]),) * 2]
        for _ in range(MAX_DEPTH + 1):
            nids, parents = _joined(level)
            if not nids.size:
                return _joined(others)
            _require(nids < len(self.slots))
            places = np.arange(nids.size, dtype=np.int32)
            _require(place[nids] < 0)
            place[nids] = places
            _require(place[nids] == places)
            level = [_NONE]
            for first in range(0, nids.size, BATCH):
                below, named = self._list(
                    *(each[first : first + BATCH] for each in (nids, parents))
                )
                level.append(below)
                others.append(named)
        raise _DoubtError

    def _list(self, nids: Column, parents: Column) -> tuple[Pair, Pair]:
        """Check some directories; return (nid, parent) of those in them, (nid, type) of others."""
        inodes = self._inodes(nids)
        self._count(inodes)
        _require(inodes.kind == _DIR)
        entries = self._entries(inodes)
        is_dir = entries.type == FT_DIR
        is_below = is_dir & ~self._are_dots(entries, nids, parents)
        directory = entries.directory[is_below]
        _require(inodes.nlink == 2 + np.bincount(directory, minlength=nids.size))
        below = entries.nid[is_below], nids[directory]
        return below, (entries.nid[~is_dir], entries.type[~is_dir])

    def _inodes(self, nids: Column) -> _Inodes:
        """Return inodes; their form, bounds and mode are valid, as in `ErofsImage.inode`."""
        slot, last = nids + self.first_slot, len(self.slots) - 1
        _require(slot <= last)
        head, more = self.slots[slot], self.slots[np.minimum(slot + 1, last)]
        form, high = head[:, 0] & 0xFFFF, head[:, 1] >> 16
        kind, is_extended = head[:, 1] >> 12 & 0xF, form & EXTENDED != 0
        extended = more[is_extended]
        _require(form < _IS_SHAPE.shape[1], ~is_extended | (slot < last))
        _require(
            _IS_SHAPE[kind, form],
            np.where(is_extended, high, head[:, 3] | head[:, 7]) == 0,
            head[is_extended, 3] < 1 << 31,
            head[is_extended, 6:] != NO_ID,
            extended[:, 2] < NSEC,
            extended[:, 4:] == 0,
        )
        size = head[:, 2].astype(np.int64)
        size[is_extended] |= head[is_extended, 3].astype(np.int64) << 32
        _require((size > 0) == _HAS_DATA[kind, form])
        xattr_size = _body_sizes(head[:, 0] >> 16)
        body = slot * SLOT + np.where(is_extended, INODE_EXTENDED.size, INODE_COMPACT.size)
        nlink = np.where(is_extended, more[:, 3], high)
        layout, i_u = form & LAYOUT_MASK, head[:, 4].astype(np.int64)
        chunks = -(-size >> BLOCK_BITS + (i_u & CHUNK_BITS_MASK))
        stored = np.where(layout == CHUNK_BASED, chunks * CHUNK_INDEX_SIZE, size)
        tail = body + xattr_size
        inodes = _Inodes(nids, kind, layout, nlink, size, i_u, tail, xattr_size, stored)
        self._check_bounds(inodes, slot * SLOT)
        return inodes

    def _check_bounds(self, inodes: _Inodes, start: Column) -> None:
        """Check that the image has all bytes of inodes that begin at `start`."""
        is_chunked, is_inline = inodes.layout == CHUNK_BASED, inodes.layout == FLAT_INLINE
        rest = np.where(is_inline, inodes.size % BLOCK, 0)
        blocks = np.where(is_chunked, 0, -(-(inodes.size - rest) // BLOCK))
        indexes_end, end = inodes.indexes_offset + inodes.stored, inodes.tail + rest
        _require(
            ~is_chunked | (inodes.i_u & ~CHUNK_BITS_MASK == CHUNK_INDEXES),
            ~is_inline | (rest > 0) & (end - 1 >> BLOCK_BITS == start >> BLOCK_BITS),
            (blocks == 0) | (inodes.i_u + blocks <= self.image.superblock.blocks),
            np.where(is_chunked, indexes_end, end) <= self.image.size,
        )

    def _count(self, inodes: _Inodes) -> None:
        """Count inodes and their bytes; no byte is counted for two, so work has a bound."""
        self.inodes_left -= inodes.nid.size
        self.bytes_left -= SLOT * inodes.nid.size + int((inodes.xattr_size + inodes.stored).sum())
        _require(self.bytes_left >= 0)
        self.with_xattrs += inodes.nid[inodes.xattr_size > 0].tolist()

    def _entries(self, inodes: _Inodes) -> _Entries:
        """Return the entries of directories; valid as those of `ErofsImage.readdir`."""
        directory, number = _parts(-(-inodes.size // BLOCK))
        left = inodes.size[directory] - number * BLOCK
        is_tail = (left < BLOCK) & (inodes.layout[directory] == FLAT_INLINE)
        start = np.where(is_tail, inodes.tail[directory], (inodes.i_u[directory] + number) * BLOCK)
        used = np.minimum(left, BLOCK)
        _require(used > DIRENT_SIZE)
        table = (self.words[start + 8 >> 2] & 0xFFFF).astype(np.int64)
        _require(table > 0, table % DIRENT_SIZE == 0, table < used)
        stop = self._text_ends(start, used)
        block, row = _parts(table // DIRENT_SIZE)
        word = (start[block] + row * DIRENT_SIZE) >> 2
        nid, nid_high, rest = (self.words[word + part].astype(np.int64) for part in range(3))
        offset = rest & 0xFFFF
        end = np.append(offset[1:], 0)
        end[np.cumsum(table // DIRENT_SIZE) - 1] = stop
        length = end - offset
        _require(nid_high == 0, rest >> 24 == 0, length > 0, length <= MAX_NAME)
        data = self.image.data
        texts = zip((start + table).tolist(), (start + stop).tolist(), strict=True)
        text = b"".join([data[first:end] for first, end in texts])
        _require(b"\0" not in text, b"/" not in text)
        entries = _Entries(directory[block], nid, rest >> 16, text + _NAMES_END, length)
        entries.check_order()
        return entries

    def _text_ends(self, start: Column, used: Column) -> Column:
        """Return where the names of directory blocks end in them; NULs fill the rest."""
        data, stop = self.image.data, used.copy()
        padded = np.frombuffer(data, np.uint8)[start + used - 1] == 0
        for block in np.flatnonzero(padded).tolist():
            first = int(start[block])
            stop[block] = len(bytes(data[first : first + int(used[block])]).rstrip(b"\0"))
        return stop

    def _are_dots(self, entries: _Entries, nids: Column, parents: Column) -> Mask:
        """Return which entries are ``.`` and ``..``; each directory has both, and right ones."""
        text, start = np.frombuffer(entries.text, np.uint8), entries.start
        has_dot = text[start] == ord(".")
        selves = has_dot & (entries.length == 1)
        others = has_dot & (entries.length == 2) & (text[start + 1] == ord("."))
        are_dots: Mask = selves | others
        _require(
            np.array_equal(entries.nid[selves], nids),
            np.array_equal(entries.nid[others], parents),
            entries.type[are_dots] == FT_DIR,
        )
        return are_dots

    def _check_links(self, inodes: _Inodes) -> None:
        """Check the targets of symbolic links, as `ErofsImage.readlink` does."""
        links = inodes.kind == _LINK
        size = inodes.size[links]
        is_inline = inodes.layout[links] == FLAT_INLINE
        start = np.where(is_inline, inodes.tail[links], inodes.i_u[links] * BLOCK)
        _require(size <= MAX_TARGET)
        data, targets = self.image.data, zip(start.tolist(), size.tolist(), strict=True)
        _require(b"\0" not in b"".join([data[first : first + count] for first, count in targets]))

    def _check_chunks(self, inodes: _Inodes) -> bytes:
        """Check the chunks of files, as `ErofsImage.chunks` does; return where the indexes lie."""
        files = np.flatnonzero(inodes.layout == CHUNK_BASED)
        first = inodes.indexes_offset[files]
        count = inodes.stored[files] // CHUNK_INDEX_SIZE
        file, number = _parts(count)
        word = first[file] // 4 + 2 * number
        head, block = self.words[word], self.words[word + 1].astype(np.int64)
        bits = inodes.i_u[files][file] & CHUNK_BITS_MASK
        left = -(-inodes.size[files][file] // BLOCK) - (number << bits)
        device = head >> 16
        is_hole = (head == 0) & (block == HOLE_INDEX >> 32)
        _require(is_hole | (head & 0xFFFF == 0) & (device < self.rooms.size))
        room = self.rooms[np.where(is_hole, 0, device)]
        _require(is_hole | (block + np.minimum(left, 1 << bits) <= room))
        return pack_run(first, count).tobytes()


def _joined(pairs: list[Pair]) -> Pair:
    first, second = map(np.concatenate, zip(*pairs, strict=True))
    return first, second


def _parts(counts: Column) -> tuple[Column, Column]:
    """Return of each part of some wholes that have `counts` parts which whole, and which part."""
    whole = np.repeat(np.arange(counts.size), counts)
    return whole, np.arange(whole.size) - (np.cumsum(counts) - counts)[whole]


def _body_sizes(counts: Column) -> Column:
    """Return `body_size` of each count; the many inodes of an image have few."""
    if not counts.any():
        return np.zeros(counts.size, np.int64)
    values, which = np.unique(counts, return_inverse=True)
    return np.array([body_size(int(value)) for value in values], np.int64)[which]

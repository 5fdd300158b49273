# SPDX-License-Identifier: Apache-2.0
"""One EROFS image as bytes: superblock, device table, and any single inode on request.

Knows only the output of `writer`: uncompressed, chunk-based with 8-byte indexes, plain and inline.
`reader` checks that the inodes form a tree. Invariant: any bytes give a result or an ImageError,
and no call takes time or memory beyond the image's length.
Source: Linux ``fs/erofs``; this module also checks what the kernel checks late or never.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from firstread.erofs.chunks import chunk_size_of, decode_chunks, indexes_size
from firstread.erofs.directory import Dirent, decode_block, first_name
from firstread.erofs.format import (
    BLOCK,
    BLOCK_BITS,
    BOOT_SIZE,
    CHUNK_BASED,
    CHUNK_INDEX_SIZE,
    DEVICE_SLOT,
    DEVICE_SLOT_SIZE,
    DEVICE_TABLE,
    EXTENDED,
    FLAT_INLINE,
    FLAT_PLAIN,
    INODE_COMPACT,
    INODE_EXTENDED,
    MAX_BLOCKS,
    MAX_TARGET,
    NID_BITS,
    SLOT,
    SUPER_SIZE,
    Superblock,
    align,
)
from firstread.erofs.inode import Inode, shape_of
from firstread.erofs.tree import Device
from firstread.erofs.xattrs import decode_body, decode_entry
from firstread.errors import ImageError, UnsupportedError

NSEC = 1_000_000_000
_ZEROS = bytes(16)
NO_ID = 0xFFFFFFFF  # the kernel takes it for no owner at all


@dataclass(frozen=True, slots=True)
class MappedDevice(Device):
    """A device slot: a device, and its position in the flat form of the image.

    Args:
        mapped_blkaddr: its first block there.
    """

    mapped_blkaddr: int


class ErofsImage:
    """An image with a valid superblock and device table; inodes are read on demand.

    Args:
        buffer: the metadata, or the whole flat image, without a copy: an mmap must stay open while
            the image is in use.

    Attributes:
        superblock: of the image.
        devices: the device slots in order.

    Raises:
        ImageError: the superblock or the device table is invalid.
        UnsupportedError: it is a foreign EROFS image.
    """

    def __init__(self, buffer: bytes | memoryview | mmap.mmap) -> None:
        data = memoryview(buffer).toreadonly().cast("B")
        if len(data) < BLOCK:
            raise ImageError("the metadata is cut off")
        self.superblock = Superblock.unpack(bytes(data[BOOT_SIZE : BOOT_SIZE + SUPER_SIZE]))
        self.size = self.superblock.blocks * BLOCK  # of the primary, in bytes
        if not BLOCK <= self.size <= len(data):
            raise ImageError(f"the metadata has {len(data)} bytes, not {self.size}")
        if self.superblock.epoch_nsec >= NSEC:
            raise ImageError("the epoch of the metadata has a second of nanoseconds or more")
        self._data = data[: self.size]
        self._epoch = self.superblock.epoch, self.superblock.epoch_nsec
        self._meta = self.superblock.meta_blkaddr << BLOCK_BITS
        self._shared_xattrs: dict[int, tuple[bytes, bytes]] = {}
        self._shared_size = 0
        self.devices = self._read_devices()
        self._device_blocks = [device.blocks for device in self.devices]

    def _read_devices(self) -> list[MappedDevice]:
        end = DEVICE_TABLE + DEVICE_SLOT_SIZE * self.superblock.devices
        if end > self.size:
            raise ImageError("the device table is longer than the metadata")
        devices: list[MappedDevice] = []
        expected = self.superblock.blocks
        for tag, blocks, mapped, reserved in DEVICE_SLOT.iter_unpack(self._data[DEVICE_TABLE:end]):
            try:
                digest = bytes.fromhex(tag.decode("ascii"))
            except ValueError:
                digest = b""
            if digest.hex().encode() != tag or not blocks or any(reserved):
                raise ImageError(f"device slot {len(devices)} has no valid sector id or size")
            if mapped != expected:
                raise ImageError(f"device slot {len(devices)} is mapped to block {mapped}")
            devices.append(MappedDevice(digest, blocks, mapped))
            expected += blocks
        if expected > MAX_BLOCKS:
            raise ImageError("the devices are larger than EROFS can address")
        return devices

    @property
    def boot(self) -> bytes:
        """The 1024 bytes before the superblock."""
        return bytes(self._data[:BOOT_SIZE])

    @property
    def data(self) -> memoryview:
        """The primary device: all of its `size` bytes."""
        return self._data

    @property
    def root_nid(self) -> int:
        return self.superblock.root_nid

    def inode(self, nid: int) -> Inode:
        """Return the inode `nid`; its form, bounds and mode are valid.

        Raises:
            ImageError: there is no such inode.
        """
        offset = self._meta + (nid << NID_BITS)
        if offset + SLOT > self.size:
            raise ImageError(f"inode {nid} is outside the metadata")
        if self._data[offset] & EXTENDED:
            body = offset + INODE_EXTENDED.size
            if body > self.size:
                raise ImageError(f"inode {nid} is outside the metadata")
            form, count, mode, zero, size, i_u, _, uid, gid, mtime, nsec, nlink, zeros = (
                INODE_EXTENDED.unpack_from(self._data, offset)
            )
            if zero or zeros != _ZEROS or nsec >= NSEC or NO_ID in (uid, gid):
                raise ImageError(f"inode {nid} has an invalid time, owner or reserved field")
        else:
            body = offset + INODE_COMPACT.size
            form, count, mode, nlink, size, zero, i_u, _, uid, gid, reserved = (
                INODE_COMPACT.unpack_from(self._data, offset)
            )
            if zero or reserved:
                raise ImageError(f"inode {nid} has a reserved field")
            mtime, nsec = self._epoch
        shape = shape_of(form, count, mode)
        if shape is None:
            raise UnsupportedError(f"inode {nid} has mode {mode:o} and format {form:#x}")
        layout, has_data, xattr_size = shape
        if (size > 0) is not has_data:
            raise ImageError(f"inode {nid} of mode {mode:o} has {size} bytes")
        stored, tail = size, body + xattr_size
        if layout == CHUNK_BASED:
            stored = indexes_size(size, i_u)
            tail = align(tail, CHUNK_INDEX_SIZE) + stored
        elif size:
            tail += self._inline_size(nid, offset, layout, size, i_u, tail)
        if tail > self.size:
            raise ImageError(f"inode {nid} reaches out of the metadata")
        owner, time = (uid, gid), (mtime, nsec)
        return Inode(nid, form, mode, nlink, size, i_u, *owner, *time, body, xattr_size, stored)

    def attributes(self, nid: int) -> tuple[int, int, int, int, int, int, int, int]:
        """Return (mode, links, size, i_u, uid, gid, mtime, nsec) of the inode `nid`, as stored.

        A quarter of the time that `inode` takes, which says whether they are valid.

        Raises:
            ImageError: there is no such inode.
        """
        offset = self._meta + (nid << NID_BITS)
        if offset + INODE_EXTENDED.size > self.size:  # it can be a compact one
            last = self.inode(nid)
            owner = last.uid, last.gid
            return last.mode, last.nlink, last.size, last.i_u, *owner, last.mtime, last.mtime_nsec
        if self._data[offset] & EXTENDED:
            _, _, mode, _, size, i_u, _, uid, gid, mtime, nsec, links, _ = (
                INODE_EXTENDED.unpack_from(self._data, offset)
            )
            return mode, links, size, i_u, uid, gid, mtime, nsec
        _, _, mode, links, size, _, i_u, _, uid, gid, _ = INODE_COMPACT.unpack_from(
            self._data, offset
        )
        return mode, links, size, i_u, uid, gid, *self._epoch

    def _inline_size(
        self, nid: int, offset: int, layout: int, size: int, i_u: int, tail: int
    ) -> int:
        """Return how many bytes of a directory or symbolic link follow its inode at `tail`.

        Raises:
            ImageError: they cross a block, or the image does not contain the other bytes.
        """
        blocks, rest = divmod(size, BLOCK)
        if layout == FLAT_PLAIN:
            blocks, rest = blocks + (rest > 0), 0
        elif not rest or tail + rest - 1 >> BLOCK_BITS != offset >> BLOCK_BITS:
            raise ImageError(f"the inline data of inode {nid} crosses a block")
        if blocks and i_u + blocks > self.superblock.blocks:
            raise ImageError(f"the data of inode {nid} is outside the metadata")
        return rest

    def _block(self, inode: Inode, number: int) -> bytes:
        """Return a block of the content of a flat inode."""
        done = number << BLOCK_BITS
        left, start = min(BLOCK, inode.size - done), (inode.i_u << BLOCK_BITS) + done
        if left < BLOCK and inode.layout == FLAT_INLINE:
            start = inode.tail_offset
        return bytes(self._data[start : start + left])

    def _blocks(self, inode: Inode) -> Iterator[bytes]:
        """Yield the content of a flat inode, block by block."""
        return (self._block(inode, number) for number in range(_count_blocks(inode)))

    def find_block(self, inode: Inode, name: bytes) -> int:
        """Return the number of the one block of a directory that can have a name.

        Raises:
            ImageError: a block is malformed.
        """
        low, high = 0, _count_blocks(inode)
        while high - low > 1:
            middle = (low + high) // 2
            if first_name(self._block(inode, middle)) <= name:
                low = middle
            else:
                high = middle
        return low

    def readdir_block(self, inode: Inode, number: int) -> list[Dirent]:
        """Return the entries of one block of a directory; none behind the last one.

        Raises:
            ImageError: the block is malformed.
        """
        in_it = number < _count_blocks(inode)
        return decode_block(self._block(inode, number)) if in_it else []

    def readdir(self, inode: Inode) -> list[Dirent]:
        """Return the entries of a directory in order, including ``.`` and ``..``.

        Raises:
            ImageError: `inode` is not a directory, or its entries are malformed.
        """
        if not inode.is_dir:
            raise ImageError(f"inode {inode.nid} is not a directory")
        entries: list[Dirent] = []
        for block in self._blocks(inode):
            following = decode_block(block)
            if entries and entries[-1][0] >= following[0][0]:
                raise ImageError(f"the names of directory {inode.nid} are out of order")
            entries += following
        return entries

    def readlink(self, inode: Inode) -> bytes:
        """Return the target of a symbolic link.

        Raises:
            ImageError: `inode` is not a symbolic link, or its target is invalid.
        """
        if not stat.S_ISLNK(inode.mode) or inode.size > MAX_TARGET:
            raise ImageError(f"inode {inode.nid} is not a valid symbolic link")
        target = b"".join(self._blocks(inode))
        if b"\0" in target:
            raise ImageError(f"symbolic link {inode.nid} contains a NUL")
        return target

    def chunks(self, inode: Inode) -> list[int]:
        """Return the chunks of a regular file, as in `Node.chunks`.

        Raises:
            ImageError: one lies outside its device.
        """
        if inode.layout != CHUNK_BASED:
            return []
        start, chunk_size = inode.indexes_offset, chunk_size_of(inode.i_u)
        return decode_chunks(self._data, start, inode.size, chunk_size, self._device_blocks)

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return the extended attributes of `inode`.

        Raises:
            ImageError: they are malformed or out of bounds.
        """
        if not inode.xattr_size:
            return {}
        ids, inline = decode_body(self._data, inode.xattr_offset, inode.tail_offset)
        items = [self._shared_xattr(number) for number in ids] + inline
        xattrs = dict(items)
        if len(xattrs) != len(items):
            raise ImageError(f"inode {inode.nid} has an extended attribute twice")
        return xattrs

    def _shared_xattr(self, number: int) -> tuple[bytes, bytes]:
        item = self._shared_xattrs.get(number)
        if item is None:
            start = (self.superblock.xattr_blkaddr << BLOCK_BITS) + 4 * number
            name, value, end = decode_entry(self._data, start, self.size)
            self._shared_size += end - start
            if self._shared_size > self.size:
                raise ImageError("shared extended attributes overlap")
            item = self._shared_xattrs[number] = name, value
        return item


def _count_blocks(inode: Inode) -> int:
    return -(-inode.size // BLOCK)

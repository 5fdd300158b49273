# SPDX-License-Identifier: Apache-2.0
"""Writes a tree as an EROFS image, in two passes.

Owns the second pass: `placement` decides where everything goes, and this module writes it strictly
forwards, so that the image can be digested and compressed on its way out and is never whole in
memory. The devices hold the file data. Invariant: equal arguments give equal bytes.
`firstread.erofs.format` shows the layout of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import BinaryIO

from firstread.erofs.chunks import chunk_format, encode_chunks
from firstread.erofs.directory import block_bounds, encode_block, with_dots
from firstread.erofs.format import (
    BLOCK,
    BOOT_SIZE,
    CHUNK_INDEX_SIZE,
    DEVICE_SLOT,
    DEVICE_SLOT_SIZE,
    DEVICE_TABLE,
    EXTENDED,
    FILE_TYPES,
    FLAT_INLINE,
    INODE_COMPACT,
    INODE_EXTENDED,
    LAYOUT_MASK,
    MAX_BLOCKS,
    MAX_DEVICES,
    Superblock,
    align,
    encode_device_number,
)
from firstread.erofs.placement import Layout, Order, flat_size
from firstread.erofs.tree import Device, Node
from firstread.erofs.xattrs import XattrTable, body_count
from firstread.errors import ImageError, LimitError

_BATCH = 1 << 18  # bytes handed to `out` at once
_LARGER_SECTORS = "convert it with a larger --sector-size"


def write_erofs(
    out: BinaryIO,
    root: Node,
    devices: Sequence[Device],
    *,
    boot: bytes = b"",
    trailer: bytes = b"",
    uuid: bytes = bytes(16),
    volume_name: bytes = b"",
) -> None:
    """Write the tree at `root` to `out` as an EROFS image; arguments and errors as `ErofsDraft`."""
    ErofsDraft(root, devices, boot=boot, trailer=trailer, uuid=uuid, volume_name=volume_name).write(
        out
    )


def _check_devices(devices: Sequence[Device]) -> None:
    if len(devices) > MAX_DEVICES:
        raise LimitError(
            f"{len(devices)} sectors are more than the {MAX_DEVICES} devices of an EROFS image",
            hint=_LARGER_SECTORS,
        )
    if any(len(device.tag) != 32 or device.blocks < 1 for device in devices):
        raise ImageError("a sector is empty or has no digest of 32 bytes")


def _write(out: BinaryIO, pieces: Iterator[bytes]) -> None:
    batch: list[bytes] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if size >= _BATCH:
            out.write(b"".join(batch))
            batch.clear()
            size = 0
    out.write(b"".join(batch))


class ErofsDraft:
    """An image that has a place for everything, to be written.

    Args:
        root: a directory; the slots in its chunk addresses are positions in `devices`.
        devices: hold the file data, in order of their slots.
        boot: at most 1024 bytes for offset 0.
        trailer: follows everything else, in blocks of its own.
        uuid: 16 bytes.
        volume_name: at most 15 bytes.

    Attributes:
        inodes: how many the image has.
        size: bytes of the image.

    Raises:
        ImageError: a file system cannot hold the tree.
        LimitError: the image is larger than EROFS allows.
    """

    def __init__(
        self,
        root: Node,
        devices: Sequence[Device],
        *,
        boot: bytes,
        trailer: bytes,
        uuid: bytes,
        volume_name: bytes = b"",
    ) -> None:
        if len(boot) > BOOT_SIZE or len(uuid) != 16 or len(volume_name) > 15 or not root.is_dir:
            raise ImageError("boot area, uuid, volume name or root do not fit in an EROFS image")
        _check_devices(devices)
        self._boot, self._trailer = boot, trailer
        self._uuid, self._volume_name = uuid, volume_name
        self._devices = devices
        self._device_blocks = [device.blocks for device in devices]
        self._table_end = DEVICE_TABLE + DEVICE_SLOT_SIZE * len(devices)
        self._order = Order.of(root)
        self.inodes = len(self._order.nodes)
        self._xattrs = XattrTable(
            (node.xattrs for node in self._order.nodes if node.xattrs),
            first_id=self._table_end % BLOCK // 4,
        )
        start = self._table_end + len(self._xattrs.shared)
        self._layout = Layout.of(self._order, self._xattrs, start)
        self._first_data_block = align(self._layout.end, BLOCK) // BLOCK
        trailer_blocks = align(len(trailer), BLOCK) // BLOCK
        self._blocks = self._first_data_block + self._layout.blocks + trailer_blocks
        if self._blocks + sum(self._device_blocks) > MAX_BLOCKS:
            raise LimitError("the image is larger than 16 TiB, the most that EROFS can address")
        self.size = self._blocks * BLOCK

    def write(self, out: BinaryIO) -> None:
        """Write the image to `out`, forwards only.

        Raises:
            ImageError: the chunks of a file contradict its size, or lie outside their device.
        """
        table_end, inodes = self._table_end, self._layout.offset(0)
        pieces = chain(
            [self._boot.ljust(BOOT_SIZE, b"\0"), self._superblock().pack()],
            self._device_table(),
            [self._xattrs.shared.ljust(inodes - table_end, b"\0")],
            self._inodes(),
            self._data_blocks(),
            [self._trailer, bytes(-len(self._trailer) % BLOCK)],
        )
        _write(out, pieces)

    def _superblock(self) -> Superblock:
        layout = self._layout
        return Superblock(
            epoch=layout.epoch[0],
            epoch_nsec=layout.epoch[1],
            inodes=self.inodes,
            blocks=self._blocks,
            root_nid=layout.nids[0],
            meta_blkaddr=layout.meta_blkaddr,
            xattr_blkaddr=self._table_end // BLOCK if self._xattrs.shared else 0,
            chunked=layout.chunked,
            devices=len(self._devices),
            uuid=self._uuid,
            volume_name=self._volume_name,
        )

    def _device_table(self) -> Iterator[bytes]:
        mapped = self._blocks
        for device in self._devices:
            yield DEVICE_SLOT.pack(device.tag.hex().encode(), device.blocks, mapped, b"")
            mapped += device.blocks

    def _inodes(self) -> Iterator[bytes]:
        """Yield each inode with its tail, up to the next inode."""
        end = self._layout.offset(0)
        for index in range(self.inodes):
            start, end = end, self._layout.offset(index + 1)
            yield self._inode(index).ljust(end - start, b"\0")
        yield bytes(-end % BLOCK)

    def _inode(self, index: int) -> bytes:
        node = self._order.nodes[index]
        size, i_u, tail = self._content(index)
        xattrs = self._xattrs.body(node.xattrs) if node.xattrs else b""
        head = self._head(index, size, i_u, body_count(len(xattrs))) + xattrs
        if node.chunks:
            head = head.ljust(align(len(head), CHUNK_INDEX_SIZE), b"\0")
        return head + tail

    def _content(self, index: int) -> tuple[int, int, bytes]:
        """Return ``i_size``, ``i_u`` and the bytes after the inode and its xattrs."""
        node = self._order.nodes[index]
        if node.chunks:
            indexes = encode_chunks(node.size, node.chunk_size, node.chunks, self._device_blocks)
            return node.size, chunk_format(node.chunk_size), indexes
        if node.is_device:
            return 0, encode_device_number(*node.rdev), b""
        tail = b""
        if self._layout.formats[index] & LAYOUT_MASK == FLAT_INLINE:
            *_, tail = self._data(index)
        first, blocks = self._layout.data.get(index, (0, 0))
        return flat_size(node), self._first_data_block + first if blocks else 0, tail

    def _head(self, index: int, size: int, i_u: int, xattr_count: int) -> bytes:
        node, form = self._order.nodes[index], self._layout.formats[index]
        nlink = self._order.links[node]
        start = form, xattr_count, node.mode
        owner = i_u, 0, node.uid, node.gid
        if form & EXTENDED:
            time = node.mtime, node.mtime_nsec
            return INODE_EXTENDED.pack(*start, 0, size, *owner, *time, nlink, b"")
        return INODE_COMPACT.pack(*start, nlink, size, 0, *owner, 0)

    def _data(self, index: int) -> Iterator[bytes]:
        """Yield the content of a directory or symbolic link, block by block, unpadded."""
        node = self._order.nodes[index]
        if node.children is None:
            yield node.target
            return
        names = with_dots(node.children)
        indexes = self._order.child_indexes(index, names)
        nids = [self._layout.nids[child] for child in indexes]
        types = [FILE_TYPES[self._order.nodes[child].mode >> 12] for child in indexes]
        for first, end, _ in block_bounds(names):
            yield encode_block(names[first:end], nids[first:end], types[first:end])

    def _data_blocks(self) -> Iterator[bytes]:
        """Yield the directory and symlink blocks that do not lie beside their inodes."""
        for index, (_, count) in self._layout.data.items():
            for block in islice(self._data(index), count):
                yield block.ljust(BLOCK, b"\0")

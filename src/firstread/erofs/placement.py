# SPDX-License-Identifier: Apache-2.0
"""First pass of the EROFS writer: the position and form of every inode.

Owns the order of inodes, and the choice of nid, inode form and data layout; writes no byte.
Invariant: the tree alone decides. The root comes first, then the children of each directory side by
side in the order of their names, directory after directory depth first. So reading a directory and
the inodes that it lists touches one place.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from firstread.erofs.directory import check_names, directory_size
from firstread.erofs.format import (
    BLOCK,
    BLOCK_BITS,
    CHUNK_BASED,
    CHUNK_INDEX_SIZE,
    EXTENDED,
    FILE_TYPES,
    FLAT_INLINE,
    INODE_COMPACT,
    INODE_EXTENDED,
    MAX_TARGET,
    NID_BITS,
    SLOT,
    align,
)
from firstread.erofs.tree import LinkCounts, Node
from firstread.erofs.xattrs import XattrTable
from firstread.errors import ImageError

_NSEC = 1_000_000_000


@dataclass(slots=True)
class Order:
    """The inodes of an image in order; indexes count `nodes`."""

    links: LinkCounts
    nodes: list[Node]
    first_child: dict[int, int] = field(default_factory=dict)  # index of a directory -> of a child
    parent: dict[int, int] = field(default_factory=dict)  # index of a directory -> of its parent
    linked: dict[int, int] = field(default_factory=dict)  # id() of a node with many names -> index

    @classmethod
    def of(cls, root: Node) -> Order:
        """Return the inodes of the tree at `root`.

        Raises:
            ImageError: the tree has an invalid name.
        """
        order = cls(LinkCounts.of(root), [root], parent={0: 0})
        unlisted = [0]
        while unlisted:
            index = unlisted.pop()
            first = order.first_child[index] = len(order.nodes)
            order._list(order.nodes[index])
            subdirectories = [
                number
                for number, node in enumerate(order.nodes[first:], first)
                if node.children is not None
            ]
            order.parent.update(dict.fromkeys(subdirectories, index))
            unlisted += reversed(subdirectories)
        return order

    def _list(self, directory: Node) -> None:
        """Append the children of `directory` that no earlier directory names."""
        children = directory.children or {}
        check_names(children)
        many = self.links.counts
        for name in sorted(children):
            node = children[name]
            if many and id(node) in many:
                if id(node) in self.linked:
                    continue
                self.linked[id(node)] = len(self.nodes)
            self.nodes.append(node)

    def child_indexes(self, directory: int, names: list[bytes]) -> list[int]:
        """Return the index of each of the sorted `names`, which can include ``.`` and ``..``."""
        children = self.nodes[directory].children or {}
        dots = {b".": directory, b"..": self.parent[directory]}
        following = self.first_child[directory]
        indexes = []
        for name in names:
            node = children.get(name)
            index = dots[name] if node is None else self.linked.get(id(node), following)
            following += index == following
            indexes.append(index)
        return indexes


@dataclass(slots=True)
class Layout:
    """The positions of the inodes of an `Order`.

    Args:
        epoch: mtime (seconds, nanoseconds) of the compact inodes.
        meta_blkaddr: block where nids begin to count.
        nids: of each inode.
        formats: ``i_format`` of each inode.
        end: offset after the last inode.
        blocks: directory and symlink blocks beside the inodes.
        data: index of an inode with such blocks -> (the first, their number).
        chunked: some file is chunk-based.
    """

    epoch: tuple[int, int]
    meta_blkaddr: int
    nids: array[int]
    formats: bytearray
    end: int
    blocks: int = 0
    data: dict[int, tuple[int, int]] = field(default_factory=dict)
    chunked: bool = False

    @classmethod
    def of(cls, order: Order, xattrs: XattrTable, start: int) -> Layout:
        """Place the inodes from offset `start` on.

        Raises:
            ImageError: a node cannot be an inode.
        """
        # nid 0 stays free: programs take inode number 0 for a deleted entry.
        base, rest = divmod(start, BLOCK)
        layout = cls(
            _choose_epoch(order), base, array("Q"), bytearray(), base * BLOCK + max(rest, SLOT)
        )
        for node in order.nodes:
            layout._place(node, order.links, xattrs)
        return layout

    def offset(self, index: int) -> int:
        """Return the offset of inode `index`; after the last, the end of all."""
        if index == len(self.nids):
            return self.end
        return (self.meta_blkaddr << BLOCK_BITS) + (self.nids[index] << NID_BITS)

    def _place(self, node: Node, links: LinkCounts, xattrs: XattrTable) -> None:
        compact = (node.mtime, node.mtime_nsec) == self.epoch and _fits_compact(node, links)
        form = 0 if compact else EXTENDED
        size = INODE_COMPACT.size if compact else INODE_EXTENDED.size
        if node.xattrs:
            size += len(xattrs.body(node.xattrs))
        offset = align(self.end, SLOT)
        if node.chunks:
            self.chunked = True
            form |= CHUNK_BASED
            size = align(size, CHUNK_INDEX_SIZE) + CHUNK_INDEX_SIZE * len(node.chunks)
        elif data_size := flat_size(node):
            blocks, tail = divmod(data_size, BLOCK)
            if tail and size + tail <= BLOCK:
                form |= FLAT_INLINE
                size += tail
                # Only the tail must lie in one block, but Linux 5.16 follows a short symlink only
                # if inode, xattrs and target do; one rule holds for all.
                if offset % BLOCK + size > BLOCK:
                    offset = align(offset, BLOCK)
            else:
                blocks += bool(tail)
            if blocks:
                self.data[len(self.nids)] = self.blocks, blocks
                self.blocks += blocks
        self.nids.append((offset >> NID_BITS) - (self.meta_blkaddr << BLOCK_BITS - NID_BITS))
        self.formats.append(form)
        self.end = offset + size


def flat_size(node: Node) -> int:
    """Return ``i_size`` of an inode that is not chunk-based.

    Raises:
        ImageError: `node` cannot be an inode.
    """
    if node.children is not None:
        return directory_size(node.children)
    if node.is_symlink:
        if not 0 < len(node.target) <= MAX_TARGET or b"\0" in node.target:
            raise ImageError(f"a symbolic link cannot point to {node.target[:80]!r}")
        return len(node.target)
    if node.size or not FILE_TYPES[node.mode >> 12]:
        raise ImageError(f"a node of mode {node.mode:o} has {node.size} bytes and no chunks")
    return 0


def _fits_compact(node: Node, links: LinkCounts) -> bool:
    """Return whether `node`, apart from its time, fits in a compact inode."""
    return (
        node.uid <= 0xFFFF
        and node.gid <= 0xFFFF
        and node.size <= 0xFFFFFFFF
        and links[node] <= 0xFFFF
    )


def _choose_epoch(order: Order) -> tuple[int, int]:
    """Return the mtime that makes most inodes compact; the earliest of several."""
    counts = Counter(
        node.mtime * _NSEC + node.mtime_nsec
        for node in order.nodes
        if _fits_compact(node, order.links)
    )
    if not counts:
        return 0, 0
    most = max(counts.values())
    return divmod(min(mtime for mtime, count in counts.items() if count == most), _NSEC)

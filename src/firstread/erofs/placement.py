# SPDX-License-Identifier: Apache-2.0
"""First pass of the EROFS writer: the position and form of every inode.

Owns the order of inodes, and the choice of nid, inode form and data layout; writes no byte.
Invariant: the tree alone decides. The directories come first, then everything else, side by side
for each directory, in the order of names; directories go depth first. So reading a directory and
the inodes that it lists touches two places. Inodes that resemble each other lie together, and a
directory follows the one whose names it repeats: both compress well (docs/adr/0124).
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
    """The inodes of an image in order; indexes count `nodes`.

    Args:
        links: link counts of the tree.
        nodes: directories, then everything else.
        parents: index of the parent of each directory.
        first_others: index of the first child of each directory that is none.
        named: ``id()`` of a directory, or of a node with many names -> its index.
    """

    links: LinkCounts
    nodes: list[Node]
    parents: list[int]
    first_others: list[int]
    named: dict[int, int]

    @classmethod
    def of(cls, root: Node) -> Order:
        """Return the inodes of the tree at `root`.

        Raises:
            ImageError: the tree has an invalid name.
        """
        links = LinkCounts.of(root)
        order, others, linked = cls(links, [], [], [], {}), list[Node](), dict[int, int]()
        unlisted = [(root, 0)]
        while unlisted:
            directory, parent = unlisted.pop()
            index = order.named[id(directory)] = len(order.nodes)
            order.nodes.append(directory)
            order.parents.append(parent)
            order.first_others.append(len(others))
            children = directory.children or {}
            check_names(children)
            subdirectories = []
            for name in sorted(children):
                node = children[name]
                if node.children is not None:
                    subdirectories.append((node, index))
                elif id(node) not in linked:  # else an earlier directory names it, too
                    if id(node) in links.counts:
                        linked[id(node)] = len(others)
                    others.append(node)
            unlisted += reversed(subdirectories)
        count = len(order.nodes)
        order.nodes += others
        order.first_others = [count + other for other in order.first_others]
        order.named.update((key, count + other) for key, other in linked.items())
        return order

    def child_indexes(self, directory: int, names: list[bytes]) -> list[int]:
        """Return the index of each of the sorted `names`, which can include ``.`` and ``..``."""
        children = self.nodes[directory].children or {}
        dots = {b".": directory, b"..": self.parents[directory]}
        following = self.first_others[directory]
        indexes = []
        for name in names:
            node = children.get(name)
            index = dots[name] if node is None else self.named.get(id(node), following)
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

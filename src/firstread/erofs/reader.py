# SPDX-License-Identifier: Apache-2.0
"""Reads and checks the whole tree of an EROFS image.

Owns the walk over an image, inode by inode: they form one tree, and everything in it has the form
that `writer` gives it. `firstread.erofs.validation` is the check before a mount. Invariant: any
bytes give a result or an ImageError, in time and memory proportional to their length: overlapping
inodes are refused, so no byte is read twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from firstread.erofs.chunks import chunk_size_of
from firstread.erofs.directory import DOTS, Dirent
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.format import (
    CHUNK_BASED,
    FILE_TYPES,
    FT_DIR,
    NID_BITS,
    SLOT,
    decode_device_number,
)
from firstread.erofs.inode import Inode
from firstread.erofs.tree import NO_XATTRS, Node
from firstread.errors import ImageError


def scan(image: ErofsImage) -> Iterator[tuple[Inode, list[Dirent]]]:
    """Yield every inode once, directories before their contents and with their entries.

    Raises:
        ImageError: the inodes form no tree: loops, wrong ``.`` or ``..``, wrong link or inode
            counts, wrong types in entries, overlapping inodes. Some faults show only at the end.
    """
    return _Scan(image).run()


class _Scan:
    """One scan."""

    def __init__(self, image: ErofsImage) -> None:
        self.image = image
        self.seen = bytearray(image.size >> NID_BITS)  # by nid
        self.count = 0
        self.bytes_left = image.size  # not used by any inode yet
        self.names_left: dict[int, int] = {}  # nid of a hard link -> names still to come

    def run(self) -> Iterator[tuple[Inode, list[Dirent]]]:
        root = self._first_name(self.image.root_nid)
        if not root.is_dir:
            raise ImageError("the root of the metadata is not a directory")
        unlisted = [(root, root.nid)]
        while unlisted:
            directory, parent = unlisted.pop()
            entries = self.image.readdir(directory)
            yield directory, entries
            subdirectories = []
            for inode in self._list(directory, parent, entries):
                if inode.is_dir:
                    subdirectories.append((inode, directory.nid))
                else:
                    yield inode, []
            if directory.nlink != 2 + len(subdirectories):
                raise ImageError(f"directory {directory.nid} states {directory.nlink} links")
            unlisted += reversed(subdirectories)
        if any(self.names_left.values()) or self.count != self.image.superblock.inodes:
            raise ImageError("the metadata has fewer names or inodes than it states")

    def _list(self, directory: Inode, parent: int, entries: list[Dirent]) -> Iterator[Inode]:
        """Yield the inodes that `entries` name first."""
        dots = dict(zip(DOTS, (directory.nid, parent), strict=True))
        for name, nid, file_type in entries:
            if name not in dots:
                yield from self._named(nid, file_type)
            elif nid != dots.pop(name) or file_type != FT_DIR:
                raise ImageError(f"directory {directory.nid} has a wrong {name.decode()!r}")
        if dots:
            raise ImageError(f"directory {directory.nid} lacks '.' or '..'")

    def _named(self, nid: int, file_type: int) -> Iterator[Inode]:
        """Check an entry of a directory; yield its inode if that is named first."""
        first = nid >= len(self.seen) or not self.seen[nid]
        inode = self._first_name(nid) if first else self._further_name(nid)
        if FILE_TYPES[inode.mode >> 12] != file_type:
            raise ImageError(f"an entry of inode {nid} has the wrong type")
        if first:
            yield inode

    def _first_name(self, nid: int) -> Inode:
        inode = self.image.inode(nid)
        self.seen[nid] = 1
        self.count += 1
        self.bytes_left -= SLOT + inode.xattr_size + inode.stored
        if self.bytes_left < 0:
            raise ImageError("inodes of the metadata overlap")
        if not inode.is_dir and inode.nlink != 1:
            if not inode.nlink:
                raise ImageError(f"inode {nid} has a name but states no links")
            self.names_left[nid] = inode.nlink - 1
        return inode

    def _further_name(self, nid: int) -> Inode:
        left = self.names_left.get(nid, 0)
        if not left:  # always so for a directory, and thus for a loop
            raise ImageError(f"inode {nid} has more names than it states")
        self.names_left[nid] = left - 1
        return self.image.inode(nid)


def read_tree(image: ErofsImage) -> Node:
    """Return the tree in `image`; the inverse of `firstread.erofs.writer.write_erofs`.

    Names of one inode share one `Node`.

    Raises:
        ImageError: as `firstread.erofs.validation.validate`.
    """
    nodes: dict[int, Node] = {}
    listings: list[tuple[dict[bytes, Node], list[Dirent]]] = []
    for inode, entries in scan(image):
        node = nodes[inode.nid] = _node(image, inode)
        if node.children is not None:
            listings.append((node.children, entries))
    for children, entries in listings:
        children.update((name, nodes[nid]) for name, nid, _ in entries if name not in DOTS)
    return nodes[image.root_nid]


def _node(image: ErofsImage, inode: Inode) -> Node:
    """Return `inode` as a node, without its children."""
    node = Node(
        inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        mtime=inode.mtime,
        mtime_nsec=inode.mtime_nsec,
        xattrs=image.xattrs(inode) if inode.xattr_size else NO_XATTRS,
    )
    if inode.is_dir:
        node.children = {}
    elif node.is_symlink:
        node.target = image.readlink(inode)
    elif node.is_device:
        node.rdev = decode_device_number(inode.i_u)
    elif inode.layout == CHUNK_BASED:
        node.size = inode.size
        node.chunk_size = chunk_size_of(inode.i_u)
        node.chunks = image.chunks(inode)
    return node

# SPDX-License-Identifier: Apache-2.0
"""A FUSE file system's names and attributes, answered from EROFS metadata. Pure.

Owns the translation between inodes of the image and what FUSE says of them. Does not read file
data. Invariant: an answer depends on the metadata alone, never on a request before it.

What it shows is what EROFS shows on the same metadata: inode numbers, link counts, times, extended
attributes, the order of directories.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol

from firstread.device import fuseprotocol as fuse
from firstread.device.fuseprotocol import Request
from firstread.erofs.directory import DOTS, Dirent
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import Extent, extents, next_data
from firstread.erofs.format import BLOCK, FILE_TYPES
from firstread.erofs.inode import Inode
from firstread.errors import ImageError

_FIRST_NODE = 2  # node id of nid 0; 0 is none, and 1 is the root
_KEPT_BLOCKS = 64  # of directories that were looked at last, in memory; about 1 MB
_PLACES = 4096  # for entries of one block, in what READDIR names a place by
_KEPT_INODES = 1024
_KINDS = {file_type: kind for kind, file_type in enumerate(FILE_TYPES) if file_type}
_TRUSTED = b"trusted."
_FORMAT = stat.S_IFMT(0o177777)  # the bits of a mode that say what a file is
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)


class Tree(Protocol):
    """What a FUSE mount shows. For the one thread that reads its requests.

    Attributes:
        has_many: the kernel may ask for many parts of a file at a time, whoever waits for them.
    """

    has_many: bool

    def answer(self, request: Request, body: memoryview) -> bytes:
        """Return the answer to a request, but READ.

        Raises:
            OSError: with the errno to answer; ENOSYS for what is not offered.
            ImageError: the metadata is damaged.
        """

    def extents(self, node: int, offset: int, length: int) -> list[Extent]:
        """Return where a range of a file lies, clipped to the file.

        Raises:
            ImageError: there is no such file, or the metadata is damaged.
        """


class FuseTree:
    """The tree of one image: see `Tree`.

    Args:
        image: its metadata.
        has_xattrs: any file of it has extended attributes; if not, the kernel stops asking for
            them. An overlay would ask for one of each file that it looks up.
    """

    has_many = False

    def __init__(self, image: ErofsImage, *, has_xattrs: bool = True) -> None:
        self.image, self._has_xattrs = image, has_xattrs
        self._blocks: dict[tuple[int, int], list[Dirent]] = {}  # the one used last at the end
        self._inodes: dict[int, Inode] = {}

    def answer(self, request: Request, body: memoryview) -> bytes:
        """See `Tree`."""
        answer = _ANSWERS.get(request.opcode)
        if answer is None:
            raise OSError(errno.ENOSYS, "not offered")
        return answer(self, request, body)

    def extents(self, node: int, offset: int, length: int) -> list[Extent]:
        """See `Tree`."""
        return extents(self.image, self.inode(node), offset, length)

    def inode(self, node: int) -> Inode:
        """Return the inode of a node id.

        Raises:
            ImageError: there is none.
        """
        inode = self._inodes.get(node)
        if inode is None:
            if len(self._inodes) >= _KEPT_INODES:
                self._inodes.clear()
            inode = self._inodes[node] = self.image.inode(self._nid(node))
        return inode

    def _attributes(self, nid: int) -> bytes:
        mode, links, size, i_u, uid, gid, mtime, nsec = self.image.attributes(nid)
        rdev = i_u if mode & _FORMAT in _DEVICES else 0
        return fuse.attributes(nid, size, mode, links, uid, gid, rdev, mtime, nsec)

    def _nid(self, node: int) -> int:
        nid = self.image.root_nid if node == fuse.ROOT_NODE else node - _FIRST_NODE
        if nid < 0:
            raise ImageError(f"there is no node {node}")
        return nid

    def _node(self, nid: int) -> int:
        return fuse.ROOT_NODE if nid == self.image.root_nid else nid + _FIRST_NODE

    def _directory(self, node: int) -> Inode:
        inode = self.inode(node)
        if not inode.is_dir:
            raise OSError(errno.ENOTDIR, "not a directory")
        return inode

    def _block(self, node: int, inode: Inode, number: int) -> list[Dirent]:
        """Return the entries of a block of a directory; none behind the last one."""
        key = node, number
        found = self._blocks.pop(key, None)
        if found is None:
            found = self.image.readdir_block(inode, number)
        self._blocks[key] = found
        if len(self._blocks) > _KEPT_BLOCKS:
            del self._blocks[next(iter(self._blocks))]
        return found

    # -- operations ----------------------------------------------------------------------------

    def _lookup(self, request: Request, body: memoryview) -> bytes:
        name, inode = bytes(body).rstrip(b"\0"), self._directory(request.node)
        entries = self._block(request.node, inode, self.image.find_block(inode, name))
        place = bisect_left(entries, (name,))
        if place == len(entries) or entries[place][0] != name:
            return fuse.MISSING
        nid = entries[place][1]
        return fuse.entry(self._node(nid), self._attributes(nid))

    def _getattr(self, request: Request, _: memoryview) -> bytes:
        return fuse.attributes_of(self._attributes(self._nid(request.node)))

    def _readlink(self, request: Request, _: memoryview) -> bytes:
        return self.image.readlink(self.inode(request.node))

    def _readdir(self, request: Request, body: memoryview) -> bytes:
        return self._list(request.node, body, lambda _name, _nid: b"")

    def _readdirplus(self, request: Request, body: memoryview) -> bytes:
        def plus(name: bytes, nid: int) -> bytes:
            if name in DOTS:
                return fuse.NO_ENTRY
            return fuse.entry(self._node(nid), self._attributes(nid))

        return self._list(request.node, body, plus)

    def _list(self, node: int, body: memoryview, before: Callable[[bytes, int], bytes]) -> bytes:
        (first, room), inode, parts = fuse.parse_read(body), self._directory(node), list[bytes]()
        number, place = divmod(first, _PLACES)
        while entries := self._block(node, inode, number):
            for name, nid, file_type in entries[place:] if place else entries:
                place += 1
                after = number * _PLACES + place
                record = before(name, nid) + fuse.dirent(nid, after, _KINDS[file_type], name)
                room -= len(record)
                if room < 0:
                    return b"".join(parts)
                parts.append(record)
            number, place = number + 1, 0
        return b"".join(parts)

    def _getxattr(self, request: Request, body: memoryview) -> bytes:
        if not self._has_xattrs:
            raise OSError(errno.ENOSYS, "no attributes")
        size, name = fuse.parse_size(body)
        value = self.image.xattrs(self.inode(request.node)).get(name)
        if value is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return _fitting(value, size)

    def _listxattr(self, request: Request, body: memoryview) -> bytes:
        size, _ = fuse.parse_size(body)
        names = self.image.xattrs(self.inode(request.node))
        shown = (n for n in names if request.uid == 0 or not n.startswith(_TRUSTED))
        return _fitting(b"".join(name + b"\0" for name in shown), size)

    def _statfs(self, _: Request, __: memoryview) -> bytes:
        superblock = self.image.superblock
        blocks = superblock.blocks + sum(device.blocks for device in self.image.devices)
        return fuse.statfs(blocks, superblock.inodes, BLOCK)

    def _lseek(self, request: Request, body: memoryview) -> bytes:
        offset, whence = fuse.parse_lseek(body)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "no such way to seek")
        hole = whence == os.SEEK_HOLE
        found = next_data(self.image, self.inode(request.node), offset, hole=hole)
        if found is None:
            raise OSError(errno.ENXIO, "nothing behind the end")
        return fuse.lseek(found)


_ANSWERS: dict[int, Callable[[FuseTree, Request, memoryview], bytes]] = {
    fuse.LOOKUP: FuseTree._lookup,
    fuse.GETATTR: FuseTree._getattr,
    fuse.READLINK: FuseTree._readlink,
    fuse.READDIR: FuseTree._readdir,
    fuse.READDIRPLUS: FuseTree._readdirplus,
    fuse.GETXATTR: FuseTree._getxattr,
    fuse.LISTXATTR: FuseTree._listxattr,
    fuse.STATFS: FuseTree._statfs,
    fuse.LSEEK: FuseTree._lseek,
}


def _fitting(value: bytes, size: int) -> bytes:
    """Return an extended attribute as it was asked for: it, or how long it is."""
    if not size:
        return fuse.room(len(value))
    if len(value) > size:
        raise OSError(errno.ERANGE, "no room for the attribute")
    return value

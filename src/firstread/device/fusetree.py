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
from collections.abc import Callable
from typing import Protocol

from firstread.device import fuseprotocol as fuse
from firstread.device.fuseprotocol import Attributes, Request
from firstread.erofs.directory import Dirent
from firstread.erofs.erofsimage import ErofsImage, Inode
from firstread.erofs.extents import Extent, extents, next_data
from firstread.erofs.format import BLOCK, FILE_TYPES, align
from firstread.errors import ImageError

_FIRST_NODE = 2  # node id of nid 0; 0 is none, and 1 is the root
_KEPT_ENTRIES = 65_536  # of directories that were looked at last, in memory
_KEPT_INODES = 4096
_KINDS = {file_type: kind for kind, file_type in enumerate(FILE_TYPES) if file_type}
_TRUSTED = b"trusted."
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)

Answer = Callable[[Request, memoryview], bytes]


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


class _Directory:
    """The entries of one directory."""

    def __init__(self, entries: list[Dirent]) -> None:
        self.entries = entries
        self._nids: dict[bytes, int] = {}

    def find(self, name: bytes) -> int | None:
        """Return the nid of a name; None if there is none."""
        if not self._nids:
            self._nids = {name: nid for name, nid, _ in self.entries}
        return self._nids.get(name)


class FuseTree:
    """The tree of one image: see `Tree`.

    Args:
        image: its metadata.
    """

    has_many = False

    def __init__(self, image: ErofsImage) -> None:
        self.image = image
        self._directories: dict[int, _Directory] = {}  # by node, the one used last at the end
        self._entries = 0  # of them
        self._inodes: dict[int, Inode] = {}
        self._answers: dict[int, Answer] = {
            fuse.LOOKUP: self._lookup,
            fuse.GETATTR: self._getattr,
            fuse.READLINK: self._readlink,
            fuse.READDIR: self._readdir,
            fuse.READDIRPLUS: self._readdirplus,
            fuse.GETXATTR: self._getxattr,
            fuse.LISTXATTR: self._listxattr,
            fuse.STATFS: self._statfs,
            fuse.LSEEK: self._lseek,
        }

    def answer(self, request: Request, body: memoryview) -> bytes:
        """See `Tree`."""
        answer = self._answers.get(request.opcode)
        if answer is None:
            raise OSError(errno.ENOSYS, "not offered")
        return answer(request, body)

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
            nid = self.image.root_nid if node == fuse.ROOT_NODE else node - _FIRST_NODE
            if nid < 0:
                raise ImageError(f"there is no node {node}")
            inode = self._inodes[node] = self.image.inode(nid)
        return inode

    def _node(self, nid: int) -> int:
        return fuse.ROOT_NODE if nid == self.image.root_nid else nid + _FIRST_NODE

    def _directory(self, node: int) -> _Directory:
        found = self._directories.pop(node, None)
        if found is None:
            inode = self.inode(node)
            if not inode.is_dir:
                raise OSError(errno.ENOTDIR, "not a directory")
            found = _Directory(self.image.readdir(inode))
            self._entries += len(found.entries)
        self._directories[node] = found
        while self._entries > _KEPT_ENTRIES and len(self._directories) > 1:
            oldest = self._directories.pop(next(iter(self._directories)))
            self._entries -= len(oldest.entries)
        return found

    # -- operations ----------------------------------------------------------------------------

    def _lookup(self, request: Request, body: memoryview) -> bytes:
        nid = self._directory(request.node).find(bytes(body).rstrip(b"\0"))
        if nid is None:
            return fuse.MISSING
        return fuse.entry(self._node(nid), _attributes(self.image.inode(nid)))

    def _getattr(self, request: Request, _: memoryview) -> bytes:
        return fuse.attributes_of(_attributes(self.inode(request.node)))

    def _readlink(self, request: Request, _: memoryview) -> bytes:
        return self.image.readlink(self.inode(request.node))

    def _readdir(self, request: Request, body: memoryview) -> bytes:
        return self._list(request.node, body, lambda _: b"")

    def _readdirplus(self, request: Request, body: memoryview) -> bytes:
        def plus(entry: Dirent) -> bytes:
            name, nid, _ = entry
            if name in (b".", b".."):
                return fuse.NO_ENTRY
            return fuse.entry(self._node(nid), _attributes(self.image.inode(nid)))

        return self._list(request.node, body, plus)

    def _list(self, node: int, body: memoryview, before: Callable[[Dirent], bytes]) -> bytes:
        first, room = fuse.parse_read(body)
        entries, parts = self._directory(node).entries, []
        for place in range(first, len(entries)):
            name, nid, file_type = entry = entries[place]
            record = before(entry) + fuse.dirent(nid, place + 1, _KINDS[file_type], name)
            room -= len(record)
            if room < 0:
                break
            parts.append(record)
        return b"".join(parts)

    def _getxattr(self, request: Request, body: memoryview) -> bytes:
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


def _fitting(value: bytes, size: int) -> bytes:
    """Return an extended attribute as it was asked for: it, or how long it is."""
    if not size:
        return fuse.room(len(value))
    if len(value) > size:
        raise OSError(errno.ERANGE, "no room for the attribute")
    return value


def _attributes(inode: Inode) -> Attributes:
    time, nsec = inode.mtime, inode.mtime_nsec
    return Attributes(
        inode.nid,
        inode.size,
        align(inode.size, BLOCK) >> 9,
        time,
        time,
        time,
        nsec,
        nsec,
        nsec,
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.i_u if stat.S_IFMT(inode.mode) in _DEVICES else 0,
        BLOCK,
        0,
    )

# SPDX-License-Identifier: Apache-2.0
"""A FUSE file system with a file for each sector of an image, called by its device slot. Pure.

Owns the answers about these files. Does not read them. Invariant: each has its whole size.
"""

from __future__ import annotations

import errno
import stat

from firstread.device import fuseprotocol as fuse
from firstread.device.fuseprotocol import Request
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import Extent
from firstread.erofs.format import BLOCK_BITS
from firstread.errors import ImageError

_FIRST_NODE = 2
_LONGEST = 5  # digits of a slot


class SectorTree:
    """The files: see `firstread.device.fusetree.Tree`.

    Args:
        image: metadata of the image.
    """

    has_many = True

    def __init__(self, image: ErofsImage) -> None:
        self._sizes = [device.blocks << BLOCK_BITS for device in image.devices]

    def answer(self, request: Request, body: memoryview) -> bytes:
        """See `Tree`: there is LOOKUP and GETATTR."""
        if request.opcode == fuse.GETATTR:
            return fuse.attributes_of(self._attributes(request.node))
        if request.opcode != fuse.LOOKUP or request.node != fuse.ROOT_NODE:
            raise OSError(errno.ENOSYS, "not offered")
        name = bytes(body).rstrip(b"\0")
        node = int(name) + _FIRST_NODE if name.isdigit() and len(name) <= _LONGEST else 0
        if not _FIRST_NODE <= node < _FIRST_NODE + len(self._sizes):
            return fuse.MISSING
        return fuse.entry(node, self._attributes(node))

    def extents(self, node: int, offset: int, length: int) -> list[Extent]:
        """See `Tree`."""
        size = self._size(node)
        return [Extent(node - _FIRST_NODE, offset, min(length, size - offset))] * (offset < size)

    def _size(self, node: int) -> int:
        if not _FIRST_NODE <= node < _FIRST_NODE + len(self._sizes):
            raise ImageError(f"there is no node {node}")
        return self._sizes[node - _FIRST_NODE]

    def _attributes(self, node: int) -> bytes:
        if node == fuse.ROOT_NODE:
            return fuse.attributes(node, 0, stat.S_IFDIR | 0o500, 2)
        return fuse.attributes(node, self._size(node), stat.S_IFREG | 0o400)

# SPDX-License-Identifier: Apache-2.0
"""A FUSE file system that is one file: an image in its flat form. Pure.

Owns the answers about that file. Does not read sectors. Invariant: it has its whole size, whatever
is absent, because nobody looks at it again.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from functools import cached_property

from firstread.device import fuseprotocol as fuse
from firstread.device.fuseprotocol import Request
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import Extent
from firstread.erofs.flatimage import FlatImage
from firstread.erofs.indexruns import IndexRuns
from firstread.errors import ImageError

FAR_KIB, NEAR_KIB = 1024, 128
"""How far the kernel reads ahead in the file: if all is present when it is opened, and else."""
GAP, APART = 2 * FAR_KIB << 10, 2 * NEAR_KIB << 10
"""Bytes of zeros behind the metadata, and behind a sector.

The kernel begins the next read-ahead inside the one before (mm/readahead.c), so it goes twice as
far as one. With these, no name waits for data, and reading a sector to its end asks for no other.
"""
_MODE = stat.S_IFREG | 0o400


class FlatTree:
    """The file, which is the root of its mount: see `firstread.device.fusetree.Tree`.

    Args:
        image: its metadata, checked; looked at when the kernel first asks, as it may never do
            after another process has served it.
        find_runs: returns the runs, see `FlatImage`.
    """

    has_many = True

    def __init__(
        self, image: ErofsImage, find_runs: Callable[[], IndexRuns | None] = lambda: None
    ) -> None:
        self._image, self._find_runs = image, find_runs

    @cached_property
    def _flat(self) -> FlatImage:
        return FlatImage(self._image, GAP, APART, self._find_runs())

    @property
    def size(self) -> int:
        """Return the size of the file, in bytes."""
        return self._flat.size

    def answer(self, request: Request, body: memoryview) -> bytes:
        """See `Tree`: there is nothing but GETATTR."""
        del body
        if request.opcode != fuse.GETATTR or request.node != fuse.ROOT_NODE:
            raise OSError(errno.ENOSYS, "not offered")
        return fuse.attributes_of(fuse.attributes(fuse.ROOT_NODE, self.size, _MODE))

    def extents(self, node: int, offset: int, length: int) -> list[Extent]:
        """See `Tree`."""
        if node != fuse.ROOT_NODE:
            raise ImageError(f"there is no node {node}")
        return self._flat.extents(offset, length)

    def metadata(self, offset: int, length: int) -> bytearray:
        """Return bytes of the metadata: see `FlatImage.metadata`."""
        return self._flat.metadata(offset, length)

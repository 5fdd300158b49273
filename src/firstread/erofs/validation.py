# SPDX-License-Identifier: Apache-2.0
"""The check between an image from the network and the kernel that mounts it.

Owns the question whether an image has the form that `firstread.erofs.writer` gives it. All its
inodes together answer that quickly; one after the other they say what is wrong.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.format import CHUNK_BASED, CHUNK_INDEX_SIZE
from firstread.erofs.indexruns import IndexRuns, pack_run
from firstread.erofs.reader import scan

FEW = 1_000  # inodes, which take one after the other as long as the columns of all: 4 ms


class Checked(NamedTuple):
    """What the check of a tree finds out on its way.

    Args:
        has_xattrs: any inode has extended attributes.
        runs: of the chunk indexes.
    """

    has_xattrs: bool
    runs: IndexRuns


def validate(image: ErofsImage) -> Checked:
    """Check the whole tree of `image`, before a mount.

    Raises:
        ImageError: a part of it does not have the form that firstread writes.
    """
    if image.superblock.inodes > FEW:
        from firstread.erofs.columns import vouch  # noqa: PLC0415 - see `load`

        found = vouch(image)
        if found is not None:
            return Checked(*found)
    return walk(image)


def load() -> None:
    """Load what `validate` needs and few processes have: 0.07 s, 15 MB."""
    import firstread.erofs.columns  # noqa: F401, PLC0415


def walk(image: ErofsImage) -> Checked:
    """`validate`, one inode after the other: five times as long, and says what is wrong.

    Raises:
        ImageError: as `validate`.
    """
    has_xattrs, runs = False, list[int]()
    for inode, _ in scan(image):
        if inode.xattr_size:
            image.xattrs(inode)
            has_xattrs = True
        if inode.layout == CHUNK_BASED:
            image.chunks(inode)
            runs.append(pack_run(inode.indexes_offset, inode.stored // CHUNK_INDEX_SIZE))
        elif stat.S_ISLNK(inode.mode):
            image.readlink(inode)
    return Checked(has_xattrs, IndexRuns(sorted(runs)))

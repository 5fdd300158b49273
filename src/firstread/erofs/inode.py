# SPDX-License-Identifier: Apache-2.0
"""One inode of an EROFS image, as stored, and which shapes it can have. Pure.

Source: Linux ``fs/erofs/erofs_fs.h``.
"""

from __future__ import annotations

import functools
import stat
from typing import NamedTuple

from firstread.erofs.format import (
    CHUNK_BASED,
    CHUNK_INDEX_SIZE,
    EXTENDED,
    FLAT_INLINE,
    FLAT_PLAIN,
    LAYOUT_MASK,
    align,
)
from firstread.erofs.xattrs import body_size

_LAYOUTS = {
    stat.S_IFREG: (CHUNK_BASED, FLAT_PLAIN),
    stat.S_IFDIR: (FLAT_INLINE, FLAT_PLAIN),
    stat.S_IFLNK: (FLAT_INLINE, FLAT_PLAIN),
    stat.S_IFCHR: (FLAT_PLAIN,),
    stat.S_IFBLK: (FLAT_PLAIN,),
    stat.S_IFIFO: (FLAT_PLAIN,),
    stat.S_IFSOCK: (FLAT_PLAIN,),
}
_SIZED = (stat.S_IFDIR, stat.S_IFLNK)


class Inode(NamedTuple):
    """One inode, as stored."""

    nid: int
    form: int  # i_format
    mode: int
    nlink: int
    size: int  # bytes
    i_u: int
    uid: int
    gid: int
    mtime: int  # seconds
    mtime_nsec: int
    xattr_offset: int  # in the image
    xattr_size: int
    stored: int  # bytes of the image that hold the data, or the chunk indexes

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def layout(self) -> int:
        return self.form & LAYOUT_MASK

    @property
    def tail_offset(self) -> int:
        return self.xattr_offset + self.xattr_size

    @property
    def indexes_offset(self) -> int:
        """Where the chunk indexes of a file begin in the image."""
        return align(self.tail_offset, CHUNK_INDEX_SIZE)


@functools.lru_cache(maxsize=1024)
def shape_of(form: int, xattr_count: int, mode: int) -> tuple[int, bool, int] | None:
    """Return (data layout, whether it has data, bytes of xattrs) of an inode; None if invalid.

    The thousands of inodes of an image have a few dozens of shapes.
    """
    layout, kind = form & ~EXTENDED, stat.S_IFMT(mode)
    if layout not in _LAYOUTS.get(kind, ()):
        return None
    return layout, layout == CHUNK_BASED or kind in _SIZED, body_size(xattr_count)

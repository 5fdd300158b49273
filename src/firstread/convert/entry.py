# SPDX-License-Identifier: Apache-2.0
"""What one entry of a tar archive says, and how much an archive may say.

Data only; `header`, `pax` and `sparse` fill it in, `tar` hands it out.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from firstread.units import KiB, MiB

WHITEOUT = b".wh."
"""A name that begins so says that the rest of it is gone from the layers below (layer.md)."""


class TarKind(enum.Enum):
    """Type of an entry; the value is the type byte of POSIX."""

    REGULAR = b"0"
    HARDLINK = b"1"
    SYMLINK = b"2"
    CHAR = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


@dataclass(slots=True, eq=False)
class TarEntry:
    """One entry of an archive.

    Args:
        path: as stated: it may be absolute, or have ``..``, empty components or a slash at its end.
        mode: permission bits with set-user-id, set-group-id and sticky (``0o7777``).
        mtime: whole seconds since 1970, rounded down, may be negative.
        mtime_nsec: 0 … 999,999,999, counted forward from `mtime`.
        size: bytes of a regular file as its reader sees them; 0 for anything else.
        link: target of a symbolic or hard link, as stated.
        rdev: (major, minor) of a device node.
        xattrs: full name to value; an access control list that cannot be kept is there as text
            under its keyword, which is the name of no attribute.
        extents: (offset, length) of the stored data of a sparse file, in order and apart; None if
            the archive stores the whole file.
    """

    path: bytes
    kind: TarKind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_nsec: int = 0
    size: int = 0
    link: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    extents: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class TarLimits:
    """Most of everything that one archive may ask for.

    Args:
        entries: ten times the largest layers seen in the wild; an entry costs a reader some 400
            bytes for as long as it handles the layer.
        header_bytes: of one extended header and of one sparse map; what Go's archive/tar allows,
            so that every image that containerd unpacks passes.
        common_bytes: of all global headers together, keywords without meaning left out. Every
            later entry repeats them, so that this is what each block of an archive can cost.
        path_bytes, link_bytes: PATH_MAX without its NUL; longer ones cannot be unpacked or read.
        name_bytes: of one path component; NAME_MAX, and the most that EROFS stores. Of a whiteout
            this and `path_bytes` limit what it hides.
        xattr_name_bytes: XATTR_NAME_MAX of Linux.
        xattr_value_bytes: one less than XATTR_SIZE_MAX: the most that EROFS has a size for.
        xattrs_bytes: names and values of one file; an EROFS inode has room for 256 KiB.
        extents: of one sparse file: as many as a map of 1 MiB can state.
    """

    entries: int = 4_000_000
    header_bytes: int = 1 * MiB
    common_bytes: int = 4 * KiB
    path_bytes: int = 4095
    link_bytes: int = 4095
    name_bytes: int = 255
    xattr_name_bytes: int = 255
    xattr_value_bytes: int = 64 * KiB - 1
    xattrs_bytes: int = 192 * KiB
    extents: int = 256 * 1024

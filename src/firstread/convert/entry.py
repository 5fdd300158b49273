# SPDX-License-Identifier: Apache-2.0
"""An entry of a tar archive, and the limits of an archive.

Data only; `header`, `pax` and `sparse` fill entries, `tar` yields them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from firstread.units import KiB, MiB

WHITEOUT = b".wh."
"""Prefix of a whiteout, which removes the rest of its name from lower layers (layer.md)."""


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
        path: as stated: can be absolute, have ``..``, empty components or a slash at its end.
        mode: permission bits with set-user-id, set-group-id and sticky (``0o7777``).
        mtime: whole seconds since 1970, rounded down, can be negative.
        mtime_nsec: 0 … 999,999,999, counted forward from `mtime`.
        size: bytes of a regular file as its reader sees them; 0 for other types.
        link: target of a symbolic or hard link, as stated.
        rdev: (major, minor) of a device node.
        xattrs: full name to value; an access control list that cannot be kept is a text under its
            keyword, which is not a valid name.
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
    """The limits of one archive.

    Args:
        entries: ten times the largest layers seen in the wild; an entry costs a reader some 400
            bytes while it handles the layer.
        header_bytes: of one extended header and of one sparse map; the limit of Go's archive/tar,
            so that every image that containerd unpacks passes.
        common_bytes: of all global headers together, without meaningless keywords. They apply to
            every later entry, so each block of an archive can cost as much.
        path_bytes, link_bytes: PATH_MAX without its NUL; longer ones cannot be unpacked or read.
        name_bytes: of one path component; NAME_MAX, and the limit of EROFS. For a whiteout, this
            and `path_bytes` limit the name that it hides.
        xattr_name_bytes: XATTR_NAME_MAX of Linux.
        xattr_value_bytes: one less than XATTR_SIZE_MAX: the largest size that EROFS can state.
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

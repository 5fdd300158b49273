# SPDX-License-Identifier: Apache-2.0
"""The messages of /dev/fuse that a read-only file system needs. Pure.

Owns layouts, operation codes and flags; decides nothing. Invariant: a message is packed here, with
its length, and nowhere else. All numbers have the byte order of the machine.

Facts about FUSE (Linux 5.4, protocol 7.31, to 6.18, protocol 7.45):

* Later versions append fields. The server names the lower of both minor versions, so layouts stay
  those of `MINOR`.
* OPEN, OPENDIR and FLUSH answered with ENOSYS are not sent again. The kernel then acts as if each
  open had said that pages and directories stay cached.
* GETXATTR and LISTXATTR answered with ENOSYS are not sent again, either.
* An entry with node id 0 is a missing name that the kernel remembers.
* With FUSE_ASYNC_DIO a killed reader with O_DIRECT would wait, deaf, for the answers to all that it
  has asked for, and no INTERRUPT would tell. So it is asked for only where readers are no
  processes, but a loop device: without it a loop device does one read at a time.
* A short answer to READ makes the file shorter.
* A node id is not remembered here, so FORGET needs no answer and has no effect.

Source: include/uapi/linux/fuse.h; fs/fuse/{dev,dir,file,inode,readdir}.c.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

MAJOR, MINOR = 7, 45
OLDEST_MINOR = 31  # Linux 5.4
ROOT_NODE = 1
MOST_BYTES = 1 << 20  # of a READ
_MAX_WRITE = 4096
_MAX_BACKGROUND = 64  # requests in flight that nobody waits for, such as read-ahead
_MANY = 4096  # the same where others wait behind them: loop devices have 128 at most

LOOKUP, FORGET, GETATTR, READLINK, OPEN = 1, 2, 3, 5, 14
READ, STATFS, GETXATTR, LISTXATTR, FLUSH = 15, 17, 22, 23, 25
INIT, OPENDIR, READDIR, INTERRUPT, DESTROY = 26, 27, 28, 36, 38
BATCH_FORGET, READDIRPLUS, LSEEK = 42, 44, 46
UNANSWERED = frozenset({FORGET, BATCH_FORGET, INTERRUPT, DESTROY})
"""Operations that get no answer."""

_ASYNC_READ, _DO_READDIRPLUS, _ASYNC_DIO, _NO_OPEN_SUPPORT = 1 << 0, 1 << 13, 1 << 15, 1 << 17
_PARALLEL_DIROPS, _POSIX_ACL, _MAX_PAGES, _CACHE_SYMLINKS = 1 << 18, 1 << 20, 1 << 22, 1 << 23
_NO_OPENDIR_SUPPORT, _INIT_EXT, _HAS_RESEND = 1 << 24, 1 << 30, 1 << 39
_WANTED = (
    _ASYNC_READ
    | _DO_READDIRPLUS
    | _NO_OPEN_SUPPORT
    | _PARALLEL_DIROPS
    | _POSIX_ACL
    | _MAX_PAGES
    | _CACHE_SYMLINKS
    | _NO_OPENDIR_SUPPORT
    | _INIT_EXT
    | _HAS_RESEND
)
_NEEDED = _NO_OPEN_SUPPORT | _NO_OPENDIR_SUPPORT | _MAX_PAGES
_NOTIFY_RESEND = 7

FOREVER_S = 1 << 31  # that entries and attributes are valid: the image does not change

# struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
_IN = struct.Struct("=IIQQIIIHH")
BODY = _IN.size
# struct fuse_out_header: len, error, unique
_OUT = struct.Struct("=IiQ")
HEADER_BYTES = _OUT.size
# struct fuse_init_in: major, minor, max_readahead, flags; flags2 from 7.36 on
_INIT_IN = struct.Struct("=4I")
_FLAGS2 = struct.Struct("=I")
# struct fuse_init_out: major, minor, max_readahead, flags, max_background, congestion_threshold,
# max_write, time_gran, max_pages, map_alignment, flags2, max_stack_depth
_INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
# struct fuse_attr: ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode,
# nlink, uid, gid, rdev, blksize, flags
_ATTR = struct.Struct("=3Q3q10I")
# struct fuse_entry_out: nodeid, generation, entry_valid, attr_valid, entry_valid_nsec,
# attr_valid_nsec; the attributes
_ENTRY = struct.Struct("=4Q2I")
# struct fuse_attr_out: attr_valid, attr_valid_nsec, dummy; the attributes
_ATTR_OUT = struct.Struct("=Q2I")
# struct fuse_dirent: ino, off, namelen, type; the name, and zeros up to 8 bytes
_DIRENT = struct.Struct("=QQII")
# struct fuse_read_in, of READ, READDIR and READDIRPLUS: fh, offset, size, …
_READ_IN = struct.Struct("=QQI")
_LSEEK_IN = struct.Struct("=QQI")  # fh, offset, whence
_SIZE_IN = struct.Struct(
    "=II"
)  # struct fuse_getxattr_in: size, padding; of GETXATTR a name follows
_INTERRUPT_IN = struct.Struct("=Q")
# struct fuse_statfs_out: blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
_STATFS = struct.Struct("=5Q3I28x")

ENTRY_BYTES = _ENTRY.size + _ATTR.size
NO_ENTRY = bytes(ENTRY_BYTES)
MISSING = _ENTRY.pack(0, 0, FOREVER_S, 0, 0, 0) + bytes(_ATTR.size)
_PADDING = [bytes(-length & 7) for length in range(8)]  # of a name in a list


class Request(NamedTuple):
    """The header of a request."""

    opcode: int
    unique: int
    node: int
    uid: int
    pid: int


class Hello(NamedTuple):
    """What a kernel offers at the beginning of a connection."""

    minor: int
    read_ahead: int  # bytes
    flags: int

    def is_too_old(self) -> bool:
        """Return whether this kernel lacks what the device cannot do without."""
        return self.minor < OLDEST_MINOR or self.flags & _NEEDED != _NEEDED


# -- requests --------------------------------------------------------------------------------------


def parse_request(message: bytes | memoryview) -> Request:
    """Return the header of a request."""
    _, opcode, unique, node, uid, _, pid, _, _ = _IN.unpack_from(message)
    return Request(opcode, unique, node, uid, pid)


def length_of(message: bytes | memoryview) -> int:
    """Return how many bytes a request has, by its header; 0 if nothing was ever read."""
    return min(int(_IN.unpack_from(message)[0]), len(message))


def parse_init(body: memoryview) -> Hello:
    """Return what INIT offers."""
    _, minor, read_ahead, flags = _INIT_IN.unpack_from(body)
    if flags & _INIT_EXT:
        flags |= _FLAGS2.unpack_from(body, _INIT_IN.size)[0] << 32
    return Hello(minor, read_ahead, flags)


def parse_read(body: memoryview) -> tuple[int, int]:
    """Return (offset, bytes) of READ, and (first entry, bytes) of READDIR and READDIRPLUS."""
    _, offset, size = _READ_IN.unpack_from(body)
    return offset, size


def parse_lseek(body: memoryview) -> tuple[int, int]:
    """Return (offset, whence)."""
    _, offset, whence = _LSEEK_IN.unpack_from(body)
    return offset, whence


def parse_size(body: memoryview) -> tuple[int, bytes]:
    """Return (bytes that there is room for, name) of GETXATTR; the name is empty in LISTXATTR."""
    size, _ = _SIZE_IN.unpack_from(body)
    return size, bytes(body[_SIZE_IN.size :]).rstrip(b"\0")


def parse_interrupt(body: memoryview) -> int:
    """Return the ``unique`` of the request that a signal has interrupted."""
    unique: int = _INTERRUPT_IN.unpack_from(body)[0]
    return unique


# -- answers ---------------------------------------------------------------------------------------


def header(unique: int, size: int) -> bytes:
    """Return the header of an answer with `size` bytes behind it."""
    return _OUT.pack(HEADER_BYTES + size, 0, unique)


def error(unique: int, number: int) -> bytes:
    """Return an answer that fails with an errno."""
    return _OUT.pack(HEADER_BYTES, -number, unique)


def resend() -> bytes:
    """Return what asks for all requests again that were read and not answered (Linux >= 6.9)."""
    return _OUT.pack(HEADER_BYTES, _NOTIFY_RESEND, 0)


def init(hello: Hello, read_ahead: int, *, many: bool = False) -> bytes:
    """Return the answer to INIT.

    Args:
        hello: what the kernel offers.
        read_ahead: bytes, at most; the mount's backing device information can say less.
        many: direct reads do not wait for each other, and are many.
    """
    flags = hello.flags & (_WANTED | _ASYNC_DIO * many)
    background = _MANY if many else _MAX_BACKGROUND
    return _INIT_OUT.pack(
        MAJOR,
        min(hello.minor, MINOR),
        read_ahead,
        flags & 0xFFFFFFFF,
        background,
        background * 3 // 4,
        _MAX_WRITE,
        1,
        MOST_BYTES >> 12,
        0,
        flags >> 32,
        0,
    )


def attributes(
    ino: int,
    size: int,
    mode: int,
    links: int = 1,
    uid: int = 0,
    gid: int = 0,
    rdev: int = 0,
    mtime: int = 0,
    nsec: int = 0,
) -> bytes:
    """Return struct fuse_attr of a file; its data takes blocks of 4096 bytes.

    Args:
        ino: inode number.
        size: bytes.
        mode: with the file type.
        links: how many.
        uid: owner.
        gid: group.
        rdev: number of a device node.
        mtime: seconds, of all three times.
        nsec: likewise.
    """
    blocks = -(-size >> 12) << 3
    times = (mtime, mtime, mtime, nsec, nsec, nsec)
    return _ATTR.pack(ino, size, blocks, *times, mode, links, uid, gid, rdev, 4096, 0)


def entry(node: int, of_it: bytes) -> bytes:
    """Return the answer to LOOKUP for a file with these `attributes`."""
    return _ENTRY.pack(node, 0, FOREVER_S, FOREVER_S, 0, 0) + of_it


def attributes_of(of_it: bytes) -> bytes:
    """Return the answer to GETATTR."""
    return _ATTR_OUT.pack(FOREVER_S, 0, 0) + of_it


def dirent(ino: int, after: int, kind: int, name: bytes) -> bytes:
    """Return one entry of READDIR; in READDIRPLUS it comes behind an `entry`.

    Args:
        ino: inode number.
        after: where to go on behind this entry.
        kind: file type, as in a mode, shifted by 12 bits.
        name: of the file.
    """
    return _DIRENT.pack(ino, after, len(name), kind) + name + _PADDING[len(name) & 7]


def statfs(blocks: int, files: int, block_bytes: int) -> bytes:
    """Return the answer to STATFS for a file system without room."""
    return _STATFS.pack(blocks, 0, 0, files, 0, block_bytes, 255, block_bytes)


def room(size: int) -> bytes:
    """Return the answer to GETXATTR or LISTXATTR that asks how much room is needed."""
    return _SIZE_IN.pack(size, 0)


def lseek(offset: int) -> bytes:
    """Return the answer to LSEEK."""
    return _INTERRUPT_IN.pack(offset)

# SPDX-License-Identifier: Apache-2.0
"""The headers of a tar archive, from nodes of a tree. Pure.

Owns the form that readers share: a ustar block, and before it an extended header (PAX) with what
the block cannot hold: long names, large numbers, fractions of seconds, extended attributes.
Invariant: reading an entry (`firstread.convert.tar`) gives the node back.

Source: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; star and GNU tar for
``SCHILY.xattr``, libarchive for names of attributes with an equals sign.
"""

from __future__ import annotations

import binascii
import stat
import struct
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote_from_bytes

from firstread.erofs.tree import Node

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)

# name, mode, uid, gid, size, mtime, checksum, type, link, magic and version, owner, group, major,
# minor, prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8ss100s8s32s32s8s8s155s12x")
_CHECKSUM = slice(148, 156)
_KINDS = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_HARDLINK = b"1"
_EXTENDED = b"x"
_MAX_NAME = 100
_MAX_ID = 0o7777777
_MAX_LONG = 0o77777777777  # of sizes and times
_NSEC = 1_000_000_000


def is_possible(node: Node) -> bool:
    """Return whether tar knows this type of node: it knows no sockets."""
    return stat.S_IFMT(node.mode) in _KINDS


def header(path: bytes, node: Node, link: bytes | None = None) -> bytes:
    """Return the blocks that precede the data of an entry.

    Args:
        path: as in `firstread.erofs.tree.walk`.
        node: at that path.
        link: path of an earlier entry that is the same node.
    """
    name = (path or b".") + b"/" * node.is_dir
    target = node.target if link is None else link
    size = node.size if link is None else 0
    time = node.mtime * _NSEC + node.mtime_nsec
    records = b"".join(_record(key, value) for key, value in _records(name, target, size, node))
    extended = b""
    if records:
        extended = _block(b"PaxHeaders/" + name[:80], _EXTENDED, size=len(records), mode=0o644)
        extended += padded(records)
    return extended + _block(
        name,
        _KINDS[stat.S_IFMT(node.mode)] if link is None else _HARDLINK,
        link=target,
        size=size,
        mode=stat.S_IMODE(node.mode),
        ids=(node.uid, node.gid),
        mtime=time // _NSEC,
        rdev=node.rdev,
    )


def padded(data: bytes) -> bytes:
    """Return `data` with zeros up to a whole block."""
    return data + bytes(-len(data) % BLOCK)


def _records(name: bytes, target: bytes, size: int, node: Node) -> Iterator[tuple[bytes, bytes]]:
    """Yield keyword and value of everything that does not fit into the block."""
    names = {b"path": name, b"linkpath": target}
    long = {keyword: value for keyword, value in names.items() if len(value) > _MAX_NAME}
    if not all(value.isascii() for value in long.values()):
        yield b"hdrcharset", b"BINARY"  # else libarchive translates them
    yield from long.items()
    numbers = ((b"size", size, _MAX_LONG), (b"uid", node.uid, _MAX_ID), (b"gid", node.gid, _MAX_ID))
    for keyword, number, most in numbers:
        if number > most:
            yield keyword, b"%d" % number
    if node.mtime_nsec or not 0 <= node.mtime <= _MAX_LONG:
        yield b"mtime", _time(node.mtime * _NSEC + node.mtime_nsec)
    for attribute, value in sorted(node.xattrs.items()):
        if b"=" in attribute:
            plain = binascii.b2a_base64(value, newline=False).rstrip(b"=")
            yield b"LIBARCHIVE.xattr." + quote_from_bytes(attribute).encode(), plain
        else:
            yield b"SCHILY.xattr." + attribute, value


def _time(nanoseconds: int) -> bytes:
    seconds, rest = divmod(abs(nanoseconds), _NSEC)
    fraction = b".%09d" % rest if rest else b""
    return b"-" * (nanoseconds < 0) + b"%d" % seconds + fraction.rstrip(b"0")


def _record(keyword: bytes, value: bytes) -> bytes:
    """Return a record; its length counts its own digits."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, keyword, value)


def _block(
    name: bytes,
    kind: bytes,
    *,
    size: int,
    mode: int,
    link: bytes = b"",
    ids: tuple[int, int] = (0, 0),
    mtime: int = 0,
    rdev: tuple[int, int] = (0, 0),
) -> bytes:
    """Return a header block; 0 for numbers that only the extended header can hold."""
    block = _HEADER.pack(
        name[:_MAX_NAME],
        _octal(mode, 7),
        *(_octal(number, 7) for number in ids),
        _octal(size, 11),
        _octal(mtime, 11),
        b" " * 8,
        kind,
        link[:_MAX_NAME],
        b"ustar\x0000",
        b"",
        b"",
        *(_octal(number, 7) for number in rdev),
        b"",
    )
    checksum = b"%06o\0 " % sum(block)
    return block[: _CHECKSUM.start] + checksum + block[_CHECKSUM.stop :]


def _octal(number: int, digits: int) -> bytes:
    return b"%0*o" % (digits, number if 0 <= number < 8**digits else 0)

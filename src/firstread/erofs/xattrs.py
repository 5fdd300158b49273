# SPDX-License-Identifier: Apache-2.0
"""Extended attributes in EROFS: names, entries, and the entries that inodes share.

Owns the bytes of the shared area and of an inode's xattr body, in both directions. Invariant: the
bytes depend only on the sets of attributes of all inodes, never on their order.
Source: Linux ``fs/erofs/erofs_fs.h`` and ``fs/erofs/xattr.c``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from struct import pack, unpack_from

from firstread.erofs.format import MAX_NAME, XATTR_ENTRY, XATTR_HEADER, align
from firstread.errors import ImageError, LimitError

_ACL_ACCESS = b"system.posix_acl_access"
_ACL_DEFAULT = b"system.posix_acl_default"
_WHOLE_NAMES = {_ACL_ACCESS: 2, _ACL_DEFAULT: 3}
_PREFIXES = {b"user.": 1, b"trusted.": 4, b"security.": 6}
_NAMES = {index: prefix for prefix, index in (_WHOLE_NAMES | _PREFIXES).items()}

_MAX_SHARED = 255  # ids in one inode
_MAX_ICOUNT = 0xFFFF
_ID_SIZE = 4


def _split(name: bytes) -> tuple[int, bytes] | None:
    """Return (prefix index, rest of the name), None if EROFS has no index for it."""
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name], b""
    prefix, dot, rest = name.partition(b".")
    index = _PREFIXES.get(prefix + dot)
    if index is None or not rest or len(name) > MAX_NAME or b"\0" in name:
        return None
    return index, rest


def supported_xattr(name: bytes) -> bool:
    """Return whether EROFS can hold an attribute called `name`, such as ``b"user.comment"``."""
    return _split(name) is not None


def encode_entry(name: bytes, value: bytes) -> bytes:
    """Return the on-disk entry of one attribute.

    Raises:
        ImageError: EROFS cannot hold an attribute of this name.
        LimitError: `value` does not fit.
    """
    split = _split(name)
    if split is None:
        raise ImageError(f"extended attribute {name!r} cannot be stored in EROFS")
    if len(value) > 0xFFFF:
        raise LimitError(f"the value of extended attribute {name!r} is longer than 65535 bytes")
    index, rest = split
    entry = XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
    return entry.ljust(align(len(entry), 4), b"\0")


def decode_entry(data: memoryview, offset: int, end: int) -> tuple[bytes, bytes, int]:
    """Return (name, value, offset after it) of the entry at `offset` that must stop before `end`.

    Raises:
        ImageError: it crosses `end`, or its name is invalid.
    """
    body = offset + XATTR_ENTRY.size
    if body > end:
        raise ImageError("an extended attribute is out of bounds")
    name_size, index, value_size = XATTR_ENTRY.unpack_from(data, offset)
    value_offset = body + name_size
    stop = value_offset + value_size
    if stop > end:
        raise ImageError("an extended attribute is out of bounds")
    name = _NAMES.get(index, b"") + bytes(data[body:value_offset])
    if _split(name) != (index, name[len(name) - name_size :]):
        raise ImageError("an extended attribute has no valid name")
    return name, bytes(data[value_offset:stop]), align(stop, 4)


def decode_body(
    data: memoryview, offset: int, end: int
) -> tuple[Sequence[int], list[tuple[bytes, bytes]]]:
    """Return (ids of shared entries, inline attributes) of an inode's xattr body.

    Args:
        data: the image.
        offset: where the body begins.
        end: its end, from ``i_xattr_icount``; not beyond `data`.

    Raises:
        ImageError: the body is malformed.
    """
    name_filter, shared, reserved = XATTR_HEADER.unpack_from(data, offset)
    entries = offset + XATTR_HEADER.size + _ID_SIZE * shared
    if name_filter or any(reserved) or entries > end or end == offset + XATTR_HEADER.size:
        raise ImageError("an inode has a malformed xattr body")
    ids = unpack_from(f"<{shared}I", data, offset + XATTR_HEADER.size)
    inline = []
    while entries < end:
        name, value, entries = decode_entry(data, entries, end)
        inline.append((name, value))
    return ids, inline


class XattrTable:
    """The attributes of a whole image, split into shared and inline ones.

    An entry is shared when that makes the image smaller.

    Args:
        all_xattrs: the attributes of each inode that has any.
        first_id: of the first shared entry; ids count units of 4 bytes from the block's start.

    Attributes:
        shared: bytes of the shared area, sorted, so that equal trees give equal images.
    """

    def __init__(self, all_xattrs: Iterable[Mapping[bytes, bytes]], first_id: int) -> None:
        uses = Counter(item for xattrs in all_xattrs for item in xattrs.items())
        self._ids: dict[tuple[bytes, bytes], int] = {}
        self._shared_bodies: dict[frozenset[tuple[bytes, bytes]], bytes] = {}
        entries = []
        end = 0
        for item, count in sorted(uses.items()):
            if count < 2:
                continue
            entry = encode_entry(*item)
            if len(entry) + _ID_SIZE * count < len(entry) * count:
                self._ids[item] = first_id + end // 4
                entries.append(entry)
                end += len(entry)
        self.shared = b"".join(entries)

    def body(self, xattrs: Mapping[bytes, bytes]) -> bytes:
        """Return the xattr body of an inode with these attributes; empty without any.

        Raises:
            LimitError: they do not fit in one inode.
        """
        if not xattrs:
            return b""
        key = frozenset(xattrs.items())
        body = self._shared_bodies.get(key)
        return body if body is not None else self._encode(key)

    def _encode(self, items: frozenset[tuple[bytes, bytes]]) -> bytes:
        shared = sorted(items & self._ids.keys())[:_MAX_SHARED]
        inline = [encode_entry(*item) for item in sorted(items.difference(shared))]
        ids = [self._ids[item] for item in shared]
        header = XATTR_HEADER.pack(0, len(ids), b"") + pack(f"<{len(ids)}I", *ids)
        body = b"".join([header, *inline])
        if body_count(len(body)) > _MAX_ICOUNT:
            raise LimitError("the extended attributes of one file are larger than 256 KiB")
        if not inline:
            self._shared_bodies[items] = body
        return body


def body_count(size: int) -> int:
    """Return the ``i_xattr_icount`` of an xattr body of `size` bytes."""
    return (size - XATTR_HEADER.size) // 4 + 1 if size else 0


def body_size(count: int) -> int:
    """Return the size of an xattr body with the ``i_xattr_icount`` `count`."""
    return XATTR_HEADER.size + 4 * (count - 1) if count else 0

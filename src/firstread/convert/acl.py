# SPDX-License-Identifier: Apache-2.0
"""Access control lists: from the text in a PAX header to the bytes of the kernel's xattr.

Pure. GNU tar (``--acls``), bsdtar and star write the text form of acl(5). firstread has no user
database to look up an image's names in, so it can keep only lists of numeric ids. Invariant: a mode
never grants more than the list that it replaces, and a list never more than the mode beside it.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from firstread.errors import ImageError

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")  # tag, permissions, id: include/uapi/linux/posix_acl_xattr.h
_NO_ID = 0xFFFFFFFF
_OWNER, _USER, _GROUP, _NAMED_GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_TAGS = {  # (word, has an id)
    (b"user", False): _OWNER,
    (b"user", True): _USER,
    (b"group", False): _GROUP,
    (b"group", True): _NAMED_GROUP,
    (b"mask", False): _MASK,
    (b"other", False): _OTHER,
}
_MAX_DIGITS = 10  # of an id
_MINIMAL = 3  # entries that say no more than the mode does
_SEPARATOR = re.compile(rb"[,\n]")
_LINE = re.compile(
    rb"(?:default:)?(user|group|mask|other|u|g|m|o)(?::([^:]*))?:([r-][w-][x-])(?::([0-9]{1,10}))?"
)
_WORDS = {b"u": b"user", b"g": b"group", b"m": b"mask", b"o": b"other"}


class AccessList(NamedTuple):
    """An access control list, in the kernel's terms.

    Args:
        value: of the kernel's xattr; None if the list says no more than `mode`, or cannot be kept.
        mode: the lowest nine bits, to go with `value`, or to replace it.
        is_lost: the list has a name without a number, so it cannot be kept.
    """

    value: bytes | None
    mode: int
    is_lost: bool = False


def parse_acl(text: bytes) -> AccessList:
    """Parse the text of an access control list.

    Commas or line ends separate entries; an id is the second part or, after a name from star or
    bsdtar, the fourth.

    Raises:
        ImageError: the text is malformed, or lacks an entry that every list must have.
    """
    entries = [
        _entry(line) for part in _SEPARATOR.split(text) if (line := part.partition(b"#")[0].strip())
    ]
    allowed = {tag: bits for tag, bits, _ in entries}
    named = allowed.keys() & {_USER, _NAMED_GROUP}
    if not {_OWNER, _GROUP, _OTHER} <= allowed.keys() or (named and _MASK not in allowed):
        raise ImageError(
            "an access control list lacks the owner, the group, the mask or the others"
        )
    group, mask = allowed[_GROUP], allowed.get(_MASK, allowed[_GROUP])
    mode = allowed[_OWNER] << 6 | allowed[_OTHER]
    complete = [(tag, bits, identity) for tag, bits, identity in entries if identity is not None]
    if len(complete) < len(entries):
        # Without the list, the group's bits are those of the owning group alone.
        return AccessList(None, mode | (group & mask) << 3, is_lost=True)
    # With it they are the mask, as in the kernel: libarchive stores those of the owning group.
    mode |= mask << 3
    if len(complete) == _MINIMAL:
        return AccessList(None, mode)
    complete.sort(key=lambda entry: (entry[0], entry[2]))
    return AccessList(_VERSION + b"".join(_ENTRY.pack(*entry) for entry in complete), mode)


def after_chmod(value: bytes, mode: int) -> bytes | None:
    """Return what the kernel keeps of an access list, and chmod(2) makes of it.

    Unpacking sets the mode last, so the list never grants more than the mode does.

    Args:
        value: of the kernel's xattr.
        mode: of the same file.

    Returns:
        the value then; None if it says no more than the mode.

    Raises:
        ImageError: the kernel would not take it.
    """
    entries = kernel_entries(value)
    if len(entries) <= _MINIMAL:
        return None
    group = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP
    bits = {_OWNER: mode >> 6 & 7, group: mode >> 3 & 7, _OTHER: mode & 7}
    return _VERSION + b"".join(
        _ENTRY.pack(tag, bits.get(tag, allowed), identity) for tag, allowed, identity in entries
    )


def kernel_entries(value: bytes) -> list[tuple[int, int, int]]:
    """Return (tag, permissions, id) of each entry of the kernel's xattr.

    An empty list has none: as a value without bytes, it is how setxattr(2) takes a list away. Nor
    has one of another version: the kernel does not support it, and containerd goes on without it.

    Raises:
        ImageError: the kernel would not take it (Linux, fs/posix_acl.c, posix_acl_valid).
    """
    if not value:
        return []
    version, rest = value[: len(_VERSION)], value[len(_VERSION) :]
    if len(version) < len(_VERSION) or len(rest) % _ENTRY.size:
        raise ImageError("an access control list is damaged")
    if version != _VERSION:
        return []
    entries = list(_ENTRY.iter_unpack(rest))
    tags = [tag for tag, _, _ in entries]
    named = {_USER, _NAMED_GROUP}.intersection(tags)
    whole = {_OWNER, _GROUP, _OTHER} | ({_MASK} if named or _MASK in tags else set())
    if entries and (
        tags != sorted(tags)
        or not whole <= set(tags) <= whole | named
        or any(tags.count(tag) > 1 for tag in whole)
        or any(allowed > 7 for _, allowed, _ in entries)
        or any(tag in named and identity == _NO_ID for tag, _, identity in entries)
    ):
        raise ImageError("an access control list has entries that the kernel refuses")
    return [(tag, bits, number if tag in named else _NO_ID) for tag, bits, number in entries]


def _entry(line: bytes) -> tuple[int, int, int | None]:
    """Return (tag, permissions, id) of one entry; the id is None for a name without a number."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise ImageError(f"not an access control entry: {line[:80]!r}")
    word, name, permissions, trailing = match.groups()
    tag = _TAGS.get((_WORDS.get(word, word), bool(name)))
    if tag is None:
        raise ImageError(f"not an access control entry: {line[:80]!r}")
    bits = sum(bit for bit, letter in zip((4, 2, 1), permissions, strict=True) if letter != 45)
    if not name:
        return tag, bits, _NO_ID
    stated = trailing or name
    if not stated.isdigit():
        return tag, bits, None
    if len(stated) > _MAX_DIGITS or (identity := int(stated)) >= _NO_ID:
        raise ImageError(f"an access control entry has a bad id: {line[:80]!r}")
    return tag, bits, identity

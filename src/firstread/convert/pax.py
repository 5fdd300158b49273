# SPDX-License-Identifier: Apache-2.0
"""Extended headers of tar: PAX records, and their effect on an entry.

Pure. Owns the keywords of POSIX.1-2017 pax ("pax Extended Header") and of star, libarchive and
GNU tar for times, device numbers and extended attributes; sparse maps are in `sparse`. Invariant:
the result has only what the records state, and unknown keywords change nothing.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import unquote_to_bytes

from firstread.convert import acl
from firstread.convert.entry import TarEntry, TarKind, TarLimits
from firstread.convert.header import INT64_MAX
from firstread.errors import ImageError, LimitError

SPARSE_MAP = b"GNU.sparse.map"
SPARSE_NAME = b"GNU.sparse.name"

_SPARSE_PAIR = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_SCHILY_XATTR = b"SCHILY.xattr."
_LIBARCHIVE_XATTR = b"LIBARCHIVE.xattr."
_PREFIXES = (_SCHILY_XATTR, _LIBARCHIVE_XATTR, b"GNU.sparse.")
_ACLS = {b"SCHILY.acl.access": acl.ACCESS, b"SCHILY.acl.default": acl.DEFAULT}
_DECIMAL = re.compile(rb"[-+]?[0-9]{1,19}")
_TIME = re.compile(rb"([-+]?)([0-9]{1,19})(?:\.([0-9]*))?")
_CAPABILITY = b"security.capability"
_CAPABILITIES = {(20, 0x02000000), (24, 0x03000000)}  # size and revision: linux/capability.h
_EFFECTIVE = 1  # the flag beside the revision
_NOBODY = b"\xff\xff\xff\xff"  # as the root of a user namespace, in version 3
_MAX_LENGTH_DIGITS = 20
_NEWLINE = 0x0A


def parse_records(data: bytes) -> dict[bytes, bytes]:
    r"""Return the records of one extended header, keyword to value; of several, the last.

    Keywords without meaning here are left out: comments, access times, names of owners.

    The pairs of a sparse map of version 0.0, whose keywords repeat, are joined to the form of
    version 0.1.

    Raises:
        ImageError: not a sequence of ``length keyword=value\n``, or incomplete pairs.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    for key, value in _records(data):
        if key in _SPARSE_PAIR:
            if key != _SPARSE_PAIR[len(sparse) % 2] or b"," in value:
                raise ImageError("the sparse map is out of order")
            sparse.append(value)
        elif key in _SETTERS or key in _ACLS or key.startswith(_PREFIXES):
            records[key] = value
    if sparse:
        records[SPARSE_MAP] = b",".join(sparse)
    return records


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = 0
    while start < len(data):
        space = data.find(b" ", start, start + _MAX_LENGTH_DIGITS)
        digits = data[start:space] if space > start else b""
        end = start + int(digits) if digits.isdigit() else start
        if not start < space < end <= len(data) or data[end - 1] != _NEWLINE:
            raise ImageError(f"the extended header has a bad record: {data[start : start + 40]!r}")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not key or not equals:
            raise ImageError(f"the extended header has a bad record: {data[start : start + 40]!r}")
        yield key, value
        start = end


def merge(common: Mapping[bytes, bytes], own: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """Return the records that apply to one entry.

    An empty value deletes a global one, and restores the field of the header. Only an extended
    attribute can be empty itself: it is, unless a global record has it.

    Args:
        common: of the global headers so far.
        own: of the entry's own extended header.
    """
    if not own:
        return common
    return {
        key: value
        for key, value in {**common, **own}.items()
        if value or (key.startswith(_SCHILY_XATTR) and key not in common)
    }


def apply(entry: TarEntry, records: Mapping[bytes, bytes], limits: TarLimits) -> None:
    """Override the header of an entry with `records`.

    Raises:
        ImageError: a value is invalid for its keyword.
        LimitError: the extended attributes are too large.
    """
    for key, value in records.items():
        setter = _SETTERS.get(key)
        if setter is not None:
            setter(entry, value)
    _set_xattrs(entry, records)
    total = 0
    for name, value in entry.xattrs.items():
        total += len(name) + len(value)
        if not name or b"\0" in name:
            raise ImageError(f"an extended attribute has a bad name: {name[:80]!r}")
        if len(name) > limits.xattr_name_bytes or len(value) > limits.xattr_value_bytes:
            raise LimitError(f"the extended attribute {name[:80]!r} is too large")
    if total > limits.xattrs_bytes:
        raise LimitError(f"the extended attributes exceed {limits.xattrs_bytes} bytes")


def settle(entry: TarEntry) -> None:
    """Make of extended attributes what setxattr(2), and chmod(2) behind it, make of them.

    Raises:
        ImageError: the kernel would not take one: programs could not read it, and overlayfs could
            not copy the file up.
    """
    if _CAPABILITY in entry.xattrs:
        value = entry.xattrs[_CAPABILITY]
        revision = int.from_bytes(value[:4], "little") & ~_EFFECTIVE
        if (len(value), revision) not in _CAPABILITIES:
            raise ImageError("the attribute security.capability is neither of version 2 nor of 3")
        if value[20:] == _NOBODY:
            raise ImageError("the attribute security.capability is of no user")
    for name in entry.xattrs.keys() & {acl.ACCESS, acl.DEFAULT}:
        kept = _kept_list(entry, name, entry.xattrs.pop(name))
        if kept is not None:
            entry.xattrs[name] = kept


def _kept_list(entry: TarEntry, name: bytes, value: bytes) -> bytes | None:
    if entry.kind is TarKind.SYMLINK:  # which has none
        return None
    if name == acl.ACCESS:
        return acl.after_chmod(value, entry.mode)
    entries = acl.kernel_entries(value)
    if entries and entry.kind is not TarKind.DIRECTORY:
        raise ImageError("only a directory can have a default access control list")
    return value if entries else None


def decimal(value: bytes) -> int:
    """Return the value of a decimal number.

    Raises:
        ImageError: it is not one, or does not fit into 64 bits with sign.
    """
    if not _DECIMAL.fullmatch(value) or abs(number := int(value)) > INT64_MAX:
        raise ImageError(f"not a number: {value[:40]!r}")
    return number


def _set_mtime(entry: TarEntry, value: bytes) -> None:
    """Cut digits after the ninth off, towards zero, as Go's archive/tar does."""
    match = _TIME.fullmatch(value)
    if match is None or int(match[2]) > INT64_MAX:
        raise ImageError(f"not a time: {value[:40]!r}")
    nanoseconds = int(match[2]) * 1_000_000_000 + int((match[3] or b"")[:9].ljust(9, b"0"))
    if match[1] == b"-":
        nanoseconds = -nanoseconds
    entry.mtime, entry.mtime_nsec = divmod(nanoseconds, 1_000_000_000)


def _set_path(entry: TarEntry, value: bytes) -> None:
    entry.path = value


def _set_link(entry: TarEntry, value: bytes) -> None:
    entry.link = value


def _set_size(entry: TarEntry, value: bytes) -> None:
    entry.size = decimal(value)


def _set_uid(entry: TarEntry, value: bytes) -> None:
    entry.uid = decimal(value)


def _set_gid(entry: TarEntry, value: bytes) -> None:
    entry.gid = decimal(value)


def _set_major(entry: TarEntry, value: bytes) -> None:
    entry.rdev = (decimal(value), entry.rdev[1])


def _set_minor(entry: TarEntry, value: bytes) -> None:
    entry.rdev = (entry.rdev[0], decimal(value))


_SETTERS: dict[bytes, Callable[[TarEntry, bytes], None]] = {
    b"path": _set_path,
    b"linkpath": _set_link,
    b"size": _set_size,
    b"uid": _set_uid,
    b"gid": _set_gid,
    b"mtime": _set_mtime,
    b"SCHILY.devmajor": _set_major,
    b"SCHILY.devminor": _set_minor,
}


def _set_xattrs(entry: TarEntry, records: Mapping[bytes, bytes]) -> None:
    """Collect the extended attributes; of several forms of one, the most direct wins."""
    direct: dict[bytes, bytes] = {}
    encoded: dict[bytes, bytes] = {}
    lists: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(_SCHILY_XATTR):
            direct[key[len(_SCHILY_XATTR) :]] = value
        elif key.startswith(_LIBARCHIVE_XATTR):
            encoded[unquote_to_bytes(key[len(_LIBARCHIVE_XATTR) :])] = _base64(value)
        elif key in _ACLS:
            lists[key] = value
    if encoded:
        # libarchive writes both, and quotes the names of both.
        direct = {
            name: value
            for name, value in direct.items()
            if (plain := unquote_to_bytes(name)) == name or plain not in encoded
        }
    entry.xattrs = encoded | direct
    for key, text in lists.items():
        if _ACLS[key] not in entry.xattrs:
            _set_list(entry, key, acl.parse_acl(text), text)


def _set_list(entry: TarEntry, key: bytes, access: acl.AccessList, text: bytes) -> None:
    """Add an access control list, and set the matching permissions."""
    if access.value is not None:
        entry.xattrs[_ACLS[key]] = access.value
    elif access.is_lost:
        entry.xattrs[key] = text  # no file system takes it, so it is reported as left out
    else:
        return
    if _ACLS[key] == acl.ACCESS:
        entry.mode = entry.mode & ~0o777 | access.mode


def _base64(value: bytes) -> bytes:
    """Decode base64 as libarchive writes it, without padding."""
    try:
        return binascii.a2b_base64(value + b"=" * (-len(value) % 4), strict_mode=True)
    except binascii.Error as exc:
        raise ImageError(f"an extended attribute is not base64: {exc}") from exc

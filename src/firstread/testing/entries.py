# SPDX-License-Identifier: Apache-2.0
"""Layers described as data, and the tar bytes that say the same.

For tests: what a test wants in a layer, malformed things included, is written as a list of
entries. `tarfile` writes every header block; extended headers and sparse maps are written here,
since it cannot say all that they can. Invariant: the same description gives the same bytes.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Name: TypeAlias = str | bytes
Format: TypeAlias = Literal["pax", "gnu", "ustar"]
SparseForm: TypeAlias = Literal["gnu", "0.0", "0.1", "1.0"]
Records: TypeAlias = Iterable[tuple[Name, Name]]

BLOCK = 512
_MAX_OCTAL_7 = 0o7777777
_MAX_OCTAL_11 = 0o77777777777


@dataclass(frozen=True)
class Entry:
    """The common fields of all entries.

    Args:
        path: in the archive; text is encoded as UTF-8.
        mtime: whole seconds, rounded down.
        mtime_nsec: nanoseconds after `mtime`; PAX only.
        xattrs: PAX only, written as ``SCHILY.xattr.*``.
        records: more PAX records; they stand after those that the other fields make.
        type: type byte of the header instead of the usual one.
    """

    path: Name
    mode: int = field(default=0o644, kw_only=True)
    uid: int = field(default=0, kw_only=True)
    gid: int = field(default=0, kw_only=True)
    mtime: int = field(default=0, kw_only=True)
    mtime_nsec: int = field(default=0, kw_only=True)
    xattrs: Mapping[str, bytes] | Mapping[bytes, bytes] = field(default_factory=dict, kw_only=True)
    records: Records = field(default=(), kw_only=True)
    type: bytes | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class File(Entry):
    """A regular file."""

    content: bytes = b""


@dataclass(frozen=True)
class Dir(Entry):
    """A directory."""

    mode: int = field(default=0o755, kw_only=True)


@dataclass(frozen=True)
class Symlink(Entry):
    """A symbolic link to `target`."""

    target: Name = ""
    mode: int = field(default=0o777, kw_only=True)


@dataclass(frozen=True)
class Hardlink(Entry):
    """One more name for the file at `target`; unpacking sets owner, mode and time of it again."""

    target: Name = ""


@dataclass(frozen=True)
class Char(Entry):
    """A character device."""

    major: int = 0
    minor: int = 0


@dataclass(frozen=True)
class Block(Entry):
    """A block device."""

    major: int = 0
    minor: int = 0


@dataclass(frozen=True)
class Fifo(Entry):
    """A named pipe."""


@dataclass(frozen=True)
class Sparse(Entry):
    """A file of `size` bytes of which only `data` (offset to bytes) is stored.

    All pieces but the last should have whole blocks, as GNU tar makes them: it would look for the
    next one at a block, where Go's archive/tar and the standard library look right behind.
    """

    size: int = 0
    data: Mapping[int, bytes] = field(default_factory=dict)
    form: SparseForm = "1.0"

    @property
    def content(self) -> bytes:
        """The whole file."""
        content = bytearray(self.size)
        for offset, piece in self.data.items():
            content[offset : offset + len(piece)] = piece
        return bytes(content)


@dataclass(frozen=True)
class Whiteout:
    """Removes `path` of the layers below."""

    path: Name


@dataclass(frozen=True)
class Opaque:
    """Removes all that the layers below have in the directory `path`."""

    path: Name


@dataclass(frozen=True)
class Global:
    """A global PAX header."""

    records: Records


@dataclass(frozen=True)
class Raw:
    """Bytes of the archive as they are."""

    data: bytes


Item: TypeAlias = Entry | Whiteout | Opaque | Global | Raw

_TYPES: dict[type[Entry], bytes] = {
    File: tarfile.REGTYPE,
    Dir: tarfile.DIRTYPE,
    Symlink: tarfile.SYMTYPE,
    Hardlink: tarfile.LNKTYPE,
    Char: tarfile.CHRTYPE,
    Block: tarfile.BLKTYPE,
    Fifo: tarfile.FIFOTYPE,
    Sparse: tarfile.REGTYPE,
}


def to_tar(items: Iterable[Item], form: Format = "pax", *, zero_blocks: int = 2) -> bytes:
    """Return the archive that `items` describe.

    Args:
        items: in the order of the archive.
        form: how long names and large numbers are written.
        zero_blocks: at the end.

    Raises:
        ValueError: `form` cannot say it.
    """
    return b"".join(encode(item, form) for item in items) + bytes(zero_blocks * BLOCK)


def encode(item: Item, form: Format = "pax") -> bytes:
    """Return the bytes of one item: headers, data and padding.

    Raises:
        ValueError: `form` cannot say it.
    """
    match item:
        case Raw(data):
            return data
        case Global(records):
            return extended(records, tarfile.XGLTYPE)
        case Whiteout(path):
            parent, name = os.path.split(to_bytes(path))
            return encode(File(os.path.join(parent, b".wh." + name)), form)
        case Opaque(path):
            return encode(File(os.path.join(to_bytes(path), b".wh..wh..opq")), form)
        case Sparse(form="gnu"):
            return _old_sparse(item)
        case Sparse():
            return _pax_sparse(item)
        case _:
            content = item.content if isinstance(item, File) else b""
            return _headers(item, form, len(content), item.records) + padded(content)


def to_bytes(name: Name) -> bytes:
    """Return `name` as it stands in an archive."""
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


def padded(content: bytes) -> bytes:
    """Return `content` filled up with zeros to whole blocks."""
    return content + bytes(-len(content) % BLOCK)


def extended(records: Records, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Return an extended header, `kind` being ``x`` or ``g``, with `records` in order."""
    content = b"".join(_record(to_bytes(key), to_bytes(value)) for key, value in records)
    info = tarfile.TarInfo("PaxHeaders/entry")
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + padded(content)


def with_checksum(block: bytes) -> bytes:
    """Return a header block with the right checksum."""
    total = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:]


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(b"%d" % length):
        length = len(rest) + len(b"%d" % length)
    return b"%d" % length + rest


def _headers(entry: Entry, form: Format, size: int, records: Records = ()) -> bytes:
    """Return all header blocks of `entry`, `size` being that of its stored data."""
    info = tarfile.TarInfo(_text(entry.path))
    info.type = entry.type or _TYPES[type(entry)]
    info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, entry.mtime
    info.size = size
    if isinstance(entry, Symlink | Hardlink):
        info.linkname = _text(entry.target)
    if isinstance(entry, Char | Block):
        info.devmajor, info.devminor = entry.major, entry.minor
    stated = [*_needed_records(info, entry), *records] if form == "pax" else [*records]
    if form != "pax" and (stated or entry.xattrs or entry.mtime_nsec):
        raise ValueError(f"{form} cannot say all of {entry.path!r}")
    layout: Literal[0, 1] = tarfile.GNU_FORMAT if form == "gnu" else tarfile.USTAR_FORMAT
    block = info.tobuf(layout, "utf-8", "surrogateescape")
    return extended(stated) + block if stated else block


def _needed_records(info: tarfile.TarInfo, entry: Entry) -> list[tuple[Name, Name]]:
    """Return the PAX records for what a ustar header has no room for, and take it out of `info`."""
    records: list[tuple[Name, Name]] = []
    for key, field_name in (("path", "name"), ("linkpath", "linkname")):
        value = to_bytes(getattr(info, field_name))
        if len(value) >= tarfile.LENGTH_NAME:
            records.append((key, value))
            setattr(info, field_name, _text(value[: tarfile.LENGTH_NAME - 1]))
    for key, most in (("uid", _MAX_OCTAL_7), ("gid", _MAX_OCTAL_7), ("size", _MAX_OCTAL_11)):
        if getattr(info, key) > most:
            records.append((key, str(getattr(info, key))))
            setattr(info, key, 0)
    if entry.mtime_nsec or not 0 <= entry.mtime <= _MAX_OCTAL_11:
        records.append(("mtime", _time(entry.mtime, entry.mtime_nsec)))
        info.mtime = max(0, min(entry.mtime, _MAX_OCTAL_11))
    records += [(b"SCHILY.xattr." + to_bytes(key), v) for key, v in entry.xattrs.items()]
    if any(_is_binary(to_bytes(value)) for _, value in records):
        records.insert(0, ("hdrcharset", "BINARY"))
    return records


def _time(seconds: int, nanoseconds: int) -> str:
    total = seconds * 1_000_000_000 + nanoseconds
    whole, fraction = divmod(abs(total), 1_000_000_000)
    return f"{'-' if total < 0 else ''}{whole}.{fraction:09d}".rstrip("0").rstrip(".")


def _text(name: Name) -> str:
    return to_bytes(name).decode("utf-8", "surrogateescape")


def _is_binary(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return True
    return False


def _map(entry: Sparse) -> list[tuple[int, int]]:
    """Return (offset, length) of the stored pieces and, as GNU tar adds it, of the end."""
    pairs = [(offset, len(piece)) for offset, piece in entry.data.items()]
    return pairs if pairs and sum(pairs[-1]) == entry.size else [*pairs, (entry.size, 0)]


def _pax_sparse(entry: Sparse) -> bytes:
    data = b"".join(entry.data.values())
    pairs = _map(entry)
    flat = [str(number) for pair in pairs for number in pair]
    size, name, count = str(entry.size), to_bytes(entry.path), str(len(pairs))
    records: list[tuple[Name, Name]]
    if entry.form == "1.0":
        data = padded("".join(f"{line}\n" for line in (count, *flat)).encode()) + data
        records = [("major", "1"), ("minor", "0"), ("name", name), ("realsize", size)]
    elif entry.form == "0.1":
        records = [("size", size), ("numblocks", count), ("map", ",".join(flat)), ("name", name)]
    else:
        records = [("size", size), ("numblocks", count)]
        for offset, length in pairs:
            records += [("offset", str(offset)), ("numbytes", str(length))]
    stated = [(b"GNU.sparse." + to_bytes(key), value) for key, value in records]
    return _headers(entry, "pax", len(data), [*stated, *entry.records]) + padded(data)


def _old_sparse(entry: Sparse) -> bytes:
    """GNU type ``S``: the map is in the header, then in extension blocks of 21 pairs."""
    data = b"".join(entry.data.values())
    info = tarfile.TarInfo(_text(entry.path))
    info.type, info.size, info.mode = tarfile.GNUTYPE_SPARSE, len(data), entry.mode
    info.uid, info.gid, info.mtime = entry.uid, entry.gid, entry.mtime
    headers = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    pairs = [b"%011o\0%011o\0" % pair for pair in _map(entry)]
    last = headers[-BLOCK:]
    table = b"".join(pairs[:4]).ljust(96, b"\0") + _more(pairs[4:]) + b"%011o\0" % entry.size
    blocks = [headers[:-BLOCK], with_checksum(last[:386] + table + last[495:])]
    for start in range(4, len(pairs), 21):
        some = b"".join(pairs[start : start + 21]).ljust(504, b"\0")
        blocks.append(padded(some + _more(pairs[start + 21 :])))
    return b"".join(blocks) + padded(data)


def _more(rest: list[bytes]) -> bytes:
    return b"\1" if rest else b"\0"

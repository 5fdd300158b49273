# SPDX-License-Identifier: Apache-2.0
"""Where the members of an uncompressed tar archive are, to read them in place.

Owns the table of contents of an archive *around* an image (oci-archive, docker-archive); the tar
archives that are layers have a reader of their own. Invariant: it reads only headers of an
untrusted archive, each bounded, and every member that it finds lies within the file.

Source: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual,
"Basic Tar Format" (long names, base-256 numbers).
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from typing import Final

from firstread.errors import ImageError, LimitError, UnsupportedError
from firstread.units import MiB, round_up

BLOCK: Final = 512  # bytes
MAX_MEMBERS: Final = 200_000  # an image has hundreds; bounds memory
MAX_EXTENDED: Final = 1 * MiB  # bytes of one extended header
MAX_LINKS: Final = 16  # links that lead to links

_REGULAR: Final = (b"0", b"\0", b"7")
_NO_DATA: Final = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, directories and fifos
_COMPRESSIONS: Final = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
_OTHERS: Final = {  # that people take for an archive of an image
    b"PK\3\4": "a zip archive",
    b"{": "a JSON document",
    b"[": "a JSON document",
    b"hsqs": "a squashfs image",
    b"QFI\xfb": "a qcow2 disk",
}
EXPECTED: Final = "name a file that skopeo copy, podman save or docker save has written"
"""The remedy for a file that is no archive of an image."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive, or a link to the name `link`.

    Args:
        offset: of its first byte in the archive.
        size: in bytes.
    """

    offset: int
    size: int
    link: str | None = None


class TarIndex:
    """The members of the archive `fd`, by name.

    Raises:
        UnsupportedError: the archive is compressed.
        ImageError: it is not a tar archive, or damaged.
        OSError: it cannot be read.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._members: dict[str, Member] = {}
        self._scan()

    def find(self, name: str) -> Member | None:
        """Return the file called `name`, links followed; None if there is none."""
        for _ in range(MAX_LINKS):
            member = self._members.get(_clean(name))
            if member is None or member.link is None:
                return member
            name = member.link
        return None

    def _scan(self) -> None:
        _check_start(os.pread(self._fd, BLOCK, 0))
        position = 0
        extended: dict[str, str] = {}
        while (block := os.pread(self._fd, BLOCK, position)).strip(b"\0"):
            kind, size = _check_header(block, position)
            position += BLOCK
            if kind in (b"x", b"L", b"K"):
                extended |= self._extended(kind, position, size)
            else:
                if "size" in extended:
                    size = _decimal(extended["size"])
                if kind in _NO_DATA:
                    size = 0  # whatever is stated: some writers give that of a link's target
                self._add(block, kind, position, size, extended)
                extended = {}
            position += round_up(size, BLOCK)
        if not self._members:
            raise ImageError("the archive has no files in it", hint=EXPECTED)

    def _extended(self, kind: bytes, position: int, size: int) -> dict[str, str]:
        """Return what an extended header says of the member behind it."""
        if size > MAX_EXTENDED:
            raise LimitError(f"an extended tar header has {size} bytes, more than {MAX_EXTENDED}")
        data = os.pread(self._fd, size, position)
        if kind == b"x":
            return _pax_records(data)
        return {"path" if kind == b"L" else "linkpath": _text(data)}

    def _add(
        self, block: bytes, kind: bytes, position: int, size: int, extended: dict[str, str]
    ) -> None:
        name = extended.get("path") or _name(block)
        link = None
        if kind == b"1":
            link = extended.get("linkpath") or _text(block[157:257])
        elif kind == b"2":
            target = extended.get("linkpath") or _text(block[157:257])
            link = posixpath.join(posixpath.dirname(_clean(name)), target)
        elif kind == b"S":
            raise UnsupportedError("the archive has a sparse file", hint="write it with skopeo")
        elif kind not in _REGULAR:
            return
        if link is None and position + size > self._size:
            raise ImageError(f"the archive ends within {name!r}: it was cut off")
        if len(self._members) >= MAX_MEMBERS:
            raise LimitError(f"the archive has more than {MAX_MEMBERS} members")
        self._members[_clean(name)] = Member(position, size, link)


def _check_start(block: bytes) -> None:
    """Check that a file begins as a tar archive does.

    Args:
        block: the first of the file.

    Raises:
        UnsupportedError: it is compressed.
        ImageError: it is something else; says what.
    """
    if not block:
        raise ImageError("the file is empty", hint=EXPECTED)
    if begins_tar(block):
        return
    for magic, name in _COMPRESSIONS.items():
        if block.startswith(magic):
            raise UnsupportedError(
                f"the file is compressed with {name}",
                hint=f"decompress it first: {name} -dc FILE > ARCHIVE.tar",
            )
    for magic, what in _OTHERS.items():
        if block.startswith(magic):
            raise ImageError(f"the file is {what}, not a tar archive", hint=EXPECTED)
    raise ImageError(
        f"the file is no tar archive, or its first header is damaged: it begins with"
        f" {block[:16]!r}",
        hint=EXPECTED,
    )


def begins_tar(data: bytes) -> bool:
    """Return whether `data` can be the beginning of a tar archive, or all of one."""
    block = data[:BLOCK]
    try:
        return not block.strip(b"\0") or bool(_check_header(block, 0))
    except ImageError:
        return False


def _check_header(block: bytes, position: int) -> tuple[bytes, int]:
    """Return (type, size) of a header. Raises: ImageError."""
    if len(block) == BLOCK:
        blank = block[:148] + b" " * 8 + block[156:]
        if _number(block[148:156]) == sum(blank):
            return block[156:157], _number(block[124:136])
    raise ImageError(f"the archive is damaged at byte {position}")


def _number(field: bytes) -> int:
    """Return a number of a header: octal digits, or base-256 if the first bit is set."""
    if field[0] == 0x80:
        value = int.from_bytes(field[1:], "big")
        if value >= 1 << 63:
            raise ImageError("a tar header has a number out of range")
        return value
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):  # int() would take a sign, too
        raise ImageError("a tar header has a number that is none")
    return int(digits or b"0", 8)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise ImageError("a pax header has a size that is none")
    return int(text)


def _pax_records(data: bytes) -> dict[str, str]:
    """Return the records ``LENGTH KEY=VALUE`` of a pax header. Raises: ImageError."""
    records: dict[str, str] = {}
    start = 0
    while start < len(data):
        digits, _, _ = data[start : start + 20].partition(b" ")
        end = start + int(digits) if digits.isdigit() else start
        key, equals, value = data[start + len(digits) + 1 : end - 1].partition(b"=")
        if not start + len(digits) < end <= len(data) or not equals:
            raise ImageError("a pax header is damaged")
        if key in (b"path", b"linkpath", b"size"):
            records[key.decode()] = _text(value)
        start = end
    return records


def _name(block: bytes) -> str:
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _clean(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")

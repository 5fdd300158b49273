# SPDX-License-Identifier: Apache-2.0
r"""One 512-byte block of a tar archive: its checksum, its numbers, its fields.

Owns the layout of the v7, ustar, GNU and star header block; pure. Knows neither the data after a
header nor extended headers. Invariant: any other bytes give an `ImageError`.

======  ======  =============================================================
offset  length  field (POSIX.1-2017 pax, "ustar Interchange Format")
======  ======  =============================================================
0       100     name
100     8       mode, then uid (108) and gid (116)
124     12      size, then mtime (136)
148     8       checksum, counted as if it were spaces
156     1       type
157     100     name of the link's target
257     8       magic and version: ``ustar\0`` + ``00`` (ustar), ``ustar  \\0`` (GNU), else v7
329     8       device major, then minor (337); not in v7
345     155     prefix of the name, ustar only (star: 131); GNU: times of access (345) and
                of change (357), then other things
======  ======  =============================================================

Before Go 1.8, archive/tar, and so docker, also wrote the prefix of a long name into GNU headers,
where a number needed base 256. As Go does since, we take such a field for a prefix if it is ASCII
and not two times.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

from firstread.convert.entry import TarEntry, TarKind
from firstread.errors import ImageError

BLOCK = 512
ZEROS = bytes(BLOCK)

INT64_MIN = -(1 << 63)
INT64_MAX = (1 << 63) - 1

_FIELDS = struct.Struct("100s8s8s8s12s12s8ss100s8s64x8s8s155s12x")
_KINDS = {kind.value: kind for kind in TarKind} | {b"D": TarKind.DIRECTORY}
_DEVICES = (TarKind.CHAR, TarKind.BLOCK)
_USTAR = b"ustar\0"
_GNU = b"ustar  \0"
_STAR_TRAILER = b"tar\0"
_ADLER_MODULUS = 65521
_CHECKSUM_AS_SPACES = 8 * ord(" ")


@lru_cache(maxsize=1 << 14)
def number(field: bytes) -> int:
    """Return the value of a number field: octal digits, or base 256 if the first bit is set.

    Blanks and NULs around the digits, and anything after a NUL, do not count; an empty field is
    0. Cached, since most fields of a layer have the same few values.

    Raises:
        ImageError: not a number, or one that does not fit into 64 bits with sign.
    """
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & (1 << bits) - 1
        if value >> bits - 1:
            value -= 1 << bits
        if not INT64_MIN <= value <= INT64_MAX:
            raise ImageError(f"a number in the header is out of range: {value}")
        return value
    digits = field.lstrip(b" \0").partition(b"\0")[0].rstrip()
    if digits.translate(None, b"01234567"):  # int() alone would take "1_0", "0o7" and "-1"
        raise ImageError(f"not a number in the header: {field!r}")
    return int(digits or b"0", 8)


def check(block: bytes) -> None:
    """Verify the checksum of a header block.

    The low half of an Adler-32 is 1 plus the sum of all bytes, modulo 65521, which avoids a loop in
    Python. The sum is below twice the modulus, so two checksums pass instead of one.

    Raises:
        ImageError: it is wrong, both as a sum of unsigned and, as in some old programs, of signed
            bytes.
    """
    stated = number(block[148:156])
    rest = zlib.adler32(block[156:], zlib.adler32(block[:148])) & 0xFFFF
    if (stated - _CHECKSUM_AS_SPACES + 1 - rest) % _ADLER_MODULUS:
        signed = sum(struct.unpack("148b8x356b", block)) + _CHECKSUM_AS_SPACES
        if stated != signed:
            raise ImageError("the header checksum is wrong")


def parse(block: bytes) -> TarEntry:
    r"""Return the entry of a header block, whose checksum `check` has verified.

    ``\0``, ``7`` (contiguous), ``S`` (sparse) and, as POSIX demands, any unknown type are regular
    files; ``D`` (GNU incremental) is a directory. `TarEntry.size` is the stored size, whatever the
    type.

    Raises:
        ImageError: a number field is not a number.
    """
    name, mode, uid, gid, size, mtime, _, letter, link, magic, major, minor, prefix = (
        _FIELDS.unpack(block)
    )
    path = name.partition(b"\0")[0]
    if prefix[0] and magic[:6] == _USTAR:
        if block.endswith(_STAR_TRAILER, 508):
            prefix = prefix[:131]
        path = prefix.partition(b"\0")[0] + b"/" + path
    elif prefix[0] and magic == _GNU and not _are_times(prefix):
        prefix = prefix.partition(b"\0")[0]
        path = prefix + b"/" + path if prefix.isascii() else path
    kind = _KINDS.get(letter, TarKind.REGULAR)
    rdev = (0, 0)
    if kind in _DEVICES and (magic[:6] == _USTAR or magic == _GNU):
        rdev = (number(major), number(minor))
    return TarEntry(
        path=path,
        kind=kind,
        mode=number(mode) & 0o7777,
        uid=number(uid),
        gid=number(gid),
        mtime=number(mtime),
        size=number(size),
        link=link.partition(b"\0")[0] if link[0] else b"",
        rdev=rdev,
    )


def _are_times(field: bytes) -> bool:
    """Return whether a GNU header has times where ustar has the prefix of the name."""
    try:
        for time in (field[:12], field[12:24]):
            if time[0]:
                number(time)
    except ImageError:
        return False
    return True

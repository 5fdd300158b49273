# SPDX-License-Identifier: Apache-2.0
"""Byte units: constants, parsing of user input, printing; the longest possible wait.

Binary units only (``KiB`` = 1024): registries and kernels count that way.
"""

from __future__ import annotations

import re

from firstread.errors import UsageError

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB
TiB = 1024 * GiB

MAX_SECONDS = 1e9
"""Below this, thirty years, a time to wait must be: with much more, or with "inf" or "nan", waiting
itself fails."""

_FACTORS = {"": 1, "K": KiB, "M": MiB, "G": GiB, "T": TiB}
_SIZE = re.compile(
    r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII
)


def parse_size(text: str) -> int:
    """Return the number of bytes that `text` names, such as ``4MiB``, ``256k`` or ``4096``.

    Raises:
        UsageError: `text` is not a size, or not a whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size", hint="write it like 256KiB, 4MiB or 4096")
    whole, _, decimals = match[1].partition(".")
    scale: int = 10 ** len(decimals)
    size, rest = divmod(int(whole + decimals) * _FACTORS[(match[2] or "").upper()], scale)
    if rest:
        raise UsageError(f"{text!r} is not a whole number of bytes")
    return size


def format_size(size: float) -> str:
    """Return `size` in bytes in readable form: ``"4.0 MiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def counted(number: int, noun: str) -> str:
    """Return a count with its noun: ``"1 request"``, ``"2 requests"``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple

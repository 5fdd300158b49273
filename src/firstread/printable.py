# SPDX-License-Identifier: Apache-2.0
"""Names and texts of others, made fit for a terminal.

An image decides what its files are called, and a file name may hold anything but a slash and a
zero byte. Invariant: what leaves here is one line, and moves no cursor.
"""

from __future__ import annotations


def printable(text: str | bytes) -> str:
    r"""Return `text` with ``\xNN`` and the like for all that is not printable or not UTF-8."""
    if isinstance(text, bytes):
        text = text.decode(errors="backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )

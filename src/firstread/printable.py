# SPDX-License-Identifier: Apache-2.0
"""Makes foreign names and texts fit for a terminal.

An image chooses the names of its files, and a file name may hold anything but a slash and a zero
byte. Invariant: the result is one line, and moves no cursor.
"""

from __future__ import annotations


def printable(text: str | bytes) -> str:
    r"""Return `text` with ``\xNN`` and the like for everything unprintable or not UTF-8."""
    if isinstance(text, bytes):
        text = text.decode(errors="backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )

# SPDX-License-Identifier: Apache-2.0
"""What is written for a container as JSON: its record, and what the runtime is told.

Owns the encoding and the mode of the file: secrets are in some of these. Invariant: bytes of the
command line that are not text, which JSON cannot hold, are an error that names them.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from firstread.errors import UsageError
from firstread.printable import printable


def to_json(document: object) -> bytes:
    """Return `document` as JSON.

    Raises:
        UsageError: a text in it is not UTF-8.
    """
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError as exc:
        raise UsageError(f"not UTF-8: '{printable(_typed(exc.object))}'") from exc


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, over an older one.

    Raises:
        OSError: the disk refuses.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)


def _typed(text: str) -> bytes:
    """Return a text as the bytes that were typed; an image's JSON can have worse than those."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace")

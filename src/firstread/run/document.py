# SPDX-License-Identifier: Apache-2.0
"""JSON documents of a container: its record, and the runtime's configuration.

Owns the encoding. Invariant: an argument that is not text, and so cannot be in JSON, raises an
error that names it.
"""

from __future__ import annotations

import os

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


def _typed(text: str) -> bytes:
    """Return a text as the bytes that the user typed; an image's JSON can contain worse."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace")

# SPDX-License-Identifier: Apache-2.0
"""What is written for a container as JSON: its record, and the runtime's configuration.

Owns the encoding. Invariant: bytes of the command line that are not text, which JSON cannot hold,
are an error that names them.
"""

from __future__ import annotations

import msgspec

from firstread.errors import UsageError


def to_json(document: object) -> bytes:
    """Return `document` as JSON.

    Raises:
        UsageError: a text in it is not UTF-8.
    """
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError as exc:
        raise UsageError(f"not UTF-8: {exc.object!r}") from exc

# SPDX-License-Identifier: Apache-2.0
"""``Content-Encoding`` of answers that are kept in memory.

We ask for none, but some proxies compress whatever is JSON. A digest is that of the decoded bytes.
Pure. Invariant: nothing takes more memory than the limit.
"""

from __future__ import annotations

import zlib
from typing import Final

from firstread.errors import LimitError, TransportError

_GZIP: Final = b"\x1f\x8b"
_GZIP_ONLY: Final = 16 + zlib.MAX_WBITS  # for zlib


def decoded(data: bytes, encoding: str, limit: int) -> bytes:
    """Return the body of an answer; as it is, if it is not compressed or not with gzip.

    Args:
        data: as it came.
        encoding: the header.
        limit: bytes at most.

    Raises:
        LimitError: it has more.
        TransportError: it is damaged, or breaks off.
    """
    if encoding.strip().lower() not in ("gzip", "x-gzip") or not data.startswith(_GZIP):
        return data
    decoder = zlib.decompressobj(_GZIP_ONLY)
    try:
        body = decoder.decompress(data, limit + 1)
    except zlib.error as exc:
        raise TransportError("the gzip encoding of the answer is damaged") from exc
    if len(body) > limit:
        raise LimitError(f"the answer has more than {limit} bytes when it is unpacked")
    if not decoder.eof:
        raise TransportError("the gzip encoding of the answer breaks off")
    return body

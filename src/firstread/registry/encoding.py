# SPDX-License-Identifier: Apache-2.0
"""``Content-Encoding`` of answers: manifests and errors in memory, blobs on the way.

We ask for none, but some proxies compress whatever is JSON, configs included. A digest is that of
the decoded bytes. Invariant: nothing takes more memory than the limit or the buffer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

from firstread.errors import LimitError, TransportError
from firstread.units import KiB

_GZIP: Final = b"\x1f\x8b"
_GZIP_ONLY: Final = 16 + zlib.MAX_WBITS  # for zlib
_STEP: Final = 64 * KiB  # bytes of a body at a time
_DAMAGED: Final = "the gzip encoding of the answer is damaged"
_ENDLESS: Final = "the gzip encoding of the answer does not end"
_BREAKS_OFF: Final = "the gzip encoding of the answer breaks off"


def is_gzip(encoding: str) -> bool:
    """Return whether the header ``Content-Encoding`` says gzip."""
    return encoding.strip().lower() in ("gzip", "x-gzip")


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
    if not is_gzip(encoding) or not data.startswith(_GZIP):
        return data
    decoder = zlib.decompressobj(_GZIP_ONLY)
    try:
        body = decoder.decompress(data, limit + 1)
    except zlib.error as exc:
        raise TransportError(_DAMAGED) from exc
    if len(body) > limit:
        raise LimitError(f"the answer has more than {limit} bytes when it is unpacked")
    if not decoder.eof:
        raise TransportError(_BREAKS_OFF)
    return body


class Unpacked:
    """The decoded bytes of a body with the encoding gzip.

    Args:
        read: reads the next bytes of the body to the beginning of a buffer; returns their number,
            0 at the end.
        size: bytes that it has without the encoding, which adds a little at most.
    """

    def __init__(self, read: Callable[[memoryview], int], size: int) -> None:
        self._read = read
        self._left = 2 * size + _STEP  # bytes of the body; empty blocks could go on for ever
        self._decoder = zlib.decompressobj(_GZIP_ONLY)
        self._step = memoryview(bytearray(_STEP))

    def readinto(self, buffer: memoryview) -> int:
        """Read the next bytes to the beginning of `buffer`; return their number, 0 at the end.

        Raises:
            TransportError: the encoding is damaged, breaks off, or does not end.
        """
        packed: bytes | memoryview = self._decoder.unconsumed_tail
        while not self._decoder.eof:
            try:
                data = self._decoder.decompress(packed, len(buffer))
            except zlib.error as exc:
                raise TransportError(_DAMAGED) from exc
            if data:
                buffer[: len(data)] = data
                return len(data)
            if self._decoder.eof:
                break
            packed = self._step[: self._read(self._step)]
            self._left -= len(packed)
            if not packed or self._left < 0:
                raise TransportError(_BREAKS_OFF if not packed else _ENDLESS)
        return 0

# SPDX-License-Identifier: Apache-2.0
"""The body of a request to one of our HTTP servers, which http.server leaves to its user.

Owns its framing: RFC 9112, sections 6.2 and 7.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Final

from firstread.testing.httpfaults import HangUpError
from firstread.units import KiB

READ_BYTES: Final = 256 * KiB  # at a time


class RequestBody:
    """The body of a request, of a stated length or in chunks.

    Args:
        handler: has read the head of the request.

    Attributes:
        unread: there is more of it.
    """

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._file = handler.rfile
        self._chunked = handler.headers.get("Transfer-Encoding") == "chunked"
        self._left = int(handler.headers.get("Content-Length") or 0)  # of the chunk, if it has such
        self.unread = self._chunked or self._left > 0

    def read(self, most: int) -> bytes:
        """Return the next bytes, `most` at most; none at the end.

        Raises:
            HangUpError: the client has hung up.
        """
        if self._chunked and self.unread and not self._left:
            self._begin_chunk()
        data = self._file.read(min(most, self._left))
        if len(data) < min(most, self._left):
            raise HangUpError
        self._left -= len(data)
        if data and not self._left:
            if self._chunked:
                self._file.readline()
            else:
                self.unread = False
        return data

    def whole(self, most: float = math.inf) -> bytes:
        """Return all that is left, or as much of it. Raises HangUpError, as `read`."""
        content = bytearray()
        while len(content) < most and (
            data := self.read(int(min(READ_BYTES, most - len(content))))
        ):
            content += data
        return bytes(content)

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(READ_BYTES), b"")

    def _begin_chunk(self) -> None:
        try:
            self._left = int(self._file.readline(32), 16)
        except ValueError:
            raise HangUpError from None
        if not self._left:
            self._file.readline()
            self.unread = False

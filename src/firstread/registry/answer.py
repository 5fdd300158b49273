# SPDX-License-Identifier: Apache-2.0
"""Answers to requests: read whole, bounded in size and time, or given back.

Owns the end of an exchange. Invariant: every answer is read to its end or its connection is closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import urllib3
from urllib3.exceptions import HTTPError

from firstread.errors import LimitError, SourceError, TransportError
from firstread.registry.calls import within
from firstread.registry.encoding import decoded
from firstread.registry.endpoint import follow, shown
from firstread.registry.faults import from_exception
from firstread.units import KiB, MiB

MAX_ANSWER: Final = 4 * MiB  # bytes; of an answer that is kept in memory, such as a manifest
DRAIN_S: Final = 2.0  # seconds for what nobody reads; else the connection is closed
_DRAIN: Final = 64 * KiB  # bytes; less is read to its end, to keep the connection


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Args:
        status: HTTP status.
        headers: case does not matter.
        data: the body.
        url: that answered, after redirects.
    """

    status: int
    headers: Mapping[str, str]
    data: bytes
    url: str

    def location(self, otherwise: str = "") -> str:
        """Return where the answer points to, as a whole URL.

        Args:
            otherwise: this, if it points nowhere.

        Raises:
            SourceError: it points nowhere.
        """
        target = self.headers.get("Location", "") or otherwise
        if not target:
            raise SourceError(f"registry {shown(self.url)}: its answer has no Location")
        return follow(self.url, target)


def read_whole(response: urllib3.BaseHTTPResponse, what: str, url: str, seconds: float) -> bytes:
    """Return the body of an answer, and give its connection back.

    Args:
        response: the answer.
        what: is being done, for messages: ``"cannot …"``.
        url: that gave it.
        seconds: that all of it may take.

    Raises:
        TransportError: it ends before the length that was announced, or takes too long.
        LimitError: it has more than `MAX_ANSWER` bytes.
    """
    try:
        with within(seconds):
            try:
                data = response.read(MAX_ANSWER + 1)
            except (HTTPError, OSError) as exc:
                raise from_exception(exc, url) from exc
    finally:
        left = getattr(response, "length_remaining", None)
        release(response)
    if len(data) > MAX_ANSWER:
        raise LimitError(f"{what}: the answer has more than {MAX_ANSWER} bytes")
    if left:  # urllib3 says so only to a caller that reads on
        raise TransportError(
            f"{what}: the answer of {shown(url)} broke off, {left} bytes are missing"
        )
    return decoded(data, response.headers.get("Content-Encoding", ""), MAX_ANSWER)


def release(response: urllib3.BaseHTTPResponse) -> None:
    """Give the connection back: reused if little of the body is left, else closed."""
    left = getattr(response, "length_remaining", None)
    if left is not None and left <= _DRAIN:
        with within(DRAIN_S):
            response.drain_conn()
        response.release_conn()
    else:
        response.close()

# SPDX-License-Identifier: Apache-2.0
"""What ``firstread events`` tells (docs/json.md)."""

from __future__ import annotations

import time
from typing import Final

from msgspec import field

from firstread.documents import Bytes, Digest, Document, Moment, SectorName


class Happening(Document, kw_only=True, tag_field="event"):
    """Something that happens.

    time: when
    """

    time: Moment = field(default_factory=time.time)


class ReadWaits(Happening, kw_only=True, tag="read"):
    """A read waits for a sector that is not here.

    image: of the manifest
    sector: that it wants
    offset, bytes: in the sector, what the kernel wants
    pid: who reads
    """

    image: Digest
    sector: SectorName
    offset: Bytes
    bytes: Bytes
    pid: int


class RequestSent(Happening, kw_only=True, tag="request"):
    """A request was sent.

    sector: the first one that it asks for
    cause: `demand`, `hot`, `prefetch`, `completion` or `background`
    bytes: asked for
    """

    sector: SectorName
    cause: str
    bytes: Bytes


class SectorPresent(Happening, kw_only=True, tag="present"):
    """A sector is whole.

    sector: that is
    cause: `demand`, `hot`, `prefetch`, `completion` or `background`
    source: who gave it
    """

    sector: SectorName
    cause: str
    source: str


class FetchFailed(Happening, kw_only=True, tag="error"):
    """A fetch or a read failed.

    sector: that was wanted
    error: why
    """

    sector: SectorName
    error: str


class EndpointChanged(Happening, kw_only=True, tag="endpoint"):
    """An endpoint of a registry rests, or works again.

    endpoint, registry: which, and whose content it serves
    state: `rests` or `healthy`
    error: why it rests
    """

    endpoint: str
    registry: str
    state: str
    error: str | None


KINDS: Final[dict[str, type[Happening]]] = {
    "read": ReadWaits,
    "request": RequestSent,
    "present": SectorPresent,
    "error": FetchFailed,
    "endpoint": EndpointChanged,
}
"""By what the field ``event`` says."""

# SPDX-License-Identifier: Apache-2.0
"""The document of what happened to one image (docs/json.md): `firstread.fetch.history` makes it.

Apart from that: commands that read a daemon's answers load no fetcher.
"""

from __future__ import annotations

from firstread.documents import Bytes, Document, Moment, Seconds


class ReadWaited(Document):
    """A read that waited, and was answered.

    at: when it came, in seconds since `began`
    seconds: that it waited
    sector: its device slot
    offset, bytes: in the sector
    """

    at: Seconds
    seconds: Seconds
    sector: int
    offset: Bytes
    bytes: Bytes


class RequestMade(Document):
    """A request for sectors.

    at: when it was sent, in seconds since `began`
    seconds: until the last of its bytes so far
    sector: device slot of the first sector that it asks for
    cause: as in `requests_by_cause` of [status](#status)
    bytes: asked for, compressed
    received: of them
    """

    at: Seconds
    seconds: Seconds
    sector: int
    cause: str
    bytes: Bytes
    received: Bytes


class SectorCame(Document):
    """A sector, in order of device slots.

    size: uncompressed
    compressed: size in its blob
    filled: bytes that are on this node
    cause: why it came; null if it has not come since `began`
    at: when it was whole, in seconds since `began`
    """

    size: Bytes
    compressed: Bytes
    filled: Bytes
    cause: str | None
    at: Seconds | None


class Step(Document):
    """A step of a start.

    name: `resolve`, `metadata`, `mount`, …
    at: when it began, in seconds since `began`
    seconds: that it took
    """

    name: str
    at: Seconds
    seconds: Seconds


class ImageHistory(Document):
    """What happened to an image.

    began: when somebody asked for its first mount, or a fetcher took it over
    elapsed: since then
    steps: of the first mount; none if a fetcher took it over
    reads: that waited, in order of their answers
    requests: in order
    lost: reads and requests that the record had no room for
    """

    began: Moment
    elapsed: Seconds
    steps: list[Step]
    reads: list[ReadWaited]
    requests: list[RequestMade]
    sectors: list[SectorCame]
    lost: int

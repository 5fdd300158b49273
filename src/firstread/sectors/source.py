# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of sectors come from, whatever format keeps them.

Owns the seam between what asks for frames (a lane, a reader without a mount) and what knows where
they lie. `plan` says which ranges of which blobs give some frames of a sector; `decode` turns the
bytes of such a range into frames while they arrive. Sectors in our own format
(`firstread.sectors.native`) are the first source. A source with frames of other sizes, or in other
blobs, gives other ranges, and several where they do not lie side by side.

Invariant: a frame that leaves `decode` is verified.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

from firstread.errors import TransportError
from firstread.oci.blobstream import BlobStream
from firstread.oci.model import Descriptor
from firstread.oci.repository import Repository
from firstread.sectors.format import Geometry, SectorEntry, compress_bound

Measure = Callable[[int, float], None]
"""Told how many bytes have come, and the seconds that they took."""


class Span(NamedTuple):
    """The bytes `start` to `stop` of a blob: what one request asks for."""

    blob: Descriptor
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class Wanted(NamedTuple):
    """A sector, and where its bytes are.

    Args:
        entry: row of the sector index.
        blob: descriptor of its blob.
        geometry: of the image.
    """

    entry: SectorEntry
    blob: Descriptor
    geometry: Geometry

    @property
    def span(self) -> Span:
        """All of its bytes; sectors whose spans touch can come in one request."""
        return Span(self.blob, self.entry.offset, self.entry.offset + self.entry.length)


class Frame(NamedTuple):
    """A verified frame of a sector, or several that lie side by side; see `Incoming.step`.

    Args:
        number: of the first in its sector.
        offset: of its first byte in the sector.
        data: valid until the next frames are asked for.
    """

    number: int
    offset: int
    data: memoryview


class Decoding(Protocol):
    """The progress of a sector, from one request for it to the next."""

    @property
    def verified(self) -> int:
        """Where in the sector the frame ends that was given out last, in bytes."""

    @property
    def done(self) -> bool:
        """Whether that was the last frame of the sector."""

    @property
    def suspect(self) -> tuple[int, bytes]:
        """Bytes that were refused, and where among the compressed ones they begin."""


D = TypeVar("D", bound=Decoding)


class Window:
    """Memory for frames, compressed and plain; grows to the largest that was asked for."""

    def __init__(self) -> None:
        self.stored = bytearray()
        self.frame = bytearray()

    def fit(self, geometry: Geometry, size: int, step: int = 0) -> None:
        """Have room for the frame table, and for each frame, of a sector of `size` bytes.

        Also for `step` bytes of frames, compressed or plain.
        """
        stored = max(geometry.table_size(size), compress_bound(geometry.frame_size), step)
        if len(self.stored) < stored:
            self.stored = bytearray(stored)
        plain = max(geometry.frame_size, step)
        if len(self.frame) < plain:
            self.frame = bytearray(plain)


class Incoming:
    """The bytes of one request, as they arrive. A context manager.

    Args:
        stream: gives the bytes; closed with this.
        span: that was asked for.
        window: memory of the thread that decodes.
        measure: told how fast they come.

    Attributes:
        blob: that they are of.
        position: of the next byte in it.
        step: bytes of whole frames that are taken, and given out, at once; 0 for one frame.
    """

    def __init__(
        self,
        stream: BlobStream,
        span: Span,
        window: Window,
        measure: Measure = lambda _count, _seconds: None,
    ) -> None:
        self.stream = stream
        self.window = window
        self.blob, self.position, self.step = span.blob, span.start, 0
        self._stop = span.stop
        self._measure = measure
        self._unmeasured = stream.at_hand

    @property
    def left(self) -> int:
        """How many bytes are still to come."""
        return self._stop - self.position

    @property
    def source(self) -> str:
        """Name of the endpoint of the last bytes; ``""`` if there is only one."""
        return self.stream.source

    def received(self, count: int, wanted: int, seconds: float) -> None:
        """Note what a read of `stream` gave. Raises TransportError if it is less than `wanted`."""
        if count < wanted:
            raise TransportError("the answer ended before the sector did")
        if self._unmeasured <= 0:
            self._measure(count, seconds)
        self._unmeasured -= count
        self.position += count

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


class Source(ABC, Generic[D]):
    """Sectors of the images in one repository. Safe for threads, each with a window of its own.

    Args:
        repository: where they are; closed with the source.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    @abstractmethod
    def begin(self, sector: Wanted) -> D:
        """Return the decoding of a sector of which nothing is known yet."""

    @abstractmethod
    def covering(self, sector: Wanted, start: int, stop: int) -> range:
        """Return the numbers of the frames that have the bytes `start` to `stop` of a sector."""

    @abstractmethod
    def plan(self, sector: Wanted, frames: Iterable[int], known: D) -> list[Span]:
        """Return the ranges of blobs that give some frames of a sector. Pure.

        They may give other frames as well, and too little as long as little is known of the sector:
        then plan again for what is missing.

        Args:
            sector: which.
            frames: their numbers.
            known: of the sector; a decoding that rests in a frame goes on there.
        """

    @abstractmethod
    def decode(self, sector: Wanted, known: D, incoming: Incoming) -> Iterator[Frame]:
        """Yield the frames of a sector that come next in the bytes of a range.

        Ends with the sector or with the range. Then the decoding rests, and the same or another
        range continues it.

        Raises:
            ImageError: the bytes are not this sector.
            SourceError: no more of them can be had; the decoding rests.
        """

    def open(self, span: Span, window: Window, measure: Measure | None = None) -> Incoming:
        """Ask for a range. As `Repository.open_blob`."""
        stream = self._repository.open_blob(span.blob, offset=span.start, length=span.length)
        return Incoming(stream, span, window, *([measure] if measure else []))

    def prepare(self, blobs: Iterable[Descriptor]) -> None:
        """As `Repository.prepare`."""
        self._repository.prepare(blobs)

    def frames(
        self, sector: Wanted, frames: Iterable[int], *, few: bool = False
    ) -> Iterator[Frame]:
        """Yield some frames of a sector, each once, in the order in which they lie.

        Args:
            sector: which.
            frames: their numbers.
            few: there are so few that it pays to find out first where they lie.

        Raises:
            ImageError: the bytes in the repository are not this sector.
            SourceError: it does not give them.
        """
        window, known, missing = Window(), self.begin(sector), set(frames)
        asked: list[int] = [] if few else sorted(missing)
        while missing:
            for span in self.plan(sector, asked, known):
                with self.open(span, window) as incoming:
                    for frame in self.decode(sector, known, incoming):
                        if frame.number in missing:
                            missing.discard(frame.number)
                            yield frame
            asked = sorted(missing)

    def close(self) -> None:
        """Close the repository."""
        self._repository.close()

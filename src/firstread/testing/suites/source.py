# SPDX-License-Identifier: Apache-2.0
"""What every repository that is read, and every source of sectors, must do.

A test class derives from `SourceSuite`, or from `RemoteSourceSuite` where bytes cross a network,
and gives the fixture ``shelf``: where the repository under test has its blobs.
"""

from __future__ import annotations

import io
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from firstread.errors import (
    DigestError,
    FirstreadError,
    ImageError,
    LimitError,
    NotFoundError,
    TransportError,
    UnsupportedError,
    UsageError,
)
from firstread.oci.blobstream import BlobStream
from firstread.oci.model import DOCKER_FOREIGN_LAYER, OCI_LAYER, Descriptor, describe
from firstread.oci.repository import Repository
from firstread.registry.calls import Call, calling
from firstread.sectors.format import Geometry
from firstread.sectors.native import NativeSource
from firstread.sectors.source import Span, Wanted, Window
from firstread.testing.memorysource import make_sectors
from firstread.testing.patience import PATIENCE_S
from firstread.units import KiB

DATA: Final = random.Random(1).randbytes(1_300_000)  # more than two chunks
FRAME: Final = 4 * KiB
FRAMES: Final = 16  # of a sector
SECTORS: Final = make_sectors(3, size=FRAMES * FRAME, geometry=Geometry(FRAMES * FRAME, FRAME))


class Shelf(ABC):
    """Where the repository under test has its blobs."""

    @abstractmethod
    def keep(self, data: bytes) -> Descriptor:
        """Put a blob there. All are put before `open`."""

    @abstractmethod
    def replace(self, blob: Descriptor, data: bytes) -> None:
        """Give a blob other bytes under its old name."""

    @abstractmethod
    def open(self) -> Repository:
        """Open the repository for reading."""


class RemoteShelf(Shelf):
    """A shelf at the other end of a network."""

    @abstractmethod
    def script(self, script: str) -> None:
        """Have the server fail; see `firstread.testing.httpfaults`."""


def read(
    place: Repository, blob: Descriptor, *, offset: int = 0, length: int | None = None
) -> bytes:
    """Return a range of a blob."""
    with place.open_blob(blob, offset=offset, length=length) as stream:
        return stream.readall()


def sectors_of(shelf: Shelf) -> list[Wanted]:
    """Put `SECTORS` on a shelf; return what a source needs to give them."""
    blob = shelf.keep(SECTORS.blob)
    return [sector._replace(blob=blob) for sector in SECTORS.wanted]


def frames_of(source: NativeSource, sector: Wanted, frames: Iterable[int]) -> dict[int, bytes]:
    """Return some frames by their numbers."""
    found = {}
    for frame in source.frames(sector, frames):
        assert frame.offset == frame.number * FRAME
        assert frame.number not in found
        found[frame.number] = bytes(frame.data)
    return found


def expected(number: int, frames: Iterable[int]) -> dict[int, bytes]:
    """Return some frames of a sector of `SECTORS` by their numbers."""
    content = SECTORS.contents[number]
    return {frame: content[frame * FRAME : (frame + 1) * FRAME] for frame in frames}


def frames_before_an_error(source: NativeSource, sector: Wanted) -> dict[int, bytes]:
    """Return the frames that come before the sector turns out to be another."""
    left: dict[int, bytes] = {}
    try:
        for frame in source.frames(sector, range(FRAMES)):
            left[frame.number] = bytes(frame.data)
    except ImageError:
        return left
    raise AssertionError("nobody has noticed")


RANGES = [
    pytest.param(0, None, id="whole"),
    pytest.param(0, len(DATA), id="whole-by-length"),
    pytest.param(0, 10, id="start"),
    pytest.param(7, 100_000, id="middle-unaligned"),
    pytest.param(524_288, 524_288, id="middle-aligned"),
    pytest.param(1_000_000, None, id="to-the-end"),
    pytest.param(len(DATA) - 1, 1, id="last-byte"),
    pytest.param(len(DATA) - 10, 4096, id="cut-at-the-end"),
    pytest.param(0, 1 << 40, id="much-too-long"),
    pytest.param(5, 0, id="empty"),
    pytest.param(len(DATA), None, id="empty-at-the-end"),
]


class SourceSuite:
    """The cases for whatever can be read."""

    # -- blobs and their ranges ----------------------------------------------------------------

    @pytest.mark.parametrize(("offset", "length"), RANGES)
    def test_ranges(self, shelf: Shelf, offset: int, length: int | None) -> None:
        blob = shelf.keep(DATA)
        wanted = DATA[offset:] if length is None else DATA[offset : offset + length]
        with (
            shelf.open() as place,
            place.open_blob(blob, offset=offset, length=length) as stream,
        ):
            assert stream.length == len(wanted)
            assert stream.readall() == wanted
            assert stream.read(1) == b""

    def test_a_range_outside_of_the_blob(self, shelf: Shelf) -> None:
        blob = shelf.keep(DATA)
        with shelf.open() as place:
            for offset, length in ((len(DATA) + 1, None), (-1, None), (0, -1)):
                with pytest.raises(UsageError):
                    place.open_blob(blob, offset=offset, length=length)

    def test_reading_into_the_callers_memory(self, shelf: Shelf) -> None:
        blob = shelf.keep(DATA)
        buffer = bytearray(300_000)
        with shelf.open() as place:
            with place.open_blob(blob) as stream:
                got = [stream.readinto(memoryview(buffer)) for _ in range(6)]
            assert got == [300_000] * 4 + [100_000, 0]
            assert buffer[:100_000] == DATA[-100_000:]
            with io.BufferedReader(place.open_blob(blob)) as file:
                assert file.read(10) + file.read() == DATA
            with place.open_blob(blob) as stream:
                assert b"".join(stream) == DATA

    def test_an_empty_blob(self, shelf: Shelf) -> None:
        blob = shelf.keep(b"")
        with shelf.open() as place, place.open_blob(blob) as stream:
            assert list(stream) == []
            assert stream.readall() == b""

    def test_a_stream_says_what_it_is(self, shelf: Shelf) -> None:
        blob = shelf.keep(DATA)
        with shelf.open() as place, place.open_blob(blob) as stream:
            assert isinstance(stream, BlobStream)
            assert stream.readable()
            assert not stream.seekable()
            assert stream.blob == blob
            assert repr(place).endswith(f"{place.reference}>")

    def test_concurrent_readers(self, shelf: Shelf) -> None:
        blob = shelf.keep(DATA)
        with shelf.open() as place, ThreadPoolExecutor(8) as threads:

            def right(number: int) -> bool:
                start = number * 6007
                return read(place, blob, offset=start, length=5000) == DATA[start : start + 5000]

            assert all(threads.map(right, range(200)))

    def test_closing_in_the_middle(self, shelf: Shelf) -> None:
        blob = shelf.keep(DATA)
        with shelf.open() as place:
            for count in (0, 1, 100_000, len(DATA) - 1):
                stream = place.open_blob(blob)
                assert stream.read(count) == DATA[:count]
                stream.close()
                stream.close()
                with pytest.raises(ValueError, match="closed"):
                    stream.read(1)
            assert read(place, blob) == DATA
            place.close()  # and once more with the context

    def test_missing_things_are_errors(self, shelf: Shelf) -> None:
        blob, missing = shelf.keep(DATA), describe(b"missing", OCI_LAYER)
        with shelf.open() as place:
            assert place.has_blob(blob)
            assert not place.has_blob(missing)
            with pytest.raises(NotFoundError) as caught:
                place.open_blob(missing)
            assert missing.digest in str(caught.value)
            assert caught.value.image == str(place.reference)
            with pytest.raises(UnsupportedError, match="not distributable"):
                place.open_blob(describe(b"windows", DOCKER_FOREIGN_LAYER + ".gzip"))
            with pytest.raises(NotFoundError):
                place.get_manifest(missing.digest)
            with pytest.raises(LimitError):
                place.read_blob(blob, 1000)

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(DATA[:500_000] + b"?" + DATA[500_001:], id="a-byte"),
            pytest.param(DATA[:-5], id="too-short"),
            pytest.param(DATA + b"more", id="too-long"),
            pytest.param(b"", id="empty"),
        ],
    )
    def test_a_damaged_blob(self, shelf: Shelf, data: bytes) -> None:
        blob = shelf.keep(DATA)
        shelf.replace(blob, data)
        with shelf.open() as place, pytest.raises(DigestError) as caught:
            place.read_blob(blob, len(DATA))
        assert caught.value.image == str(place.reference)
        assert blob.digest in caught.value.message

    def test_a_descriptor_that_lies_about_the_size(self, shelf: Shelf) -> None:
        blob = shelf.keep(DATA)
        for size in (len(DATA) - 1, len(DATA) + 1):
            lie = Descriptor(media_type=blob.media_type, digest=blob.digest, size=size)
            with shelf.open() as place, pytest.raises(DigestError):
                place.read_blob(lie, 1 << 30)

    def test_a_range_that_the_blob_does_not_have(self, shelf: Shelf) -> None:
        blob = shelf.keep(DATA)
        shelf.replace(blob, DATA[:1000])
        with shelf.open() as place, pytest.raises(DigestError):
            read(place, blob, offset=2000, length=10)

    # -- sectors -------------------------------------------------------------------------------

    def test_sectors(self, shelf: Shelf) -> None:
        wanted = sectors_of(shelf)
        with shelf.open() as place:
            for number, sector in enumerate(wanted):
                found = frames_of(NativeSource(place), sector, range(FRAMES))
                assert found == expected(number, range(FRAMES))

    def test_frames_in_any_order(self, shelf: Shelf) -> None:
        sector, window, numbers = sectors_of(shelf)[1], Window(), list(range(FRAMES))
        random.Random(1).shuffle(numbers)
        with shelf.open() as place:
            source = NativeSource(place)
            for some in ([15], [0], [3, 4, 9], [14, 15]):
                assert frames_of(source, sector, some) == expected(1, some)
            known = source.begin(sector)
            for number in [0, *numbers]:  # after the first the table is known
                found = {}
                for span in source.plan(sector, [number], known):
                    with source.open(span, window) as incoming:
                        for frame in source.decode(sector, known, incoming):
                            found[frame.number] = bytes(frame.data)
                assert found[number] == expected(1, [number])[number]

    def test_decoding_rests_anywhere_and_goes_on(self, shelf: Shelf) -> None:
        sector, window = sectors_of(shelf)[2], Window()
        with shelf.open() as place:
            source = NativeSource(place)
            for step in (1000, 3333, 10_000):
                known, content = source.begin(sector), b""
                while not known.done:
                    span = source.plan(sector, range(known.number, FRAMES), known)[0]
                    part = Span(span.blob, span.start, min(span.stop, span.start + step))
                    with source.open(part, window) as incoming:
                        for frame in source.decode(sector, known, incoming):
                            content += frame.data
                assert content == SECTORS.contents[2]

    def test_wrong_bytes_never_leave(self, shelf: Shelf) -> None:
        sector = sectors_of(shelf)[1]
        entry = sector.entry
        numbers = random.Random(2)
        for _ in range(12):
            damaged = bytearray(SECTORS.blob)
            damaged[entry.offset + numbers.randrange(entry.length)] ^= 1 << numbers.randrange(8)
            shelf.replace(sector.blob, bytes(damaged))
            with shelf.open() as place:
                left = frames_before_an_error(NativeSource(place), sector)
            assert left == expected(1, left)

    def test_a_blob_that_ends_in_a_sector(self, shelf: Shelf) -> None:
        sector = sectors_of(shelf)[2]
        shelf.replace(sector.blob, SECTORS.blob[: sector.entry.offset + sector.entry.length // 2])
        with shelf.open() as place, pytest.raises(ImageError):
            frames_of(NativeSource(place), sector, range(FRAMES))

    def test_concurrent_sectors(self, shelf: Shelf) -> None:
        wanted = sectors_of(shelf)
        with shelf.open() as place, ThreadPoolExecutor(8) as threads:
            source = NativeSource(place)

            def right(at: int) -> bool:
                some = range(at % FRAMES, FRAMES, 3)
                found = frames_of(source, wanted[at % 3], some)
                return found == expected(at % 3, some)

            assert all(threads.map(right, range(60)))


BREAKS = [
    pytest.param("hangup 0", id="no-body"),
    pytest.param("hangup 70000", id="broken-off"),
    pytest.param("short 7", id="short"),
    pytest.param("short 100000", id="very-short"),
    pytest.param("status 500", id="server-error"),
    pytest.param("status 503 Retry-After=0", id="busy"),
    pytest.param("wrong-range", id="another-range"),
    pytest.param("wrong-content-range", id="of-another-range"),
]


class RemoteSourceSuite(SourceSuite):
    """The cases for bytes that cross a network; the shelf is a `RemoteShelf`."""

    @pytest.mark.parametrize("fault", BREAKS)
    def test_a_range_resumes_at_the_next_byte(self, shelf: RemoteShelf, fault: str) -> None:
        blob = shelf.keep(DATA)
        with shelf.open() as place:
            shelf.script(f"GET /blobs/ {fault} x2")
            assert read(place, blob, offset=1000, length=400_000) == DATA[1000:401_000]

    @pytest.mark.parametrize("fault", BREAKS[:2])
    def test_a_whole_blob_is_verified_over_all_its_parts(
        self, shelf: RemoteShelf, fault: str
    ) -> None:
        blob = shelf.keep(DATA)
        with shelf.open() as place:
            shelf.script(f"GET /blobs/ {fault} x2")
            assert read(place, blob) == DATA

    def test_frames_survive_what_a_range_survives(self, shelf: RemoteShelf) -> None:
        sector = sectors_of(shelf)[1]
        with shelf.open() as place:
            shelf.script("GET /blobs/ hangup 5000 x3")
            found = frames_of(NativeSource(place), sector, range(FRAMES))
        assert found == expected(1, range(FRAMES))

    def test_a_range_that_always_breaks_ends(self, shelf: RemoteShelf) -> None:
        blob = shelf.keep(DATA)
        with shelf.open() as place:
            shelf.script("GET /blobs/ hangup 0 x*")
            with pytest.raises(TransportError):
                read(place, blob, offset=10, length=1000)

    def test_a_flipped_bit_does_not_leave(self, shelf: RemoteShelf) -> None:
        sector = sectors_of(shelf)[0]
        with shelf.open() as place:
            shelf.script("GET /blobs/ flip x*")
            left = frames_before_an_error(NativeSource(place), sector)
            assert left == expected(0, left)

    def test_cancelling(self, shelf: RemoteShelf) -> None:
        """A reader of bytes that do not come stops soon after its call was cancelled."""
        blob, call = shelf.keep(DATA), Call()
        failed: list[FirstreadError] = []
        with shelf.open() as place:
            shelf.script("GET /blobs/ blackhole 20 x*")
            waits = threading.Event()

            def wait() -> None:
                waits.set()
                try:
                    with calling(call):
                        read(place, blob, offset=10, length=1000)
                except FirstreadError as exc:
                    failed.append(exc)

            thread = threading.Thread(target=wait)
            thread.start()
            assert waits.wait(PATIENCE_S)
            call.cancel()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert isinstance(failed[0], TransportError)

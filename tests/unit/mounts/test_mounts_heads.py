# SPDX-License-Identifier: Apache-2.0
"""First bytes of a blob that are asked for early are those of the blob, whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from firstread.errors import TransportError
from firstread.mounts import heads as heads_module
from firstread.mounts.headed import HeadedRepository
from firstread.mounts.heads import Head, Heads, asking
from firstread.oci.blobstream import BlobStream
from firstread.oci.model import Descriptor
from firstread.registry.calls import current
from firstread.sectors.source import Incoming, Span, Window
from firstread.testing.machine import until
from firstread.testing.memorysource import MemorySource, Sectors, make_sectors
from firstread.testing.patience import PATIENCE_S

SECTORS = make_sectors(8)
BLOB = SECTORS.wanted[0].blob
DATA = SECTORS.blob
LENGTH = 128 * 1024  # of a head
KEY = "repository and access"


class Registry(MemorySource):
    """Notes what is asked for; the first answer breaks off where it is told to."""

    def __init__(self, sectors: Sectors, breaks_at: int | None = None) -> None:
        super().__init__(sectors)
        self.asked: list[tuple[int, int]] = []
        self.events: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self._breaks_at = breaks_at

    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        stream = super().open_blob(blob, offset=offset, length=length)
        self.asked.append((offset, offset + stream.length))
        breaks_at, self._breaks_at = self._breaks_at, None
        return _Gated(self, stream, breaks_at)


class _Gated(BlobStream):
    def __init__(self, registry: Registry, stream: BlobStream, breaks_at: int | None) -> None:
        super().__init__(stream.blob, stream, length=stream.length, verify=False, image="")
        self._registry, self._ends = registry, breaks_at
        self._given = 0

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        self._registry.events.append("read")
        self._registry.go_on.wait()
        if self._ends is not None:
            buffer = buffer[: max(0, self._ends - self._given)]
            if not buffer:
                raise TransportError("the connection is cut")
        count = super().readinto(buffer)
        self._given += count
        return count

    @property
    def source(self) -> str:
        return "registry"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads_module, "MOST_BYTES", LENGTH)
    monkeypatch.setattr(heads_module, "STEP", 4096)


@pytest.fixture
def heads() -> Iterator[Heads]:
    made = Heads()
    yield made
    if (head := made.find(KEY, BLOB)) is not None:
        head.release()


def eventually(condition: Callable[[], object]) -> None:
    until(condition, PATIENCE_S)


def begun(heads: Heads, registry: Registry) -> Head:
    head = heads.begin(KEY, BLOB, registry)
    assert head is not None
    head.let()
    return head


def all_here(head: Head) -> None:
    eventually(lambda: head.come == head.length)


def read(repository: HeadedRepository, start: int, stop: int) -> bytes:
    with repository.open_blob(BLOB, offset=start, length=stop - start) as stream:
        return stream.readall()


@pytest.mark.parametrize(
    ("start", "stop", "asked"),
    [
        (0, 1000, []),
        (0, LENGTH, []),
        (5000, LENGTH + 1, [(LENGTH, LENGTH + 1)]),
        (0, len(DATA), [(LENGTH, len(DATA))]),
        (LENGTH, LENGTH + 5000, [(LENGTH, LENGTH + 5000)]),
    ],
)
def test_a_range_comes_from_the_head_as_far_as_that_reaches(
    heads: Heads, start: int, stop: int, asked: list[tuple[int, int]]
) -> None:
    registry = Registry(SECTORS)
    all_here(begun(heads, registry))
    assert read(HeadedRepository(registry, heads, KEY), start, stop) == DATA[start:stop]
    assert registry.asked == [(0, LENGTH), *asked]


def test_reading_the_last_byte_of_a_head_frees_it(heads: Heads) -> None:
    registry = Registry(SECTORS)
    all_here(begun(heads, registry))
    repository = HeadedRepository(registry, heads, KEY)
    read(repository, 0, 1000)
    assert heads.find(KEY, BLOB) is not None
    read(repository, LENGTH - 1000, LENGTH)
    eventually(lambda: heads.find(KEY, BLOB) is None)
    assert read(repository, 0, 1000) == DATA[:1000]
    assert registry.asked == [(0, LENGTH), (0, 1000)]


@pytest.mark.parametrize("breaks_at", [0, 4096, 50_000])
def test_what_a_broken_head_lacks_is_asked_for_again(heads: Heads, breaks_at: int) -> None:
    registry = Registry(SECTORS, breaks_at)
    registry.go_on.clear()
    begun(heads, registry)
    stream = HeadedRepository(registry, heads, KEY).open_blob(BLOB, offset=0, length=len(DATA))
    registry.go_on.set()
    with stream:
        assert stream.readall() == DATA
    assert registry.asked[-1][0] <= breaks_at
    assert registry.asked[-1][1] == len(DATA)


def test_a_head_is_asked_for_at_once_and_taken_when_it_is_let(heads: Heads) -> None:
    registry = Registry(SECTORS)
    head = heads.begin(KEY, BLOB, registry)
    assert head is not None
    eventually(lambda: head.latency_s is not None)
    registry.events.append("let")
    head.let()
    all_here(head)
    assert registry.events[:2] == ["let", "read"]
    assert registry.asked == [(0, LENGTH)]


def test_a_head_that_is_released_before_it_is_let_ends(heads: Heads) -> None:
    head = heads.begin(KEY, BLOB, Registry(SECTORS))
    assert head is not None
    head.release()
    eventually(lambda: heads.find(KEY, BLOB) is None)


def test_a_reader_waits_for_bytes_on_their_way(heads: Heads) -> None:
    registry = Registry(SECTORS)
    registry.go_on.clear()
    begun(heads, registry)
    repository, got = HeadedRepository(registry, heads, KEY), list[bytes]()
    reader = threading.Thread(target=lambda: got.append(read(repository, 0, 3000)))
    reader.start()
    eventually(lambda: registry.asked == [(0, LENGTH)])
    registry.go_on.set()
    reader.join()
    assert got == [DATA[:3000]]


def test_a_range_far_beyond_what_has_come_does_not_wait_for_a_head(heads: Heads) -> None:
    registry = Registry(SECTORS)
    registry.go_on.clear()
    head = begun(heads, registry)
    assert head.serves(0)
    assert not head.serves(LENGTH // 2)
    registry.go_on.set()


def test_there_are_few_heads_and_one_of_a_blob(
    heads: Heads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads_module, "MOST_HEADS", 1)
    registry, other = Registry(SECTORS), make_sectors(1, seed=2)
    head = begun(heads, registry)
    assert heads.begin(KEY, BLOB, registry) is heads.find(KEY, BLOB) is head
    assert heads.begin(KEY, other.wanted[0].blob, Registry(other)) is None
    all_here(head)
    assert registry.asked == [(0, LENGTH)]


def test_a_head_that_nobody_takes_does_not_stay(
    heads: Heads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads_module, "KEPT_S", 0.0)
    begun(heads, Registry(SECTORS))
    eventually(lambda: heads.find(KEY, BLOB) is None)


def test_the_bytes_of_a_head_say_nothing_of_the_link(heads: Heads) -> None:
    registry, measured = Registry(SECTORS), list[int]()
    all_here(begun(heads, registry))
    repository = HeadedRepository(registry, heads, KEY)
    with Incoming(
        repository.open_blob(BLOB, offset=0, length=len(DATA)),
        Span(BLOB, 0, len(DATA)),
        Window(),
        lambda count, _: measured.append(count),
    ) as incoming:
        for size in (LENGTH, len(DATA) - LENGTH):
            assert incoming.stream.readinto(memoryview(bytearray(size))) == size
            incoming.received(size, size, 0.1)
    assert measured == [len(DATA) - LENGTH]


def test_bytes_of_a_head_have_a_source(heads: Heads) -> None:
    registry = Registry(SECTORS)
    all_here(begun(heads, registry))
    with HeadedRepository(registry, heads, KEY).open_blob(BLOB, offset=0, length=1000) as stream:
        stream.readall()
        assert stream.source == "registry"
        assert not stream.distrust()
    assert read(HeadedRepository(registry, heads, KEY), 0, 1000) == DATA[:1000]
    assert registry.asked[-1] == (0, 1000), "wrong bytes are not given again"


def test_a_head_serves_nobody_else(heads: Heads) -> None:
    wrong, registry = Registry(replace_bytes(SECTORS, 100)), Registry(SECTORS)
    heads.begin("another repository", BLOB, wrong)
    repository = HeadedRepository(registry, heads, KEY)
    assert read(repository, 0, 1000) == DATA[:1000]
    other_size = msgspec.structs.replace(BLOB, size=BLOB.size - 1)
    assert heads.find("another repository", other_size) is None
    found = heads.find("another repository", BLOB)
    assert found is not None
    found.release()


def test_wrong_bytes_before_a_break_come_once(heads: Heads) -> None:
    """The frame that they are in ends with right bytes of the registry."""
    registry = Registry(replace_bytes(SECTORS, 45_000), breaks_at=50_000)
    head = begun(heads, registry)
    eventually(lambda: head.come == 50_000)
    registry.blobs[BLOB.digest] = DATA
    repository = HeadedRepository(registry, heads, KEY)
    with repository.open_blob(BLOB, offset=0, length=60_000) as stream:
        assert stream.readall() != DATA[:60_000]
        stream.distrust()
    assert read(repository, 0, 60_000) == DATA[:60_000]


@pytest.mark.parametrize("error", [RuntimeError("no thread is left"), TransportError("gone")])
def test_a_head_that_fails_holds_up_nobody(heads: Heads, error: Exception) -> None:
    class Broken(Registry):
        def open_blob(
            self, blob: Descriptor, *, offset: int = 0, length: int | None = None
        ) -> BlobStream:
            raise error

    head = Head(BLOB)
    thread = threading.Thread(target=_quietly, args=(head, Broken(SECTORS)), daemon=True)
    thread.start()
    assert head.read(0, memoryview(bytearray(10))) == 0
    head.release()
    thread.join()
    assert not head.serves(0)


def _quietly(head: Head, registry: Registry) -> None:
    with contextlib.suppress(RuntimeError):
        head.fill(asking(registry, BLOB))


def test_a_node_without_threads_has_no_heads(heads: Heads, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    heads.begin(KEY, BLOB, Registry(SECTORS))
    assert heads.find(KEY, BLOB) is None


def test_a_head_gives_up_what_comes_too_slowly(
    heads: Heads, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float | None] = []
    monkeypatch.setattr(heads_module, "MOST_S", 7.0)

    class Timed(Registry):
        def open_blob(
            self, blob: Descriptor, *, offset: int = 0, length: int | None = None
        ) -> BlobStream:
            call = current()
            seen.append(call.until - time.monotonic() if call is not None else None)
            return super().open_blob(blob, offset=offset, length=length)

    all_here(begun(heads, Timed(SECTORS)))
    assert seen[0] is not None
    assert 0 < seen[0] <= 7.0


def replace_bytes(sectors: Sectors, place: int) -> Sectors:
    """Return sectors whose blob has one wrong byte."""
    data = bytearray(sectors.blob)
    data[place] ^= 1
    return dataclasses.replace(sectors, blob=bytes(data))

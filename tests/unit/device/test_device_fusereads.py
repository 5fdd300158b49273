# SPDX-License-Identifier: Apache-2.0
"""Reads of parts from sector files: what is read, what is asked for, how many files are open."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.device.fusereads import SectorReader
from firstread.device.pages import cached_bytes
from firstread.device.watches import Watches, make_watches
from firstread.erofs.extents import METADATA_SLOT, NO_SLOT, Extent
from firstread.errors import NodeError
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.patience import PATIENCE_S
from firstread.units import MiB

COUNT = 6
IDS = [bytes([slot]) * 32 for slot in range(COUNT)]
PARTS = [Extent(slot, slot, 10) for slot in range(COUNT)]


def content(slot: int) -> bytes:
    return bytes(range(slot, slot + 100))


class Case:
    """A reader of sectors that are present and not watched.

    Attributes:
        most: files that may stay open.
    """

    def __init__(self, scratch: Path) -> None:
        self.store = SectorStore(scratch / "store", filesystems=None)
        self.store.ensure(IDS)
        for slot, sector_id in enumerate(IDS):
            self.store.path(sector_id).write_bytes(content(slot))
        fd = make_watches(IDS)
        self.watches = Watches(fd, IDS)
        os.close(fd)
        self.most = 3
        self.reader = SectorReader(self.store, IDS, self.watches, lambda: self.most)
        self.buffer = memoryview(bytearray(10 * COUNT))

    def open_files(self) -> int:
        files = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        start = f"{self.store.root}/sectors/"
        return sum(os.path.lexists(f) and os.readlink(f).startswith(start) for f in files)


def test_a_part_may_lie_in_the_metadata(case: Case) -> None:
    def inside(offset: int, length: int) -> bytes:
        return bytes(range(offset, offset + length))

    reader = SectorReader(case.store, IDS, case.watches, lambda: 3, inside)
    parts = [Extent(METADATA_SLOT, 100, 20), Extent(2, 5, 10)]
    assert reader.read(parts, case.buffer) == []
    assert bytes(case.buffer[:30]) == inside(100, 20) + content(2)[5:15]
    reader.close()


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(tmp_path)
    yield made
    made.reader.close()
    assert made.open_files() == 0
    made.store.close()


def test_parts_come_one_behind_the_other(case: Case) -> None:
    parts = [PARTS[4], Extent(NO_SLOT, 0, 7), PARTS[1]]
    case.buffer[10:17] = b"garbage"
    assert case.reader.read(parts, case.buffer) == []
    expected = content(4)[4:14] + bytes(7) + content(1)[1:11]
    assert bytes(case.buffer[:27]) == expected


def test_a_watched_sector_is_read_only_if_allowed(case: Case) -> None:
    case.watches.set(IDS[1:3], on=True)
    assert case.reader.read(PARTS, case.buffer) == PARTS[1:3]
    assert case.reader.read(PARTS, case.buffer, {2}) == PARTS[1:2]
    assert case.reader.read(PARTS, case.buffer, {1, 2}) == []


def test_a_watched_sector_is_read_as_far_as_it_is_covered(case: Case) -> None:
    case.watches.set(IDS, on=True)
    covered = dict.fromkeys(IDS[:3], 100) | {IDS[1]: PARTS[1].start + PARTS[1].length - 1}

    def covers(sector_id: bytes, end: int) -> bool:
        return end <= covered.get(sector_id, 0)

    reader = SectorReader(case.store, IDS, case.watches, lambda: 3, covers=covers)
    os.truncate(case.store.path(IDS[2]), 5)  # since we were told
    assert reader.read(PARTS[:4], case.buffer) == PARTS[1:4]
    assert bytes(case.buffer[:10]) == content(0)[:10]
    reader.close()


def test_absent_bytes_are_asked_for_or_an_error(case: Case) -> None:
    os.truncate(case.store.path(IDS[0]), 5)
    with pytest.raises(OSError, match="not watched") as caught:
        case.reader.read(PARTS, case.buffer)
    assert caught.value.errno == errno.EIO
    case.watches.set(IDS[:1], on=True)
    assert case.reader.read(PARTS, case.buffer, {0}) == PARTS[:1]


def test_few_files_stay_open(case: Case) -> None:
    """How many depends on the mounts that there are now."""
    for most in (3, 5, 1):
        case.most = most
        case.reader.read(PARTS, case.buffer)
        assert case.open_files() == most


def test_a_reader_gives_up_its_files_for_another_one(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may have one file open only."""
    case.most = COUNT
    case.reader.read(PARTS[:2], case.buffer)
    assert case.open_files() == 2
    most, opened = 1, case.store.open

    def short(sector_id: bytes) -> int:
        if case.open_files() >= most:
            raise NodeError("cannot open the sector file")
        return opened(sector_id)

    monkeypatch.setattr(case.store, "open", short)
    assert case.reader.read(PARTS[2:4], case.buffer) == []
    assert case.open_files() == 1
    case.reader.close()
    most = 0
    with pytest.raises(NodeError, match="cannot open"):
        case.reader.read(PARTS, case.buffer)


@pytest.mark.parametrize("watched", [False, True])
def test_the_disk_begins_with_the_next_sector_for_who_reads_far_ahead(
    case: Case, *, watched: bool
) -> None:
    for slot in (0, 1, 2):
        with case.store.path(IDS[slot]).open("r+b") as file:
            file.write(bytes(MiB))
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with case.store.path(IDS[1]).open("rb") as following:
        try:
            if cached_bytes(following.fileno()):
                pytest.skip("this file system keeps all in memory")
        except OSError:
            pytest.skip("the kernel does not say what is in memory")
        case.watches.set(IDS[1:2], on=watched)
        buffer = memoryview(bytearray(MiB))
        assert case.reader.read([Extent(0, 0, 4096)], buffer) == []
        assert not cached_bytes(following.fileno())  # that was no read-ahead
        assert case.reader.read([Extent(0, 0, MiB)], buffer) == []
        deadline = time.monotonic() + PATIENCE_S
        while not watched and cached_bytes(following.fileno()) < MiB:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert cached_bytes(following.fileno()) == (0 if watched else MiB)
    with case.store.path(IDS[2]).open("rb") as other:
        assert not cached_bytes(other.fileno())


def test_a_next_sector_that_cannot_be_read_is_nobodys_error(case: Case) -> None:
    case.store.path(IDS[0]).write_bytes(bytes(MiB))
    case.store.path(IDS[1]).unlink()
    buffer = memoryview(bytearray(MiB))
    assert case.reader.read([Extent(0, 0, MiB)], buffer) == []
    last = COUNT - 1
    case.store.path(IDS[last]).write_bytes(bytes(MiB))
    assert case.reader.read([Extent(last, 0, MiB)], buffer) == []

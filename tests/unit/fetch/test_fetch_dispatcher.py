# SPDX-License-Identifier: Apache-2.0
"""The way of a read through the fetcher, when no bytes have to come. A list is the kernel."""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from firstread.cache.membership import Member
from firstread.cache.nodeimage import NodeImage
from firstread.config import CacheTable, PolicyTable
from firstread.device.base import Read
from firstread.device.fanotify import Group
from firstread.device.fanotifydevice import FanotifyDevice
from firstread.errors import NodeError
from firstread.fetch.fetcher import Fetcher
from firstread.fetch.served import Served
from firstread.registry.access import Access
from firstread.sectors.format import SectorEntry
from firstread.sectors.image import BlockImage
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.memorysource import Sectors, make_sectors


class Kernel(Group):
    """Takes answers, and has no marks."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.answers: list[tuple[int, bool]] = []

    def answer(self, number: int, *, allow: bool = True) -> bool:
        self.answers.append((number, allow))
        return True

    def mark_names(self, dirfd: int, names: Iterable[bytes]) -> None: ...

    def unmark_names(self, dirfd: int, names: Iterable[bytes]) -> None: ...

    def unmark(self, fd: int) -> None: ...


class Bench:
    """A fetcher whose first sector is present."""

    def __init__(self, root: Path, store: SectorStore) -> None:
        self.root, self.store, self.kernel = root, store, Kernel()
        self.sectors: Sectors = make_sectors(2)
        self.ids = [sector.entry.id for sector in self.sectors.wanted]
        store.ensure(self.ids)
        store.path(self.ids[0]).write_bytes(self.sectors.contents[0])
        self.told: list[int] = []
        self.fetcher = Fetcher(
            store,
            FanotifyDevice(store, self.kernel),
            self.told.extend,
            workers=1,
            policy=PolicyTable(),
            limits=CacheTable(),
        )

    def serve(
        self,
        *entries: SectorEntry,
        digest: str = "sha256:a",
        prepare: Callable[[Member], None] = lambda _: None,
    ) -> Served:
        rows = list(entries or (sector.entry for sector in self.sectors.wanted))
        first = self.sectors.wanted[0]
        index = SimpleNamespace(sectors=rows, geometry=first.geometry)
        block = cast(
            BlockImage,
            SimpleNamespace(index=index, blobs=[first.blob], hot_sectors=list, hot_note=None),
        )
        image = NodeImage(digest, self.root, block, {})
        source = digest, Access()
        return self.fetcher.serve(image, source, lambda: pytest.fail("it is all here"), prepare)

    def read(self, number: int, fd: int | None = None, sector_id: bytes = b"") -> int:
        fd = self.store.open(self.ids[0]) if fd is None else fd
        self.fetcher.handle(Read(number, 1, 0, 4096, fd, sector_id))
        return fd


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with SectorStore(tmp_path / "root", filesystems=None) as store:
        yield Bench(tmp_path, store)


def test_a_read_of_what_is_here_goes_on_at_once(bench: Bench) -> None:
    served = bench.serve()
    fd = bench.read(7)
    assert bench.kernel.answers == [(7, True)]
    assert bench.told == [7]
    assert bench.fetcher.waiting() == 0
    assert served.stats.percentile(1.0) is not None
    assert len(served.history.document([0] * len(bench.ids)).reads) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_read_of_a_sector_that_is_being_emptied_waits_for_the_end_of_that(bench: Bench) -> None:
    bench.serve()
    presence, first = bench.fetcher.presence, bench.ids[0]
    with presence.holding(first):
        assert presence.clock.condemn(first)
    bench.read(7)
    assert bench.kernel.answers == []
    assert bench.fetcher.waiting() == 1
    presence.clock.spared(first)
    bench.fetcher.again(presence.unpark(first))
    assert bench.kernel.answers == [(7, True)]


def test_a_read_that_says_its_sector_is_not_looked_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.serve()
    monkeypatch.setattr(bench.store, "id_of", lambda _: pytest.fail("it is known"))
    bench.read(7, sector_id=bench.ids[0])
    assert bench.kernel.answers == [(7, True)]


def test_a_read_of_a_mount_that_is_not_served_yet_waits_for_it(bench: Bench) -> None:
    bench.fetcher.expect(reads=True, guarded=True)
    bench.read(1)
    assert (bench.fetcher.waiting(), bench.kernel.answers) == (1, [])
    bench.serve()
    bench.read(2)  # it is served now, though others are expected
    assert bench.kernel.answers == [(2, True)]
    bench.fetcher.expect(reads=False, guarded=False)
    assert bench.kernel.answers == [(2, True), (1, True)]


def test_a_read_while_a_mount_is_taken_over_waits_for_its_doubts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sectors are whole, but nobody has checked them since the fetcher before."""
    checked: list[int] = []
    monkeypatch.setattr(bench.fetcher.checks, "read", lambda read, _: checked.append(read.number))
    bench.fetcher.expect(reads=True, guarded=True)

    def adopt(member: Member) -> None:
        bench.read(1)
        bench.fetcher.cache.mounting.adopt(member, anew=False, doubt=True)
        bench.read(2)

    bench.serve(prepare=adopt)
    bench.fetcher.expect(reads=False, guarded=False)
    assert bench.kernel.answers == []
    assert checked == [1, 2]


def test_an_image_that_cannot_be_prepared_is_not_served(bench: Bench) -> None:
    def fail(_: Member) -> None:
        raise NodeError("too many open files")

    with pytest.raises(NodeError):
        bench.serve(prepare=fail)
    assert not bench.fetcher.served()
    assert not bench.fetcher.presence.is_mounted(bench.ids[0])
    bench.serve()
    bench.read(1)
    assert bench.kernel.answers == [(1, True)]


def test_a_read_of_a_sector_that_nobody_has_fails(bench: Bench) -> None:
    served = bench.serve()
    bench.fetcher.withdraw(served)
    bench.read(1)
    assert bench.kernel.answers == [(1, False)]


def test_a_read_waits_while_this_process_is_short_of_files(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(_: int) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    bench.serve()
    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "id_of", short)
        bench.read(1)
        bench.fetcher.expire()
        assert (bench.fetcher.waiting(), bench.kernel.answers) == (1, [])
    bench.fetcher.expire()
    assert bench.kernel.answers == [(1, True)]


def test_a_read_that_has_waited_too_long_for_files_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(_: int) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    bench.serve()
    monkeypatch.setattr(bench.store, "id_of", short)
    bench.read(1)
    for read in bench.fetcher._reads.some(1):
        read.came -= PolicyTable().stall_s + 1
    bench.fetcher.expire()
    assert bench.kernel.answers == [(1, False)]


def test_after_a_freeze_nothing_is_answered_and_what_waits_is_handed_on(bench: Bench) -> None:
    bench.fetcher.expect(reads=True, guarded=True)
    bench.read(1)
    bench.serve()
    (handed,) = bench.fetcher.freeze()
    bench.fetcher.expect(reads=False, guarded=False)
    bench.read(2)
    assert bench.kernel.answers == []
    assert handed.number == 1
    assert os.pread(handed.fd, 16, 0) == bench.sectors.contents[0][:16]


def test_the_content_decides_which_size_is_right_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(bench.fetcher.checks, "decide", lambda read, _: asked.append(read.number))
    true = bench.sectors.wanted[0].entry
    bench.serve(true, digest="sha256:true")
    bench.serve(dataclasses.replace(true, size=2 * true.size), digest="sha256:liar")
    bench.read(1)
    assert (asked, bench.kernel.answers) == ([1], [])
    bench.fetcher.providers.prove(true.id, true.size)
    bench.read(2)
    assert bench.kernel.answers == [(2, True)]


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (OSError(errno.EMFILE, "Too many open files"), True),
        (RuntimeError("can't start new thread"), True),
        (MemoryError(), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (ValueError("a defect"), False),
    ],
)
def test_a_read_whose_sector_cannot_be_checked_for_a_moment_waits(
    bench: Bench, error: Exception, waits: bool
) -> None:
    bench.serve()
    event = Read(7, 1, 0, 4096, bench.store.open(bench.ids[0]), bench.ids[0])
    read = bench.fetcher._reads.take(event, time.monotonic())
    bench.fetcher._dispatcher.unchecked([read], error, bench.sectors.wanted[0])
    assert bench.kernel.answers == ([] if waits else [(7, False)])
    bench.fetcher.expire()
    assert bench.kernel.answers == [(7, waits)]


def test_a_read_waits_for_a_check_no_longer_than_for_anything_else(bench: Bench) -> None:
    bench.serve()
    came = time.monotonic() - PolicyTable().stall_s - 1
    event = Read(7, 1, 0, 4096, bench.store.open(bench.ids[0]), bench.ids[0])
    read = bench.fetcher._reads.take(event, came)
    error = OSError(errno.EMFILE, "Too many open files")
    bench.fetcher._dispatcher.unchecked([read], error, bench.sectors.wanted[0])
    assert bench.kernel.answers == [(7, False)]

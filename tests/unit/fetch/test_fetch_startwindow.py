# SPDX-License-Identifier: Apache-2.0
"""A start set is streamed as far as reads confirm it. The clock is a number; nothing is fetched."""

from __future__ import annotations

import pytest

from firstread.cache.pending import PendingRead
from firstread.fetch import startwindow
from firstread.fetch.backlog import Backlog
from firstread.fetch.queue import Cause
from firstread.fetch.rate import Rate
from firstread.fetch.startplan import decide
from firstread.fetch.startwindow import StartWindows
from firstread.sectors.source import Wanted
from firstread.testing.memorysource import make_sectors
from firstread.units import KiB, MiB

SECTORS = make_sectors(10)
SET, REST = SECTORS.wanted[2:9], SECTORS.wanted[:2]
NOW = 100.0


@pytest.fixture(autouse=True)
def two_sectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a window hold the sector that is read, and one more."""
    monkeypatch.setattr(startwindow, "WINDOW_BYTES", SET[0].entry.length + 1)


class Bench:
    """The backlog of an image with a start set; `present` sectors are on the node."""

    def __init__(self, mode: str = "hot") -> None:
        self.present: set[bytes] = set()
        self.backlog = Backlog(
            lambda sector: sector.entry.size if sector.entry.id in self.present else 0, 1.0
        )
        size = sum(sector.entry.length for sector in SET)
        plan = decide(mode, size, 2 * size, Rate(), knows_start=False)  # type: ignore[arg-type]
        self.backlog.prefetch(plan, SET, REST, NOW)

    def read(self, sector: Wanted) -> None:
        """Read a sector, and fetch it."""
        read = PendingRead(0, 1, 0, 4 * KiB, -1, NOW)
        self.backlog.request(sector, [read], NOW, SECTORS.behind, lambda _: False)
        (filling,) = self.backlog.take(NOW)[0]
        assert (filling.sector, filling.cause) == (sector, Cause.DEMAND)
        self.present.add(sector.entry.id)
        self.backlog.drop(filling)

    def streamed(self) -> list[Wanted]:
        """Return what the stream brings now."""
        came = []
        while batch := self.backlog.take(NOW)[0]:
            stream = self.backlog.streaming.now
            assert stream is not None
            while (filling := stream.filling).active:
                came.append(filling.sector)
                self.present.add(filling.sector.entry.id)
                filling.active = False
                self.backlog.drop(filling)
                self.backlog.streaming.claim(stream)
            assert batch is stream.batch
            self.backlog.end_stream(stream, whole=True, failed=False)
        return came


def test_nothing_of_a_start_set_comes_before_a_read_confirms_it() -> None:
    bench = Bench()
    assert bench.streamed() == []
    bench.read(REST[0])
    assert bench.streamed() == []


def test_a_read_brings_what_lies_behind_it_in_the_set() -> None:
    bench = Bench()
    bench.read(SET[3])
    assert bench.streamed() == [SET[4]]
    bench.read(SET[5])
    assert bench.streamed() == [SET[6]]
    bench.read(SET[0])
    assert bench.streamed() == [SET[1]]


def test_a_sector_brings_its_window_once() -> None:
    bench = Bench()
    bench.read(SET[0])
    assert bench.streamed() == [SET[1]]
    bench.present.clear()  # the node has evicted them
    bench.read(SET[0])
    assert bench.streamed() == []


def test_a_start_set_is_streamed_whole_if_all_of_the_image_is_wanted() -> None:
    assert Bench("all").streamed()[: len(SET)] == SET


def test_an_unmounted_image_has_no_window() -> None:
    windows = StartWindows()
    windows.add(SET)
    windows.cancel({sector.entry.id for sector in SET[:3]})
    assert list(windows.confirm(SET[1].entry.id)) == []
    assert list(windows.confirm(SET[4].entry.id)) == [SET[4], SET[5]]


def test_a_window_ends_with_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startwindow, "WINDOW_BYTES", 64 * MiB)
    windows = StartWindows()
    windows.add(SET)
    assert list(windows.confirm(SET[5].entry.id)) == SET[5:]

# SPDX-License-Identifier: Apache-2.0
"""A lane with a source in memory that does what a script says, and sector files on disk."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from firstread.cache.pending import PendingRead
from firstread.config import PolicyTable, PrefetchTable
from firstread.errors import (
    FirstreadError,
    ImageError,
    NodeError,
    NotFoundError,
    TransportError,
)
from firstread.fetch import filler, retry
from firstread.fetch.lane import Lane
from firstread.fetch.queue import Cause, Filling
from firstread.fetch.startplan import Mode, Rest, StartPlan
from firstread.fetch.streaming import FIRST_BYTES
from firstread.oci.repository import Repository
from firstread.opener import HeldUpError
from firstread.sectors.format import Geometry
from firstread.sectors.source import Wanted
from firstread.testing.faultsource import FaultSource
from firstread.testing.memorysource import MemorySource, Sectors, make_sectors
from firstread.testing.patience import PATIENCE_S
from firstread.units import KiB, MiB

SIZE = 64 * KiB
FRAME = 4 * KiB
LONG_S = 10 * PATIENCE_S
QUIET = PrefetchTable(quiet_s=0.0)


class Files:
    """All that a lane meets: writes files, and remembers what it was told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answered: list[int] = []
        self.sizes_when_answered: dict[int, int] = {}
        self.given_up: list[tuple[list[int], FirstreadError]] = []
        self.failures: list[FirstreadError] = []
        self.failed_fillings: list[Filling] = []
        self.present_ids: list[bytes] = []
        self.causes: list[Cause] = []
        self.counts: Counter[str] = Counter()
        self.policy_table = PolicyTable()
        self.corrupted: list[tuple[int, bytes]] = []
        self.admitted: Counter[bytes] = Counter()  # not left, by sector
        self.spare_sectors = 1000
        self.full = False
        self.changed = threading.Condition()

    def path(self, sector: Wanted) -> Path:
        return self.directory / sector.entry.id.hex()

    def size(self, sector: Wanted) -> int:
        path = self.path(sector)
        return path.stat().st_size if path.exists() else 0

    def admit(self, sector: Wanted) -> int:
        with self.changed:
            self.admitted[sector.entry.id] += 1
        return 1

    def has_spare(self, sectors: int, sector: Wanted) -> bool:
        return sectors <= self.spare_sectors

    def leave(self, sector: Wanted, room: int) -> None:
        with self.changed:
            self.admitted[sector.entry.id] -= room

    def open(self, sector: Wanted, beside: int | None) -> int:
        self.counts["beside" if beside is not None else "own"] += 1
        return os.open(self.path(sector), os.O_RDWR | os.O_CREAT)

    def write(self, sector: Wanted, fd: int, position: int, frame: memoryview) -> None:
        if self.full:
            raise NodeError("no space")
        assert position <= os.fstat(fd).st_size, "this would leave a hole"
        os.pwrite(fd, frame, position)

    def commit(self, sector: Wanted, fd: int) -> None:
        self.present_ids.append(sector.entry.id)

    def completed(self, filling: Filling) -> None:
        assert filling.sector.entry.id in self.present_ids

    def allow(self, reads: Sequence[PendingRead]) -> None:
        with self.changed:
            self.answered += [read.number for read in reads]
            self.changed.notify_all()

    def give_up(
        self, filling: Filling, reads: Sequence[PendingRead], error: FirstreadError, lane: Lane
    ) -> None:
        with self.changed:
            self.given_up.append(([read.number for read in reads], error))
            self.changed.notify_all()

    def demanded(self, sector: Wanted) -> None:
        self.counts["demanded"] += 1

    def requested(self, filling: Filling, size: int) -> None:
        self.causes.append(filling.cause)

    def received(self, filling: Filling, count: int) -> None:
        self.counts["received"] += count

    def policy(self, sector: Wanted) -> PolicyTable:
        return self.policy_table

    def corrupt(
        self, filling: Filling, offset: int, data: bytes, error: ImageError, source: str
    ) -> None:
        self.corrupted.append((offset, data))

    def failed(self, filling: Filling, error: FirstreadError, lane: Lane) -> None:
        self.failures.append(error)
        self.failed_fillings.append(filling)

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` holds."""
        with self.changed:
            deadline = time.monotonic() + PATIENCE_S
            while not condition():
                assert time.monotonic() < deadline, "it does not happen"
                self.changed.wait(0.01)


def lane_of(
    files: Files,
    opening: Callable[[], Repository],
    workers: int,
    first_retry_s: float = 0.1,
    prefetch: PrefetchTable = QUIET,
) -> Lane:
    return Lane(
        "memory",
        opening,
        files,
        files,
        files,
        files,
        files.policy,
        workers=workers,
        prefetch=prefetch,
        first_retry_s=first_retry_s,
    )


class Bench:
    """A lane, its source and its files."""

    def __init__(
        self,
        directory: Path,
        sectors: Sectors,
        script: str,
        workers: int,
        stall_s: float,
        first_retry_s: float,
    ) -> None:
        self.sectors = sectors
        self.files = Files(directory)
        self.memory = MemorySource(sectors)
        self.source = FaultSource(self.memory, script)
        self.files.policy_table = PolicyTable(stall_s=stall_s)
        self.numbers = itertools.count(1000)
        self.lane = lane_of(self.files, lambda: self.source, workers, first_retry_s)

    def read(self, sector: int, offset: int = 0, length: int = FRAME, age_s: float = 0.0) -> int:
        """Read as the kernel would: return the number of the event."""
        number = next(self.numbers)
        read = PendingRead(number, 1, offset, length, -2, time.monotonic() - age_s)
        self.lane.request(self.sectors.wanted[sector], [read], self.sectors.behind)
        return number

    def answered(self, *numbers: int) -> None:
        self.files.wait(lambda: set(numbers) <= set(self.files.answered))

    def given_up(self) -> FirstreadError:
        self.files.wait(lambda: self.files.given_up)
        return self.files.given_up[0][1]

    def whole(self, *sectors: int) -> None:
        """Wait until sectors are present, and see that their files are right."""
        ids = {self.sectors.wanted[sector].entry.id for sector in sectors}
        self.files.wait(lambda: ids <= set(self.files.present_ids))
        for sector in sectors:
            path = self.files.path(self.sectors.wanted[sector])
            assert path.read_bytes() == self.sectors.contents[sector]


Make = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    benches: list[Bench] = []

    def made(
        script: str = "",
        *,
        count: int = 4,
        workers: int = 4,
        stall_s: float = 60.0,
        first_retry_s: float = 0.01,
        sectors: Sectors | None = None,
    ) -> Bench:
        directory = tmp_path / str(len(benches))
        directory.mkdir()
        benches.append(
            Bench(
                directory,
                sectors or make_sectors(count),
                script,
                workers,
                stall_s,
                first_retry_s,
            )
        )
        return benches[-1]

    yield made
    for bench in benches:
        bench.source.wake()
        bench.lane.close()


# Success.


def test_a_read_gets_its_bytes_and_the_sector_becomes_whole(make: Make) -> None:
    bench = make()
    number = bench.read(1, offset=SIZE - 100, length=4096)
    bench.answered(number)
    bench.whole(1)
    entry = bench.sectors.wanted[1].entry
    assert bench.source.requests == [(entry.offset, entry.length)]
    assert bench.files.counts["received"] == entry.length
    assert bench.files.causes == [Cause.DEMAND]
    assert not bench.lane.wanted()


def test_many_readers_of_one_sector_make_one_request(make: Make) -> None:
    bench = make("h")
    numbers = [bench.read(0, offset=number * 1000) for number in range(64)]
    bench.source.wake()
    bench.answered(*numbers)
    bench.whole(0)
    assert len(bench.source.requests) == 1
    assert bench.files.counts["demanded"] == 1
    assert sorted(bench.files.answered) == numbers  # each once


def test_a_read_goes_on_before_the_sector_is_whole(make: Make) -> None:
    bench = make("b", stall_s=3600)
    number = bench.read(0, length=FRAME)
    bench.answered(number)
    assert bench.files.size(bench.sectors.wanted[0]) < SIZE


def test_a_read_of_a_present_sector_is_answered_at_once(make: Make) -> None:
    bench = make()
    bench.answered(bench.read(0))
    bench.whole(0)
    bench.files.wait(lambda: not bench.lane.wanted())
    bench.answered(bench.read(0))
    assert len(bench.source.requests) == 1


def test_the_file_of_a_waiting_read_is_written_through_its_own_descriptor(make: Make) -> None:
    bench = make()
    bench.read(0)
    bench.whole(0)
    bench.lane.complete(bench.sectors.wanted[2])
    bench.whole(2)
    assert bench.files.counts["beside"] == bench.files.counts["own"] == 1


def test_neighbours_that_are_wanted_make_one_request(make: Make) -> None:
    bench = make("h", count=8, workers=1)
    bench.read(7)  # keeps the only worker
    bench.files.wait(lambda: bench.source.requests)
    numbers = [bench.read(0), bench.read(1)]  # and two more, which are read ahead
    bench.source.wake()
    bench.answered(*numbers)
    bench.whole(0, 1, 2, 3)
    lengths = [sector.entry.length for sector in bench.sectors.wanted]
    assert bench.source.requests[1:] == [(0, sum(lengths[:4]))]


def test_reads_come_before_what_nobody_waits_for(make: Make) -> None:
    bench = make("h", count=8, workers=1)
    bench.read(7)
    bench.files.wait(lambda: bench.source.requests)
    bench.lane.complete(bench.sectors.wanted[0])
    bench.read(4)
    bench.source.wake()
    bench.whole(0, 4, 7)
    assert bench.files.causes == [Cause.DEMAND, Cause.DEMAND, Cause.COMPLETION]


def test_a_read_finds_a_worker_whatever_else_is_wanted(make: Make) -> None:
    bench = make("h", count=8, workers=2)
    bench.lane.complete(bench.sectors.wanted[0])
    bench.files.wait(lambda: bench.source.requests)
    bench.lane.complete(bench.sectors.wanted[5])
    bench.files.wait(lambda: bench.lane._idle)  # the other worker has looked
    bench.answered(bench.read(3))
    begins = [sector.entry.offset for sector in bench.sectors.wanted]
    assert [offset for offset, _ in bench.source.requests] == [begins[0], begins[3]]
    bench.source.wake()
    bench.whole(0, 3, 5)


def test_a_sequential_reader_is_read_ahead_for(make: Make) -> None:
    bench = make(count=8)
    bench.answered(bench.read(0))
    bench.answered(bench.read(1))
    bench.whole(0, 1, 2, 3)
    bench.files.wait(lambda: not bench.lane.wanted())
    assert bench.files.counts["demanded"] == 2
    assert len(bench.files.present_ids) == 4


def test_a_sector_that_is_fetched_ahead_serves_a_read_that_comes_meanwhile(make: Make) -> None:
    bench = make("h")
    bench.lane.complete(bench.sectors.wanted[0])
    bench.files.wait(lambda: bench.source.requests)
    number = bench.read(0)
    bench.source.wake()
    bench.answered(number)
    assert len(bench.source.requests) == 1


def test_a_slow_link_is_asked_for_little_so_that_the_next_read_does_not_wait(
    make: Make,
) -> None:
    sectors = make_sectors(4, size=2 * MiB, geometry=Geometry(2 * MiB, 64 * KiB))
    bench = make(sectors=sectors, workers=1)
    bench.source = FaultSource(MemorySource(sectors, bytes_per_s=5e6))  # 0.2 s for a sector
    bench.answered(bench.read(3, length=FRAME))  # the link is measured now
    bench.files.wait(lambda: not bench.lane.wanted() or len(bench.source.requests) > 1)

    bench.read(0, length=FRAME)
    bench.answered(bench.read(2, length=FRAME))
    lengths = [length for _, length in bench.source.requests[1:3]]
    assert max(lengths) < sectors.wanted[0].entry.length / 2
    bench.whole(0, 2, 3)  # the rest comes when it is quiet
    assert Cause.COMPLETION in bench.files.causes


def test_workers_end_when_there_is_nothing_to_do(make: Make) -> None:
    bench = make()
    bench.read(0)
    bench.whole(0)
    bench.lane.close()
    names = [thread.name for thread in threading.enumerate()]
    bench.files.wait(lambda: "lane" not in [t.name for t in threading.enumerate()])
    assert bench.memory.closed, names


# A source that fails.


@pytest.mark.parametrize("script", ["E", "b", "EEE", "bEb", "bbbb"])
def test_a_transfer_that_breaks_off_goes_on(make: Make, script: str) -> None:
    bench = make(script)
    number = bench.read(0, offset=SIZE - FRAME)
    bench.answered(number)
    bench.whole(0)
    assert len(bench.source.requests) == len(script) + 1
    assert bench.files.counts["received"] == bench.sectors.wanted[0].entry.length


@pytest.mark.parametrize("script", ["rrbE*", "rrf*"])
def test_a_request_that_breaks_off_lets_go_what_waits_for_all_of_a_sector(
    make: Make, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filler, "STEP_S", 0.0)  # so that frames come one by one
    bench = make(script)
    bench.files.spare_sectors = 0  # so that each sector has a request of its own
    for number in range(2):
        bench.answered(bench.read(number, length=SIZE))
    bench.answered(bench.read(2))  # its frame has come
    assert bench.files.failures
    assert not bench.files.given_up


def test_received_bytes_are_not_asked_for_again(make: Make) -> None:
    bench = make("b")
    bench.read(0, offset=SIZE - FRAME)
    bench.whole(0)
    (_, whole), (resumed, rest) = bench.source.requests
    assert resumed + rest == whole
    assert 0 < rest < whole


@pytest.mark.parametrize("script", ["f", "ff", "fff"])
def test_wrong_bytes_are_fetched_again_and_never_written(make: Make, script: str) -> None:
    bench = make(script)
    number = bench.read(0, offset=SIZE - FRAME)
    bench.answered(number)
    bench.whole(0)
    assert all(isinstance(error, ImageError) for error in bench.files.failures)
    assert len(bench.files.failures) == len(script)


@pytest.mark.parametrize(("script", "kind"), [("ffff", ImageError), ("nnnn", NotFoundError)])
def test_what_does_not_get_better_is_given_up(
    make: Make, script: str, kind: type[FirstreadError]
) -> None:
    bench = make(script)
    number = bench.read(0, offset=SIZE - FRAME)
    assert isinstance(bench.given_up(), kind)
    assert bench.files.given_up[0][0] == [number]
    assert bench.files.answered == []
    assert not bench.lane.wanted()
    bench.answered(bench.read(0))  # the next read tries again


def test_a_wrong_sector_does_not_harm_its_neighbours(make: Make) -> None:
    sectors = make_sectors(3)
    entry = sectors.wanted[1].entry
    blob = bytearray(sectors.blob)
    blob[entry.offset + entry.length - 1] ^= 1
    bench = make("h", sectors=Sectors(bytes(blob), sectors.wanted, sectors.contents), workers=1)
    bench.read(1, offset=SIZE - FRAME)
    bench.files.wait(lambda: bench.source.requests)
    bench.lane.complete(sectors.wanted[0])
    others = [bench.read(n, offset=SIZE - FRAME) for n in (0, 2)]
    bench.source.wake()
    bench.answered(*others)
    assert isinstance(bench.given_up(), ImageError)
    assert len(bench.files.given_up) == 1
    bench.whole(0, 2)


def test_a_dead_source_is_waited_for_and_the_read_goes_on_when_it_is_back(make: Make) -> None:
    bench = make("EEEE")
    number = bench.read(0)
    time.sleep(0.03)
    bench.lane.expire()
    assert not bench.files.given_up
    bench.answered(number)


def test_a_completion_that_is_hopeless_is_given_up_though_nobody_waits(make: Make) -> None:
    bench = make("f" * 100)
    bench.lane.complete(bench.sectors.wanted[1])
    assert isinstance(bench.given_up(), ImageError)
    assert [numbers for numbers, _ in bench.files.given_up] == [[]]
    assert not bench.lane.wanted()


def test_a_read_that_waits_longer_than_the_stall_limit_is_given_up(make: Make) -> None:
    bench = make("E" * 1000, stall_s=30)
    old = bench.read(0, age_s=31)
    bench.read(0, age_s=20)
    bench.lane.expire()
    error = bench.given_up()
    assert isinstance(error, TransportError)
    assert "nothing came from memory for 30 s" in str(error)
    assert [numbers for numbers, _ in bench.files.given_up] == [[old]]


def test_a_new_read_does_not_wait_out_the_pause_of_an_old_one(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "LAST_RETRY_S", LONG_S)
    bench = make("E", stall_s=30, first_retry_s=LONG_S)
    bench.read(0, age_s=31)
    bench.files.wait(lambda: bench.files.failures)  # it rests for much longer than this test
    bench.lane.expire()
    bench.given_up()
    bench.answered(bench.read(0))


def test_wrong_bytes_are_shown_and_fail_a_read_at_once_if_they_are_to(make: Make) -> None:
    bench = make("f")
    bench.files.policy_table = PolicyTable(on_corruption="fail")
    bench.read(0, offset=SIZE - FRAME)
    assert isinstance(bench.given_up(), ImageError)
    assert len(bench.source.requests) == 1
    ((offset, data),) = bench.files.corrupted
    entry = bench.sectors.wanted[0].entry
    right = bench.sectors.blob[entry.offset + offset :][: len(data)]
    assert len(data) > 0
    assert sum(a != b for a, b in zip(data, right, strict=True)) == 1
    bench.read(0, offset=SIZE - FRAME)
    bench.whole(0)


def test_reads_can_be_released_to_another_lane(make: Make) -> None:
    bench = make("E" * 1000)
    number = bench.read(0)
    bench.files.wait(lambda: bench.lane.is_down)
    filling = bench.files.failed_fillings[-1]
    bench.files.wait(lambda: not filling.active)
    assert [read.number for read in bench.lane.release_reads(filling)] == [number]
    assert not bench.lane.wanted()


def test_a_read_that_no_worker_has_got_to_is_given_up_too(make: Make) -> None:
    bench = make("h", workers=1, stall_s=30)
    bench.read(3)
    bench.files.wait(lambda: bench.source.requests)
    old = bench.read(0, age_s=31)
    bench.lane.expire()
    bench.given_up()
    assert [numbers for numbers, _ in bench.files.given_up] == [[old]]


def test_a_read_on_a_slow_link_is_not_given_up(make: Make) -> None:
    bench = make("rrh", workers=1, stall_s=30)
    bench.answered(bench.read(0))
    bench.answered(bench.read(2))
    bench.files.wait(lambda: len(bench.source.requests) == 2)
    number = bench.read(0 + 3, age_s=31)  # has waited long, but the lane had progress
    bench.lane.expire()
    assert not bench.files.given_up
    bench.source.wake()
    bench.answered(number)


def test_a_sector_that_only_lacks_its_end_is_not_fetched_again(make: Make) -> None:
    bench = make(count=1)
    commit, failures = bench.files.commit, iter([TransportError("the disk is busy")])

    def fails_once(sector: Wanted, fd: int) -> None:
        for failure in failures:
            raise failure
        commit(sector, fd)

    bench.files.commit = fails_once  # type: ignore[method-assign]
    bench.answered(bench.read(0))
    bench.whole(0)
    lengths = [length for _, length in bench.source.requests]
    assert lengths == [bench.sectors.wanted[0].entry.length, 0]


def test_while_a_source_is_down_only_reads_are_tried(make: Make) -> None:
    bench = make("E" * 3, count=40, workers=1)
    for number in range(0, 40, 2):
        bench.lane.complete(bench.sectors.wanted[number])
    time.sleep(0.02)
    assert 1 <= len(bench.source.requests) <= 3  # not one for each of the twenty
    bench.whole(*range(0, 40, 2))  # none of them is forgotten


def test_a_read_wakes_a_lane_that_waits_for_its_source(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "LAST_RETRY_S", LONG_S)
    bench = make("E", workers=1, first_retry_s=LONG_S)
    bench.lane.complete(bench.sectors.wanted[2])
    bench.files.wait(lambda: bench.files.failures)
    bench.answered(bench.read(0))


def test_a_source_that_cannot_be_opened_is_tried_again(make: Make) -> None:
    bench = make()
    tries = itertools.count()

    def opening() -> Repository:
        if next(tries) < 2:
            raise NotFoundError("the directory is not there")
        return bench.source

    bench.lane = lane_of(bench.files, opening, workers=1)
    bench.answered(bench.read(0))


# This machine fails.


def test_a_full_disk_is_not_the_source_s_fault(make: Make) -> None:
    bench = make()
    bench.files.full = True
    bench.read(0)
    assert isinstance(bench.given_up(), NodeError)
    assert len(bench.source.requests) == 1
    bench.files.full = False
    bench.answered(bench.read(0))
    bench.whole(0)


def test_a_file_that_has_a_part_is_gone_on_with(make: Make) -> None:
    bench = make()
    path = bench.files.path(bench.sectors.wanted[0])
    path.write_bytes(bench.sectors.contents[0][: 3 * FRAME + 77])  # a kill in the middle of a write
    bench.answered(bench.read(0, offset=SIZE - FRAME))
    bench.whole(0)


@pytest.mark.parametrize("left", [0, FRAME])
def test_a_file_that_was_emptied_between_two_attempts_gets_no_hole(make: Make, left: int) -> None:
    bench = make("b" + "E" * 2)
    number = bench.read(0, offset=SIZE - FRAME)
    bench.files.wait(lambda: bench.files.failures)
    os.truncate(bench.files.path(bench.sectors.wanted[0]), left)
    bench.answered(number)
    bench.whole(0)


def test_a_defect_in_a_worker_fails_the_read_and_not_the_lane(make: Make) -> None:
    bench = make()
    path = bench.files.path(bench.sectors.wanted[0])
    path.mkdir()  # nobody expects this
    bench.read(0, offset=SIZE - FRAME)
    assert "internal error" in str(bench.given_up())
    with contextlib.suppress(OSError):
        path.rmdir()
    bench.answered(bench.read(0))


# Nobody wants it any more.


def test_cancelled_sectors_are_not_fetched(make: Make) -> None:
    bench = make("h", count=8, workers=1)
    bench.read(7)
    bench.files.wait(lambda: bench.source.requests)
    for sector in bench.sectors.wanted[:6]:
        bench.lane.complete(sector)
    waiting = bench.read(3)
    bench.lane.cancel({sector.entry.id for sector in bench.sectors.wanted})
    assert len(bench.lane.wanted()) == 2
    bench.source.wake()
    bench.answered(waiting)
    bench.whole(3, 7)
    assert len(bench.source.requests) == 2


def test_reads_that_wait_when_a_lane_is_closed_fail(make: Make) -> None:
    bench = make("h")
    number = bench.read(0)
    bench.files.wait(lambda: bench.source.requests)
    bench.lane.close()
    assert isinstance(bench.given_up(), NodeError)
    assert bench.files.given_up[0][0] == [number]
    bench.source.wake()
    bench.files.wait(lambda: bench.files.present_ids)  # what was under way may end
    assert bench.files.answered == []


def test_a_read_that_comes_when_a_lane_is_closed_fails(make: Make) -> None:
    """An event that was on its way while the image was unmounted: nobody would ever answer it."""
    bench = make()
    bench.lane.close()
    number = bench.read(0)
    assert isinstance(bench.given_up(), NodeError)
    assert bench.files.given_up[0][0] == [number]
    assert bench.files.answered == []
    assert bench.source.requests == []


def test_a_sector_that_comes_from_a_lane_that_failed_too_waits_before_it_is_tried(
    make: Make,
) -> None:
    bench = make("E" * 1000)
    bench.read(0)
    bench.files.wait(lambda: len(bench.files.failures) > 1)
    assert bench.lane.is_down
    other, passed_on = bench.sectors.wanted[1], PendingRead(1, 1, 0, FRAME, -2, time.monotonic())
    bench.lane.request(other, [passed_on], bench.sectors.behind, failures=6)
    filling = bench.lane._backlog._fillings[other.entry.id]
    assert (filling.paused, filling.failures) == (True, 6)
    bench.files.wait(lambda: filling in bench.files.failed_fillings)
    assert filling.failures > 6


# Readers that are gone, and files that cannot be opened.


def test_reads_that_nobody_waits_for_are_forgotten_and_their_sectors_go_last(make: Make) -> None:
    bench = make("h", count=8, workers=1)
    bench.read(7)
    bench.files.wait(lambda: bench.source.requests)
    wanted, behind = bench.sectors.wanted, bench.sectors.behind
    dead = [PendingRead(n, 1, 0, FRAME, -2, time.monotonic()) for n in range(3)]
    for read in dead:
        bench.lane.request(wanted[0], [read], behind)
    living = bench.read(4)
    assert bench.lane.cancel_reads({*dead, PendingRead(99, 1, 0, FRAME, -2, 0.0)}) == dead
    assert bench.lane.cancel_reads(set(dead)) == []
    bench.source.wake()
    bench.answered(living)
    bench.whole(0, 4, 7)
    assert bench.files.causes == [Cause.DEMAND, Cause.DEMAND, Cause.COMPLETION]
    assert not set(bench.files.answered) & {0, 1, 2}


def test_a_file_that_cannot_be_opened_by_name_holds_up_no_read(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scanner holds up the open of what is fetched ahead, and then reads just that sector."""
    bench = make(workers=1)
    held_up, plain = threading.Event(), bench.files.open

    def scanned(sector: Wanted, beside: int | None) -> int:
        if beside is None:
            held_up.set()
            raise HeldUpError
        return plain(sector, beside)

    monkeypatch.setattr(bench.files, "open", scanned)
    bench.lane.complete(bench.sectors.wanted[0])
    bench.lane.complete(bench.sectors.wanted[2])
    assert held_up.wait(PATIENCE_S)
    bench.answered(bench.read(1), bench.read(0))
    bench.whole(0, 1)
    assert bench.files.failures == []  # of the source: it was not asked
    assert not bench.lane.is_down
    monkeypatch.setattr(bench.files, "open", plain)
    bench.whole(2)


def test_a_file_is_opened_by_name_while_others_use_the_lane(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make(workers=2)
    opening, may, plain = threading.Event(), threading.Event(), bench.files.open

    def slow(sector: Wanted, beside: int | None) -> int:
        if beside is None:
            opening.set()
            assert may.wait(PATIENCE_S)
        return plain(sector, beside)

    monkeypatch.setattr(bench.files, "open", slow)
    bench.lane.complete(bench.sectors.wanted[0])
    assert opening.wait(PATIENCE_S)
    bench.answered(bench.read(1))
    may.set()
    bench.whole(0, 1)


# What nobody reads yet.


def large_sectors(count: int) -> Sectors:
    return make_sectors(count, size=MiB, geometry=Geometry(MiB, FRAME))


def prefetch(bench: Bench, mode: Mode, hot: Sequence[int], rest: Sequence[int] = ()) -> None:
    wanted = bench.sectors.wanted
    hot_sectors, others = [wanted[n] for n in hot], [wanted[n] for n in rest]
    plan = StartPlan(mode, 0, 0, None, None, Rest.NEVER, knows_start=bool(hot))
    bench.lane.prefetch(plan, hot_sectors, others)


def test_hot_sectors_come_in_order_with_few_requests_while_nobody_reads(make: Make) -> None:
    bench = make(sectors=large_sectors(40), count=40)
    prefetch(bench, "hot", range(5, 40))
    bench.whole(*range(5, 40))
    bench.files.wait(lambda: not bench.lane.wanted())
    ids = [sector.entry.id for sector in bench.sectors.wanted]
    assert bench.files.present_ids == ids[5:]
    lengths = [length for _, length in bench.source.requests]
    assert lengths[0] == FIRST_BYTES
    assert len(lengths) <= 4
    assert sum(lengths) == sum(sector.entry.length for sector in bench.sectors.wanted[5:])
    assert set(bench.files.causes) == {Cause.HOT}


@pytest.mark.parametrize("workers", [1, 4])
def test_a_read_of_something_else_is_answered_before_the_stream_goes_on(
    make: Make, workers: int
) -> None:
    sectors = large_sectors(8)
    bench = make(sectors=sectors, workers=workers)
    bench.source = FaultSource(MemorySource(sectors, bytes_per_s=2e6), "h")
    prefetch(bench, "hot", range(1, 8))
    bench.files.wait(lambda: bench.source.requests)
    number = bench.read(0)
    bench.answered(number)  # though the stream says nothing
    assert bench.files.present_ids in ([], [sectors.wanted[0].entry.id])
    bench.source.wake()
    bench.whole(*range(8))


def test_a_stream_stops_reading_while_a_read_of_something_else_waits(make: Make) -> None:
    sectors = large_sectors(8)
    bench = make("rh", sectors=sectors)
    frames = threading.Semaphore(0)
    plain = bench.files.write

    def slow(sector: Wanted, fd: int, position: int, frame: memoryview) -> None:
        assert frames.acquire(timeout=PATIENCE_S)
        plain(sector, fd, position, frame)

    bench.files.write = slow  # type: ignore[method-assign]
    prefetch(bench, "hot", range(1, 8))
    frames.release()
    bench.files.wait(lambda: bench.files.size(sectors.wanted[1]))
    number = bench.read(0)
    bench.files.wait(lambda: len(bench.source.requests) == 2)
    frames.release(2)  # one may be under way already
    stream = bench.lane._backlog.streaming.now
    assert stream is not None
    bench.files.wait(lambda: bench.lane._backlog.leaves_link(stream))
    assert bench.files.size(sectors.wanted[1]) <= 3 * FRAME
    frames.release(1_000_000)
    bench.source.wake()
    bench.answered(number)
    bench.whole(*range(8))


def test_a_read_that_the_stream_comes_to_makes_no_request_of_its_own(make: Make) -> None:
    bench = make("h", count=8)
    prefetch(bench, "hot", range(8))
    bench.files.wait(lambda: bench.source.requests)
    numbers = [bench.read(n) for n in range(8)]
    bench.source.wake()
    bench.answered(*numbers)
    bench.whole(*range(8))
    assert len(bench.source.requests) == 1


def test_a_read_of_a_hot_sector_waits_for_its_frame_only(make: Make) -> None:
    bench = make("b", count=8, first_retry_s=LONG_S)  # breaks off, and says nothing more for long
    prefetch(bench, "hot", range(8))
    number = bench.read(2, length=FRAME)
    bench.answered(number)
    assert bench.sectors.wanted[7].entry.id not in bench.files.present_ids


@pytest.mark.parametrize("script", ["b", "E", "f", "bEb"])
def test_a_stream_that_breaks_off_goes_on(make: Make, script: str) -> None:
    bench = make(script, count=8)
    prefetch(bench, "hot", range(8))
    bench.whole(*range(8))
    bench.files.wait(lambda: not bench.lane.wanted())
    assert bench.files.given_up == []


def test_a_stream_that_is_broken_for_good_leaves_its_sector_to_a_read(make: Make) -> None:
    sectors = make_sectors(4)
    entry = sectors.wanted[1].entry
    blob = bytearray(sectors.blob)
    blob[entry.offset + entry.length - 1] ^= 1
    bench = make(sectors=Sectors(bytes(blob), sectors.wanted, sectors.contents))
    prefetch(bench, "hot", range(4))
    bench.whole(0, 2, 3)
    assert isinstance(bench.given_up(), ImageError)
    assert [numbers for numbers, _ in bench.files.given_up] == [[]]


def test_nothing_is_streamed_where_there_is_no_room(make: Make) -> None:
    bench = make(count=8)
    bench.files.spare_sectors = 0
    prefetch(bench, "all", range(4), range(4, 8))
    bench.files.wait(lambda: not bench.lane.wanted())
    assert bench.source.requests == []
    bench.answered(bench.read(2))
    bench.whole(2)
    assert bench.files.causes == [Cause.DEMAND]


def test_a_stream_ends_when_the_room_does(make: Make) -> None:
    bench = make(count=8)
    plain = bench.files.commit

    def fills(sector: Wanted, fd: int) -> None:
        plain(sector, fd)
        bench.files.spare_sectors = 0

    bench.files.commit = fills  # type: ignore[method-assign]
    prefetch(bench, "hot", range(8))
    bench.files.wait(lambda: bench.files.present_ids and not bench.lane.wanted())
    assert len(bench.files.present_ids) == 1


def test_a_stream_ends_with_its_mount(make: Make) -> None:
    sectors = large_sectors(8)
    bench = make(sectors=sectors)
    bench.source = FaultSource(MemorySource(sectors, bytes_per_s=4e6))
    prefetch(bench, "hot", range(8))
    bench.files.wait(lambda: bench.files.size(sectors.wanted[0]))
    bench.lane.cancel({sector.entry.id for sector in sectors.wanted})
    bench.files.wait(lambda: not (bench.lane.wanted() or sum(bench.files.admitted.values())))
    assert len(bench.files.present_ids) < 8


def test_a_closed_lane_ends_its_stream_between_two_frames(make: Make) -> None:
    sectors = large_sectors(2)
    bench = make(sectors=sectors)
    bench.source = FaultSource(MemorySource(sectors, bytes_per_s=2e6))
    prefetch(bench, "hot", range(2))
    bench.files.wait(lambda: bench.files.size(sectors.wanted[0]))
    bench.lane.close()
    bench.files.wait(lambda: not sum(bench.files.admitted.values()))
    assert bench.files.present_ids == []


def test_all_of_an_image_comes_in_the_background_no_faster_than_allowed(make: Make) -> None:
    sectors = make_sectors(8)
    bench = make(sectors=sectors)
    table = PrefetchTable(quiet_s=0.3, rate=sum(s.entry.length for s in sectors.wanted) * 2)
    bench.lane = lane_of(bench.files, lambda: bench.source, 4, prefetch=table)
    begun = time.monotonic()
    prefetch(bench, "all", [], range(8))
    bench.whole(*range(8))
    assert time.monotonic() - begun >= 0.3 + 0.4
    assert set(bench.files.causes) == {Cause.BACKGROUND}


def test_the_background_ends_for_a_read_and_begins_anew(make: Make) -> None:
    sectors = large_sectors(8)
    bench = make(sectors=sectors)
    bench.source = FaultSource(MemorySource(sectors, bytes_per_s=4e6), "rh")
    table = PrefetchTable(quiet_s=0.01)
    bench.lane = lane_of(bench.files, lambda: bench.source, 4, prefetch=table)
    prefetch(bench, "all", [], range(1, 8))
    bench.files.wait(lambda: bench.files.size(sectors.wanted[1]))
    number = bench.read(0)
    bench.files.wait(lambda: bench.lane._backlog.streaming.now is None)
    bench.source.wake()
    bench.answered(number)
    bench.whole(*range(8))
    assert bench.files.causes[:2] == [Cause.BACKGROUND, Cause.DEMAND]


def test_a_read_of_what_comes_in_the_background_is_not_slowed_down(make: Make) -> None:
    sectors = large_sectors(2)
    bench = make(sectors=sectors)
    table = PrefetchTable(quiet_s=0.0, rate=FRAME)  # it would take minutes
    bench.lane = lane_of(bench.files, lambda: bench.source, 4, prefetch=table)
    prefetch(bench, "all", [], [0])
    bench.files.wait(lambda: bench.files.size(sectors.wanted[0]))
    bench.answered(bench.read(0, offset=MiB - FRAME))
    bench.whole(0)


def test_reads_wait_while_there_can_be_no_worker(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    bench = make(workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        number = bench.read(0)
        bench.lane.expire()
    assert not bench.files.given_up
    bench.lane.expire()
    bench.answered(number)

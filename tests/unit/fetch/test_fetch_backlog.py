# SPDX-License-Identifier: Apache-2.0
"""What a lane does next. The clock is a number; nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from firstread.cache.pending import PendingRead
from firstread.errors import AuthError, ImageError, TransportError
from firstread.fetch.backlog import LONG_S, QUIET_S, Backlog
from firstread.fetch.queue import Cause, Filling
from firstread.fetch.retry import FINAL_RETRIES
from firstread.sectors.source import Wanted
from firstread.testing.memorysource import make_sectors
from firstread.units import KiB

SECTORS = make_sectors(8)
A, B = SECTORS.wanted[0], SECTORS.wanted[4]  # that do not lie behind each other
FRAME = 4 * KiB
LATER = 1e6  # when everything is due


def no_room(_: int) -> bool:
    return False


class Bench:
    """A backlog of a store without sectors."""

    def __init__(self) -> None:
        self.sizes: dict[bytes, int] = {}
        self.backlog = Backlog(lambda s: self.sizes.get(s.entry.id, 0), 1.0)

    def read(
        self,
        sector: Wanted,
        now: float = 100.0,
        came: float = 100.0,
        has_spare: Callable[[int], bool] = no_room,
    ) -> PendingRead:
        read = PendingRead(0, 1, 0, FRAME, -1, came)
        self.backlog.request(sector, [read], now, SECTORS.behind, has_spare)
        return read

    def taken(self, now: float = 100.0) -> list[Wanted]:
        return [filling.sector for filling in self.backlog.take(now)[0]]

    def flight(self, now: float = 100.0) -> Filling:
        (filling,) = self.backlog.take(now)[0]
        return filling


def numbers(reads: Sequence[PendingRead]) -> list[int]:
    return [id(read) for read in reads]


def test_a_read_of_what_is_here_goes_on() -> None:
    bench = Bench()
    bench.sizes[A.entry.id] = A.entry.size
    read = PendingRead(0, 1, 0, FRAME, -1, 0.0)
    assert bench.backlog.request(A, [read], 100.0, SECTORS.behind, no_room) == (False, [read])
    assert list(bench.backlog) == []


def test_a_read_that_the_prefix_covers_goes_on_and_the_rest_is_fetched() -> None:
    bench = Bench()
    bench.sizes[A.entry.id] = FRAME
    read = PendingRead(0, 1, 0, FRAME, -1, 0.0)
    assert bench.backlog.request(A, [read], 100.0, SECTORS.behind, no_room) == (True, [read])
    assert bench.taken() == [A]


def test_every_read_is_returned_once() -> None:
    bench = Bench()
    reads = [bench.read(A), bench.read(A), bench.read(B)]
    assert numbers(bench.backlog.without({reads[1]})) == numbers([reads[1]])
    assert bench.backlog.without({reads[1]}) == []
    returned = [read for _, its in bench.backlog.drop_all() for read in its]
    assert numbers(returned) == numbers([reads[0], reads[2]])
    assert bench.backlog.drop_all() == []


def test_an_empty_backlog_has_nothing_to_wait_for() -> None:
    bench = Bench()
    assert bench.backlog.take(100.0) == ([], None)
    bench.backlog.want(A, Cause.COMPLETION)
    bench.backlog._last_demand = 100.0
    batch, wait = bench.backlog.take(100.0)
    assert batch == []
    assert wait == pytest.approx(QUIET_S)  # a reader may come back
    assert bench.taken(100.0 + 2 * QUIET_S) == [A]


def test_a_sector_that_is_paused_for_long_is_not_forgotten() -> None:
    """A source may ask to be left alone for longer than a worker waits for work."""
    bench = Bench()
    bench.backlog.want(A, Cause.COMPLETION)
    failed = bench.flight()
    bench.backlog.pause(failed, 100.0, 10 * LONG_S)
    assert bench.backlog.take(100.0) == ([], LONG_S)
    assert bench.taken(100.0 + 10 * LONG_S) == [A]


def test_a_new_read_ends_the_pause_of_an_old_one() -> None:
    bench = Bench()
    old = bench.read(A, came=0.0)
    assert bench.backlog.fail(bench.flight(), TransportError("x"), "refetch", 100.0) is None
    assert bench.taken() == []
    ((_, late, seconds),) = bench.backlog.late(lambda _: 50.0, 100.0)
    assert (numbers(late), seconds) == (numbers([old]), 50.0)
    bench.read(A)
    assert bench.taken() == [A]
    assert bench.taken(LATER) == []  # once, though it was due


def test_a_slow_link_makes_no_read_late() -> None:
    bench = Bench()
    bench.read(A, came=0.0)
    read = bench.read(B, came=0.0)
    filling = bench.flight()
    assert bench.backlog.progress(filling, 0, 99.0) == []
    assert bench.backlog.late(lambda _: 50.0, 100.0) == []
    assert len(bench.backlog.late(lambda _: 50.0, 150.0)) == 2
    assert read not in filling.reads


def test_a_hopeless_sector_gives_its_reads_back() -> None:
    bench = Bench()
    read = bench.read(A)
    for _ in range(FINAL_RETRIES):
        assert bench.backlog.fail(bench.flight(LATER), ImageError("x"), "refetch", 100.0) is None
    assert bench.backlog.fail(bench.flight(LATER), ImageError("x"), "refetch", 100.0) == [read]
    assert list(bench.backlog) == []
    other = bench.read(B)
    assert bench.backlog.fail(bench.flight(LATER), ImageError("x"), "fail", 100.0) == [other]


def test_a_login_that_is_refused_is_waited_for() -> None:
    bench = Bench()
    bench.read(A)
    for _ in range(3 * FINAL_RETRIES):
        filling = bench.flight(LATER)
        assert bench.backlog.fail(filling, AuthError("x"), "refetch", 100.0) is None
    assert bench.backlog.outage.is_on


def test_only_reads_are_tried_while_the_source_is_down() -> None:
    bench = Bench()
    bench.read(A)
    bench.backlog.want(B, Cause.COMPLETION)
    bench.backlog.fail(bench.flight(), TransportError("x"), "refetch", 100.0)
    batch, wait = bench.backlog.take(100.0)
    assert batch == []
    assert wait is not None
    assert wait <= 2.0
    assert bench.taken(LATER) == [A]
    assert bench.taken(LATER) == [B]


def test_a_sector_that_has_failed_elsewhere_waits_only_if_this_source_is_down() -> None:
    bench = Bench()
    bench.read(A)
    bench.backlog.slow_down(A.entry.id, 6, 100.0)
    assert bench.taken() == [A]
    bench.backlog.outage.fail(100.0)
    bench.backlog.outage.fail(100.0)
    bench.read(B)
    bench.backlog.slow_down(B.entry.id, 6, 100.0)
    assert bench.taken() == []
    assert bench.taken(LATER) == [B]


def test_a_file_that_is_to_be_emptied_is_released_unless_it_is_in_use() -> None:
    bench = Bench()
    bench.read(A)
    assert not bench.backlog.drop_unused(A.entry.id)
    filling = bench.flight()
    bench.backlog.without(set(filling.reads))
    assert not bench.backlog.drop_unused(A.entry.id)
    bench.backlog.requeue(filling)
    assert bench.backlog.drop_unused(A.entry.id)
    assert bench.backlog.drop_unused(A.entry.id)
    bench.backlog.requeue(filling)
    assert bench.taken(LATER) == []  # it was dropped


def test_a_sequential_reader_is_read_ahead_for_as_far_as_there_is_room() -> None:
    bench = Bench()
    for sector in SECTORS.wanted[:2]:
        bench.read(sector, has_spare=lambda count: count <= 3)
    assert list(bench.backlog) == [sector.entry.id for sector in SECTORS.wanted[:3]]


def test_what_a_sequential_reader_comes_to_is_asked_for_with_what_it_reads() -> None:
    """Weights are hot, but the stream of hot sectors is elsewhere: one request for each is slow."""
    bench = Bench()
    for sector in SECTORS.wanted:
        bench.backlog.want(sector, Cause.HOT)
    for sector in SECTORS.wanted[:2]:
        bench.read(sector, has_spare=lambda _: True)
    assert bench.taken() == list(SECTORS.wanted[:4])
    assert bench.taken() == [SECTORS.wanted[4]]  # the stream: nobody reads that yet


def test_what_the_stream_comes_to_is_left_to_it() -> None:
    bench = Bench()
    for sector in SECTORS.wanted:
        bench.backlog.want(sector, Cause.HOT)
    (first,), _ = bench.backlog.take(100.0)
    stream = bench.backlog.streaming.now
    assert stream is not None
    bench.backlog.begin_stream(stream, first.sector.span)
    for sector in SECTORS.wanted[2:4]:
        bench.read(sector, has_spare=lambda _: True)
    assert bench.taken() == []
    assert not any(filling.is_next for filling in bench.backlog._fillings.values())


def in_order(bench: Bench) -> tuple[Filling, PendingRead]:
    """Read three sectors in order; return the third, half filled, and its read."""
    for sector in SECTORS.wanted[:3]:
        read = bench.read(sector)
    *_, third = bench.backlog.take(100.0)[0]
    assert third.in_order
    assert bench.backlog.progress(third, 2 * FRAME, 100.0) == []
    return third, read


def test_a_reader_in_order_waits_for_all_of_a_sector() -> None:
    bench = Bench()
    third, read = in_order(bench)
    assert bench.backlog.progress(third, third.sector.entry.size, 100.0) == [read]


def test_a_read_of_what_is_here_waits_for_no_more_though_others_read_in_order() -> None:
    bench = Bench()
    third, read = in_order(bench)
    other = PendingRead(0, 1, 0, FRAME, -1, 100.0)
    asked = bench.backlog.request(third.sector, [other], 100.0, SECTORS.behind, no_room)
    assert asked == (False, [read, other])


def test_a_sector_that_does_not_come_at_once_lets_go_what_it_covers() -> None:
    bench = Bench()
    third, read = in_order(bench)
    assert bench.backlog.all_covered() == [read]
    assert bench.backlog.covered(third) == []


def test_what_a_sequential_reader_comes_to_goes_on_before_the_rest_of_the_image() -> None:
    bench = Bench()
    for sector in SECTORS.wanted[:2]:
        bench.read(sector, has_spare=lambda _: True)
    *_, third, fourth = bench.backlog.take(100.0)[0]
    assert (third.sector, fourth.sector) == tuple(SECTORS.wanted[2:4])
    third.asks = fourth.asks = 1  # a request has brought a part of both
    bench.backlog.requeue(fourth)
    bench.backlog.requeue(third)
    assert bench.taken() == [third.sector]  # at once, and the nearest first
    assert bench.taken() == [fourth.sector]


def test_the_last_free_worker_is_kept_for_reads() -> None:
    bench = Bench()
    bench.backlog.want(B, Cause.PREFETCH)
    assert bench.backlog.take(LATER, is_last=True)[0] == []
    bench.read(A, LATER)
    (filling,) = bench.backlog.take(LATER, is_last=True)[0]
    assert filling.sector == A
    assert bench.taken(LATER) == [B]

# SPDX-License-Identifier: Apache-2.0
"""What a stream brings, and what it leaves to others. The clock is a number; nothing is fetched."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping

import pytest

from firstread.cache.pending import PendingRead
from firstread.errors import TransportError
from firstread.fetch import startplan
from firstread.fetch.backlog import QUIET_S, Backlog
from firstread.fetch.queue import Cause, Filling
from firstread.fetch.rate import BUFFERED_BYTES, METERED_BYTES, Meter, Rate
from firstread.fetch.startplan import Mode, Rest, StartPlan, decide, mode_of
from firstread.fetch.streaming import FIRST_BYTES, GROWTH, MAX_BYTES, Ramp, Stream
from firstread.sectors.image import PREFETCH
from firstread.sectors.source import Wanted
from firstread.testing.memorysource import make_sectors
from firstread.units import KiB, MiB

SECTORS = make_sectors(8)
FRAME = 4 * KiB
QUIET = 10.0
NOW = 100.0
HOT, REST = SECTORS.wanted[2:7], [SECTORS.wanted[n] for n in (0, 1, 7)]


def link(bytes_per_s: float, latency_s: float) -> Rate:
    measured = Rate()
    measured.note(MiB, MiB / bytes_per_s)
    measured.note_latency(latency_s)
    return measured


class Bench:
    """A backlog whose link is measured: it brings two sectors in a round trip."""

    def __init__(
        self, mode: str = "hot", sizes: Mapping[bytes, int] | None = None, quiet_s: float = QUIET
    ) -> None:
        self.sizes = dict(sizes or {})
        self.link = link(2 * SECTORS.wanted[0].entry.length, 1.0)
        self.backlog = Backlog(lambda s: self.sizes.get(s.entry.id, 0), 1.0, self.link, quiet_s)
        plan = StartPlan(mode, 0, 0, None, None, Rest.NEVER, True)  # type: ignore[arg-type]
        self.backlog.prefetch(plan, HOT, REST, NOW)

    def read(self, sector: Wanted, offset: int = 0, now: float = NOW) -> PendingRead:
        read = PendingRead(0, 1, offset, FRAME, -1, now)
        self.backlog.request(sector, [read], now, SECTORS.behind, lambda _: False)
        return read

    def queued(self) -> list[Filling]:
        return [f for f in self.backlog._fillings.values() if not (f.active or f.paused)]

    def bring(self, batch: list[Filling], size: int, now: float) -> None:
        """End a request, that has brought `size` bytes of its first sector."""
        filling, stream = batch[0], self.backlog.streaming.of(batch)
        filling.asks += 1
        self.sizes[filling.sector.entry.id] = max(size, filling.filled)
        self.backlog.progress(filling, size, now)
        if filling.filled >= filling.sector.entry.size:
            filling.active = False
            self.backlog.drop(filling)
        if stream is not None:
            self.backlog.end_stream(stream, whole=False, failed=False)
        for rest in batch:
            if rest.active:
                self.backlog.requeue(rest)

    def taken(self, now: float = NOW) -> list[Wanted]:
        return [filling.sector for filling in self.backlog.take(now)[0]]

    def begin(self, now: float = NOW) -> Stream:
        """Take the stream, and have it ask for as much as it wants."""
        (filling,) = self.backlog.take(now)[0]
        stream = self.backlog.streaming.now
        assert stream is not None
        assert stream.filling is filling
        self.backlog.begin_stream(stream, filling.sector.span)
        return stream

    def claimed(self, stream: Stream) -> list[Wanted]:
        """Return what the stream gets to behind its first sector."""
        claimed = []
        while filling := self.backlog.streaming.claim(stream):
            claimed.append(filling.sector)
            filling.active = False
            self.backlog.drop(filling)
        return claimed


# Order, and length.


def test_hot_sectors_are_streamed_in_order_by_one_worker() -> None:
    bench = Bench()
    stream = bench.begin()
    assert stream.filling.sector == HOT[0]
    assert stream.stop == HOT[-1].span.stop
    assert bench.taken() == []  # the others stay with the stream
    assert bench.claimed(stream) == HOT[1:]


def test_a_stream_asks_for_what_its_ramp_allows() -> None:
    ramp = Ramp()
    lengths = [ramp.take(Cause.HOT)]
    while lengths[-1] < MAX_BYTES[Cause.HOT]:
        lengths.append(ramp.take(Cause.HOT))
    assert lengths[0] == FIRST_BYTES
    assert len(lengths) == 3
    assert all(after <= before * GROWTH for before, after in itertools.pairwise(lengths))
    assert ramp.take(Cause.BACKGROUND) == MAX_BYTES[Cause.BACKGROUND] < MAX_BYTES[Cause.HOT]
    ramp.reset()
    assert ramp.take(Cause.HOT) == FIRST_BYTES


def test_a_stream_ends_where_a_sector_has_bytes_already() -> None:
    bench = Bench(sizes={HOT[3].entry.id: FRAME})
    stream = bench.begin()
    assert stream.stop == HOT[3].span.start
    assert bench.claimed(stream) == HOT[1:3]
    bench.backlog.end_stream(stream, whole=False, failed=False)
    assert bench.begin().filling.sector == HOT[3]


def test_without_prefetch_nothing_is_queued() -> None:
    bench = Bench("none")
    assert bench.backlog.take(NOW) == ([], None)
    assert list(bench.backlog) == []


# Reads.


def test_a_read_of_something_else_goes_before_the_stream() -> None:
    bench = Bench()
    bench.read(SECTORS.wanted[0])
    assert bench.taken() == [SECTORS.wanted[0]]  # without its hot neighbours
    stream = bench.begin()
    assert bench.backlog.leaves_link(stream)
    filling = bench.backlog._fillings[SECTORS.wanted[0].entry.id]
    assert bench.backlog.progress(filling, FRAME, NOW) != []
    assert not bench.backlog.leaves_link(stream)


def test_a_stream_does_not_wait_for_a_read_whose_source_fails() -> None:
    bench = Bench()
    stream = bench.begin()
    bench.read(SECTORS.wanted[0])
    (filling,) = bench.backlog.take(NOW)[0]
    bench.backlog.fail(filling, TransportError("x"), "refetch", NOW)
    assert not bench.backlog.leaves_link(stream)


def test_a_read_waits_for_the_stream_if_that_is_sooner_than_a_request() -> None:
    bench = Bench()
    stream = bench.begin()
    near, far = bench.read(HOT[1]), bench.read(HOT[4])
    assert bench.taken() == [HOT[4]]
    assert not bench.backlog.leaves_link(stream)  # a read waits for it, too
    assert bench.backlog.streaming.claim(stream) is not None
    assert bench.backlog.progress(stream.filling, FRAME, NOW) == [near]
    assert bench.backlog.leaves_link(stream)
    assert far in bench.backlog._fillings[HOT[4].entry.id].reads


@pytest.mark.parametrize(("between", "waits"), [(2, True), (3, False)])
def test_a_read_waits_rather_than_have_a_sector_sent_twice(between: int, waits: bool) -> None:
    """A request has its answer when two sectors have come, and the stream brings its sector again.

    So it is worth sending only if more than three come before.
    """
    bench = Bench()
    bench.begin()
    sector = HOT[1 + between]
    bench.read(sector, sector.entry.size - FRAME)
    assert bench.taken() == ([] if waits else [sector])


def test_a_stream_that_ends_early_leaves_no_read_behind() -> None:
    bench = Bench()
    stream = bench.begin()
    read = bench.read(HOT[1])
    bench.backlog.end_stream(stream, whole=False, failed=True)
    bench.backlog.requeue(stream.filling)
    (filling,) = bench.backlog.take(NOW)[0]
    assert (filling.sector, filling.reads, filling.cause) == (HOT[1], [read], Cause.DEMAND)
    assert bench.taken() == [HOT[0]]  # and the stream begins anew where it was


def test_a_read_that_waits_where_a_request_ends_waits_for_the_next_one() -> None:
    bench = Bench()
    stream = bench.begin()
    here, next_one = bench.read(HOT[0], HOT[0].entry.size - FRAME), bench.read(HOT[1])
    stream.filling.asks = 1
    bench.backlog.end_stream(stream, whole=True, failed=False)
    stream = bench.begin()
    assert (stream.filling.sector, stream.filling.reads) == (HOT[0], [here])
    bench.backlog.progress(stream.filling, HOT[0].entry.size, NOW)
    assert stream.is_awaited()  # by the other
    assert bench.backlog.streaming.claim(stream) is not None
    assert stream.filling.reads == [next_one]


def test_a_read_that_waits_for_the_next_request_is_served_though_that_goes_elsewhere() -> None:
    """A sector that a read has taken, and that rests again, goes before the one at which it ended.

    The stream left the link to the read, a frame a second, and nobody served the read.
    """
    bench = Bench()
    bench.read(HOT[0])
    (demanded,) = bench.backlog.take(NOW)[0]
    stream = bench.begin()
    assert stream.filling.sector == HOT[1]
    here, next_one = bench.read(HOT[1], HOT[1].entry.size - FRAME), bench.read(HOT[2])
    bench.bring([demanded], FRAME, NOW)
    stream.filling.asks = 1
    bench.backlog.end_stream(stream, whole=True, failed=False)
    assert bench.begin().filling.sector == HOT[0]
    one, other = bench.backlog.take(NOW)[0]
    assert (one.sector, one.reads) == (HOT[1], [here])
    assert (other.sector, other.reads) == (HOT[2], [next_one])


def test_a_read_takes_a_sector_from_the_stream_and_the_next_one_goes_on_behind_it() -> None:
    bench = Bench()
    stream = bench.begin()
    bench.read(HOT[3])
    (demanded,) = bench.backlog.take(NOW)[0]
    assert bench.claimed(stream) == HOT[1:3]
    bench.backlog.end_stream(stream, whole=False, failed=False)
    bench.backlog.drop(demanded)
    assert bench.begin().filling.sector == HOT[4]


def test_a_hot_sector_that_rests_keeps_its_place() -> None:
    bench = Bench()
    bench.read(HOT[3])
    (demanded,) = bench.backlog.take(NOW)[0]
    demanded.asks = 1
    bench.backlog.progress(demanded, FRAME, NOW)
    bench.backlog.requeue(demanded)
    assert demanded.cause is Cause.HOT
    stream = bench.begin()
    assert stream.filling.sector == HOT[0]
    assert bench.claimed(stream) == HOT[1:3]


# What follows.


@pytest.fixture
def distant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the rest of the image take longer than any cold reads."""
    monkeypatch.setattr(startplan, "MISSES", 0)


@pytest.mark.usefixtures("distant")
def test_the_rest_of_a_distant_image_stays_lazy() -> None:
    bench = Bench()
    assert bench.claimed(bench.begin()) == HOT[1:]
    bench.backlog.drop_all()
    stream = bench.backlog.streaming.now
    assert stream is not None
    bench.backlog.end_stream(stream, whole=False, failed=False)
    assert bench.backlog.take(NOW) == ([], None)


def test_the_rest_of_a_near_image_follows_at_once() -> None:
    bench = Bench()
    stream = bench.begin()
    bench.claimed(stream)
    bench.backlog.end_stream(stream, whole=False, failed=False)
    bench.backlog.drop(stream.filling)
    assert bench.begin().filling.sector == REST[0]


@pytest.mark.usefixtures("distant")
def test_all_of_an_image_comes_in_the_background_when_it_is_quiet() -> None:
    bench = Bench("all")
    stream = bench.begin()
    bench.claimed(stream)
    bench.backlog.end_stream(stream, whole=False, failed=False)
    bench.backlog.drop(stream.filling)
    batch, wait = bench.backlog.take(NOW + QUIET_S)
    assert batch == []
    assert wait == pytest.approx(QUIET - QUIET_S)
    stream = bench.begin(NOW + QUIET)
    assert (stream.cause, stream.filling.sector) == (Cause.BACKGROUND, REST[0])
    bench.read(REST[2])
    assert bench.backlog.leaves_link(stream)


def started(mode: str, seed: int) -> list[tuple[float, Cause, list[Wanted]]]:
    """Replay reads and answers in some order, never calm for long; return what was taken, when."""
    chance, bench, now = random.Random(seed), Bench(mode), NOW
    flights: list[list[Filling]] = []
    taken = []
    last = now
    for number in range(200):
        now += chance.random() * QUIET / 4
        step = chance.randrange(3) if number else 1
        if step == 0 or now - last > QUIET / 2:
            last = now
            bench.read(chance.choice(SECTORS.wanted), chance.randrange(0, 16 * FRAME, FRAME), now)
        elif step == 1 and len(flights) < 3:
            if batch := bench.backlog.take(now)[0]:
                taken.append((now, batch[0].cause, [filling.sector for filling in batch]))
                flights.append(batch)
        elif flights:
            batch = flights.pop(chance.randrange(len(flights)))
            size = batch[0].sector.entry.size if chance.random() < 0.5 else FRAME
            bench.bring(batch, size, now)
    return taken


@pytest.mark.usefixtures("distant")
@pytest.mark.parametrize("seed", range(20))
def test_before_it_is_quiet_all_fetches_what_hot_fetches(seed: int) -> None:
    taken = started("all", seed)
    assert taken == started("hot", seed)
    assert {Cause.DEMAND, Cause.HOT} <= {cause for _, cause, _ in taken}


@pytest.mark.usefixtures("distant")
@pytest.mark.parametrize("seed", range(20))
def test_a_read_goes_before_all_that_nobody_waits_for(seed: int) -> None:
    chance, bench = random.Random(seed), Bench("all", quiet_s=0.0)
    seen = set()
    for number in range(60):
        now = NOW + number
        sector = chance.choice(SECTORS.wanted)
        if chance.random() < 0.5:
            bench.read(sector, now=now)
        batch = bench.backlog.take(now)[0]
        if not batch:
            continue
        seen.add(batch[0].cause)
        assert batch[0].reads or not any(f.reads for f in bench.queued())
        bench.bring(batch, batch[0].sector.entry.size, now)
    assert {Cause.DEMAND, Cause.HOT, Cause.BACKGROUND} <= seen


def test_images_that_are_unmounted_are_streamed_no_more() -> None:
    bench = Bench("all")
    stream = bench.begin()
    bench.backlog.cancel({sector.entry.id for sector in SECTORS.wanted})
    assert bench.claimed(stream) == []
    bench.backlog.end_stream(stream, whole=False, failed=False)
    bench.backlog.drop(stream.filling)
    assert bench.backlog.take(NOW + 2 * QUIET) == ([], None)


def test_without_room_only_what_a_read_waits_for_stays() -> None:
    bench = Bench("all")
    stream = bench.begin()
    read = bench.read(HOT[4])
    bench.backlog.forgo(stream)
    assert list(bench.backlog) == [HOT[4].entry.id]
    assert bench.backlog._fillings[HOT[4].entry.id].reads == [read]


@pytest.mark.usefixtures("distant")
def test_a_pinned_sector_comes_without_room_for_a_stream() -> None:
    bench = Bench()
    bench.backlog.complete(HOT[1])
    stream = bench.begin()
    bench.backlog.forgo(stream)
    bench.backlog.end_stream(stream, whole=False, failed=False)
    (filling,) = bench.backlog.take(NOW + QUIET_S)[0]
    assert (filling.sector, filling.cause) == (HOT[1], Cause.COMPLETION)


@pytest.mark.usefixtures("distant")
def test_a_pinned_sector_does_not_wait_for_the_background() -> None:
    plan = StartPlan("all", 0, 0, None, None, Rest.NEVER, knows_start=False)
    for sector, is_first in ((REST[0], True), (REST[2], False)):
        bench = Bench("none")
        if is_first:
            bench.backlog.complete(sector)
        bench.backlog.prefetch(plan, [], [sector], NOW)
        if not is_first:
            bench.backlog.complete(sector)
        (filling,) = bench.backlog.take(NOW + QUIET_S)[0]
        assert (filling.cause, filling.rests) == (Cause.COMPLETION, Cause.COMPLETION)


# The decision.


@pytest.mark.parametrize(
    ("mode", "rest_bytes", "rate", "latency_s", "knows_start", "expected"),
    [
        ("hot", 300 * MiB, 12.5e6, 0.020, True, Rest.NEVER),
        ("hot", 4 * MiB, 12.5e6, 0.020, True, Rest.AT_ONCE),
        ("hot", 4 * MiB, 12.5e6, 0.020, False, Rest.NEVER),
        ("none", 4 * MiB, 12.5e6, 0.020, True, Rest.NEVER),
        ("all", 300 * MiB, 12.5e6, 0.020, True, Rest.WHEN_QUIET),
        ("all", 4 * MiB, 12.5e6, 0.020, False, Rest.AT_ONCE),
        ("hot", 20 * MiB, 500e6, 0.001, True, Rest.NEVER),
        ("hot", 10 * MiB, 500e6, 0.001, True, Rest.AT_ONCE),
    ],
)
def test_the_rest_follows_at_once_where_cold_reads_would_take_longer(
    mode: str, rest_bytes: int, rate: float, latency_s: float, knows_start: bool, expected: Rest
) -> None:
    hot = 30 * MiB
    plan = decide(
        mode,  # type: ignore[arg-type]
        hot,
        hot + rest_bytes,
        link(rate, latency_s),
        knows_start=knows_start,
    )
    assert plan.rest is expected
    assert plan.hot_s == pytest.approx(latency_s + hot / rate)
    assert plan.all_s == pytest.approx(latency_s + (hot + rest_bytes) / rate)


def test_a_link_that_was_not_measured_decides_nothing() -> None:
    plan = decide("hot", 1, 2, Rate(), knows_start=True)
    assert (plan.rest, plan.hot_s, plan.bytes_per_s) == (Rest.NEVER, None, None)


@pytest.mark.parametrize(
    ("asked", "said", "configured", "expected"),
    [
        ([None], None, "hot", "hot"),
        (["none"], "all", "all", "none"),
        (["none", "all", None], None, "hot", "all"),
        ([], "all", "hot", "all"),
        ([], "none", "all", "none"),
        ([None], "all", "none", "none"),
        (["hot"], None, "none", "hot"),
        ([], "ALL", "hot", "hot"),
        ([], "all\n" + "x" * 100_000, "hot", "hot"),
    ],
)
def test_a_mount_goes_before_an_image_and_an_image_before_the_node(
    asked: list[str | None], said: str | None, configured: Mode, expected: str
) -> None:
    annotations = {PREFETCH: said} if said is not None else None
    assert mode_of(asked, annotations, configured) == expected


# Measuring.


def test_a_pause_is_no_part_of_what_is_measured() -> None:
    times = [0.0]
    rate = Rate()
    meter = Meter(rate, lambda: times[0])
    times[0] = 1.0
    meter.note(METERED_BYTES, 0.0)
    assert rate.bytes_per_s == METERED_BYTES
    meter.paused()
    times[0] = 50.0
    meter.note(BUFFERED_BYTES, 0.0)  # has come meanwhile
    assert rate.bytes_per_s == METERED_BYTES
    times[0] = 51.0
    meter.note(METERED_BYTES, 0.0)
    assert rate.bytes_per_s == METERED_BYTES


def test_the_shortest_wait_is_the_latency_and_is_forgotten_slowly() -> None:
    rate = Rate()
    assert math.isinf(rate.round_trip_bytes)
    for seconds in (3.0, 1.0, 2.0):
        rate.note_latency(seconds)
    assert rate.latency_s == pytest.approx(1.1)
    assert not rate.is_known

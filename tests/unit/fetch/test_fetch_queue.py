# SPDX-License-Identifier: Apache-2.0
"""The order of fetches, their slices, and the release of reads. No threads, no files."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from firstread.cache.pending import PendingRead
from firstread.fetch.queue import (
    BATCH_BYTES,
    BATCH_S,
    MAX_BATCH_BYTES,
    MAX_DOUBLINGS,
    Cause,
    Filling,
    Queue,
    request_end,
    slice_seconds,
)
from firstread.fetch.rate import Rate
from firstread.oci.model import Descriptor
from firstread.sectors.format import Geometry, SectorEntry
from firstread.sectors.source import Wanted
from firstread.units import KiB, MiB

GEOMETRY = Geometry(64 * KiB, 4 * KiB)
LENGTH = 40 * KiB  # of each sector in the blob
BLOBS = [Descriptor(media_type="x", digest=f"sha256:{n:064x}", size=100 * MiB) for n in range(2)]


def filling(number: int, *, blob: int = 0, length: int = LENGTH, size: int = 64 * KiB) -> Filling:
    """Return sector `number` of a blob of sectors without gaps."""
    identity = bytes([blob]) + number.to_bytes(31, "big")
    entry = SectorEntry(identity, size, blob, number * length, length)
    return Filling(Wanted(entry, BLOBS[blob], GEOMETRY))


def read(offset: int, length: int, came: float = 0.0) -> PendingRead:
    return PendingRead(3, 1, offset, length, 3, came)


def numbers(batch: list[Filling]) -> list[int]:
    return [f.sector.entry.offset // LENGTH for f in batch]


# Readers.


def test_reads_go_on_when_the_verified_prefix_covers_them() -> None:
    first, second, past = read(0, 4096), read(4096, 8192), read(60 * KiB, 128 * KiB)
    sector = filling(0)
    sector.reads = [past, second, first]

    assert sector.satisfied() == []
    sector.filled = 4096
    assert sector.satisfied() == [first]
    sector.filled = 12287
    assert sector.satisfied() == []
    sector.filled = 12288
    assert sector.satisfied() == [second]
    sector.filled = 64 * KiB  # a read may be asked for behind the end; there is nothing
    assert sector.satisfied() == [past]
    assert sector.reads == []


def test_late_reads_are_those_that_came_before() -> None:
    sector = filling(0)
    sector.reads = [read(0, 1, came=1.0), read(0, 1, came=3.0), read(0, 1, came=2.0)]
    assert [late.came for late in sector.late(3.0)] == [1.0, 2.0]
    assert [stays.came for stays in sector.reads] == [3.0]


# The queue.


def test_demand_goes_before_prefetch_before_completion() -> None:
    queue = Queue()
    for number, cause in [(2, Cause.COMPLETION), (4, Cause.PREFETCH), (6, Cause.DEMAND)]:
        queue.put(filling(number), cause)
    assert [numbers(queue.take()) for _ in range(4)] == [[6], [4], [2], []]


def test_less_urgent_sectors_stay() -> None:
    queue = Queue()
    queue.put(filling(1), Cause.COMPLETION)
    assert queue.take([Cause.DEMAND, Cause.PREFETCH]) == []
    queue.put(filling(0), Cause.PREFETCH)
    assert numbers(queue.take([Cause.DEMAND, Cause.PREFETCH])) == [
        0
    ]  # 1 is its neighbour, but has to wait
    assert numbers(queue.take()) == [1]


def test_neighbours_are_fetched_together_whatever_wants_them() -> None:
    queue = Queue()
    for number, cause in [
        (2, Cause.PREFETCH),
        (0, Cause.DEMAND),
        (1, Cause.DEMAND),
        (4, Cause.DEMAND),
    ]:
        queue.put(filling(number), cause)
    assert numbers(queue.take()) == [0, 1, 2]
    assert numbers(queue.take()) == [4]
    assert len(queue) == 0


def test_sectors_of_other_blobs_are_no_neighbours() -> None:
    queue = Queue()
    queue.put(filling(0, blob=0), Cause.DEMAND)
    queue.put(filling(1, blob=1), Cause.DEMAND)
    assert [len(queue.take()) for _ in range(3)] == [1, 1, 0]


@pytest.mark.parametrize(
    ("bytes_per_s", "most"),
    [
        (math.inf, BATCH_BYTES),  # not measured
        (12e6, BATCH_BYTES),
        (2 * BATCH_BYTES / BATCH_S, 2 * BATCH_BYTES),
        (2 * MAX_BATCH_BYTES / BATCH_S, MAX_BATCH_BYTES),
    ],
)
def test_one_request_has_a_bounded_size(bytes_per_s: float, most: int) -> None:
    queue = Queue()
    for number in range(32):
        queue.put(filling(number, length=4 * MiB), Cause.DEMAND)
    assert len(queue.take(bytes_per_s=bytes_per_s)) == most // (4 * MiB)


def test_what_rests_half_filled_is_fetched_first_in_a_request_or_not() -> None:
    queue = Queue()
    rested = filling(1)
    rested.asks = 1
    for other in (filling(0), rested, filling(2)):
        queue.put(other, Cause.DEMAND)
    assert numbers(queue.take()) == [0]
    assert numbers(queue.take()) == [1, 2]


def test_a_queued_sector_can_only_gain_urgency() -> None:
    queue = Queue()
    first, second = filling(0), filling(2)
    queue.put(first, Cause.PREFETCH)
    queue.put(second, Cause.PREFETCH)
    queue.put(second, Cause.DEMAND)
    queue.put(second, Cause.COMPLETION)
    assert len(queue) == 2
    assert second.cause is Cause.DEMAND
    assert [queue.take(), queue.take()] == [[second], [first]]


def test_two_sectors_that_claim_one_place_are_both_fetched() -> None:
    queue = Queue()
    true, false = filling(0), filling(0)
    false.sector = false.sector._replace(
        entry=SectorEntry(b"\xff" * 32, 64 * KiB, 0, 0, LENGTH)  # of a crafted image
    )
    queue.put(true, Cause.DEMAND)
    queue.put(false, Cause.DEMAND)
    assert [queue.take(), queue.take()] == [[true], [false]]


def test_every_queued_sector_is_taken_once() -> None:
    rng = random.Random(1)
    for _ in range(200):
        queue = Queue()
        put = rng.choices(range(30), k=20)
        by_number = {number: filling(number) for number in put}
        for number in put:
            queue.put(by_number[number], rng.choice(list(Cause)))
        removed = by_number.pop(put[0])
        queue.remove(removed)
        batches = list(iter(queue.take, []))
        assert sorted(itertools.chain(*map(numbers, batches))) == sorted(by_number)
        for batch in batches:
            assert numbers(batch) == list(range(numbers(batch)[0], numbers(batch)[-1] + 1))


# How much one request asks for.


def test_a_fast_link_is_asked_for_all() -> None:
    batch = [filling(0), filling(1)]
    rest = batch[0].sector.span
    assert request_end(batch, rest, 0, float("inf")) == 2 * LENGTH
    short = rest._replace(stop=LENGTH - 1)  # what is missing does not lie in one range
    assert request_end(batch, short, 0, float("inf")) == LENGTH - 1


def test_a_slow_link_is_asked_for_what_waits_and_little_more() -> None:
    sector = filling(3)
    sector.reads = [read(0, 4096)]
    rest = sector.sector.span
    assert sector.wanted_end == 4096
    for needed in (rest.start, rest.start + 5000):
        assert request_end([sector], rest, needed, 1000) == needed + 1000


def test_a_slow_link_is_not_asked_for_half_a_neighbour() -> None:
    batch = [filling(0), filling(1)]
    assert request_end(batch, batch[0].sector.span, 0, 1.5 * LENGTH) == LENGTH


def slice_of(cause: Cause, asks: int = 0, *, is_next: bool = False) -> float:
    first, second = filling(0), filling(1)
    first.cause, first.asks, second.is_next = cause, asks, is_next
    return slice_seconds([first, second])


def test_a_reader_that_comes_back_gets_more_each_time() -> None:
    slices = [slice_of(Cause.DEMAND, asks) for asks in range(8)]
    assert slices == sorted(slices)
    assert slices[-1] == slices[-2] == slices[0] * 2**MAX_DOUBLINGS
    assert slice_of(Cause.COMPLETION, 5) == slice_of(Cause.COMPLETION)
    assert slice_of(Cause.COMPLETION) < slices[0] < slice_of(Cause.PREFETCH)


def test_a_sequential_reader_gets_what_it_comes_to() -> None:
    assert slice_of(Cause.DEMAND, is_next=True) == slice_of(Cause.PREFETCH)


def test_rate_is_that_of_the_last_reads() -> None:
    rate = Rate()
    assert rate.bytes_per_s == float("inf")
    rate.note(MiB, 1.0)
    rate.note(100, 100.0)  # too little to tell
    assert rate.bytes_per_s == MiB
    for _ in range(30):
        rate.note(MiB, 2.0)
    assert rate.bytes_per_s == pytest.approx(MiB / 2, rel=0.01)

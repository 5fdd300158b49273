# SPDX-License-Identifier: Apache-2.0
"""Replayed starts: how long reads wait, what is fetched for them, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.fetch.startplan import Mode
from firstread.testing.packed import SMALL
from firstread.testing.tuning import LARGE, convert, trace
from firstread.tune.layercontent import Content, FileKey
from firstread.tune.layout import FileLayout, HotLayout, Layout, PlainLayout
from firstread.tune.link import FIRST_WINDOW, LinkSpeed
from firstread.tune.replay import Replayed, Step, replay
from firstread.tune.simulatedlane import Costs
from firstread.tune.workload import fit, hot_content, steps

CONTENT: Content = convert().content
S, F = SMALL.sector_size, SMALL.frame_size
B = 4096
RTT = 0.1
LINK = LinkSpeed(80e6, RTT, "test")
NEAR = LinkSpeed(1e12, 0, "near")
NOTHING = Costs(
    metadata_s=0,
    metadata_bytes_per_s=1e12,
    mount_s=0,
    device_s=0,
    request_s=0,
    event_s=0,
    traced_s=0,
    worker_bytes_per_s=1e12,
    trips=1,
)
PULL_S = 4 * RTT
"""A connection, then manifest, config and metadata; their bytes take next to nothing."""
ALL = frozenset(
    FileKey(layer, number)
    for layer, its in enumerate(CONTENT.layers)
    for number in range(len(its.files))
)
PLAIN = PlainLayout(CONTENT, S, F, ALL)
FILES = FileLayout(CONTENT, 0)

Reads = list[tuple[str, int, int]]
EVERYTHING: Reads = [(f"bin/{n}", 0, B) for n in range(40) if n != 7] + [("large", 0, LARGE)]


def start(
    layout: Layout, reads: Reads, link: LinkSpeed = LINK, *, prefetch: Mode = "none", us: int = 0
) -> Replayed:
    work = fit(CONTENT, trace(reads, step_us=us))
    return replay(layout, link, NOTHING, steps(work, layout), work.end_s, prefetch=prefetch)


def hot(reads: Reads) -> HotLayout:
    return HotLayout(PLAIN, S, *hot_content(CONTENT, [trace(reads)], B))


def test_a_start_without_reads_is_a_pull_and_its_work() -> None:
    result = replay(PLAIN, LINK, NOTHING, [Step(2.0, [])], 3.0)
    assert result.ready_s == pytest.approx(PULL_S + 5, abs=0.01)
    assert (result.requests, result.waits) == (3, [0])


def test_more_sectors_take_longer_to_mount() -> None:
    costs = NOTHING._replace(device_s=0.1)
    less = replay(FILES, LINK, costs, []).ready_s
    more = replay(PLAIN, LINK, costs, []).ready_s
    assert more - less == pytest.approx(0.1 * PLAIN.devices, abs=0.01)
    assert PLAIN.devices == sum(bool(unit.entry.length) for unit in PLAIN.units)


def test_a_read_waits_for_one_round_trip() -> None:
    result = start(PLAIN, [("bin/9", 0, B)])
    (wait,) = result.waits
    # Another connection than that of the pull would take two.
    assert RTT < wait < RTT + 0.02
    assert result.requests == 4
    assert result.ready_s == pytest.approx(PULL_S + wait, abs=0.01)


def test_a_sector_that_has_arrived_serves_its_neighbours() -> None:
    result = start(PLAIN, [("bin/9", 0, B), ("bin/10", 0, B), ("bin/9", 0, B)], us=500_000)
    assert result.waits[0] > RTT
    assert result.waits[1:] == [0, 0]
    assert result.requests == 4


def test_an_answer_costs_an_event_as_long_as_a_sector_is_not_whole() -> None:
    work = fit(CONTENT, trace([("bin/9", 0, B), ("bin/9", 0, B)], step_us=1_000_000))
    costs = NOTHING._replace(event_s=0.25)
    first, second = replay(PLAIN, LINK, costs, steps(work, PLAIN)).waits
    assert first > RTT + 0.25
    assert second == 0


def test_a_slow_link_brings_what_a_read_waits_for_first() -> None:
    """After the first answer the rate is known, and no more is asked for than is needed."""
    slow = LinkSpeed(80e3, RTT, "slow")  # 10 kB/s
    offset = LARGE // S * S - S
    result = start(PLAIN, [("bin/9", 0, B), ("large", offset, B)], slow)
    ((unit, _, _),) = PLAIN.needs(_key("large"), offset, B)
    assert result.waits[1] < PLAIN.units[unit].entry.length / slow.bytes_per_s * 0.6


def test_a_sequential_reader_is_read_ahead_of() -> None:
    reads: Reads = [("large", at, S) for at in range(0, LARGE, S)]
    fast = LinkSpeed(80e9, 0.0001, "fast")
    result = start(PLAIN, reads, fast, us=300_000)
    assert min(result.waits[:2]) > 0
    assert result.waits[2:4] == [0, 0]


def test_hot_sectors_come_before_they_are_read() -> None:
    streamed = start(hot(EVERYTHING), EVERYTHING, prefetch="hot", us=1000)
    asked = start(hot(EVERYTHING), EVERYTHING, us=1000)
    cold = start(PLAIN, EVERYTHING, us=1000)
    assert streamed.ready_s < asked.ready_s <= cold.ready_s * 1.1
    assert streamed.requests <= asked.requests


def test_a_read_on_demand_goes_before_the_stream() -> None:
    slow = LinkSpeed(800e3, RTT, "slow")
    reads: Reads = [("large", 0, LARGE)]
    layout = hot(reads)
    work = fit(CONTENT, trace([("bin/20", 0, B)], step_us=600_000))
    result = replay(layout, slow, NOTHING, steps(work, layout), prefetch="hot")
    whole = sum(layout.units[number].entry.length for number in layout.stream) / slow.bytes_per_s
    assert result.waits[0] < whole / 2


def test_a_stream_begins_beside_the_metadata() -> None:
    work = fit(CONTENT, trace(EVERYTHING, step_us=1000))
    layout = hot(EVERYTHING)
    reads, check = steps(work, layout), NOTHING._replace(metadata_s=1.0)
    at_once, later = (
        replay(layout, LINK, costs, reads, prefetch="hot") for costs in (NOTHING, check)
    )
    assert sum(later.waits) < sum(at_once.waits), "it goes on while the metadata is checked"
    assert later.ready_s < at_once.ready_s + 1.0


def test_a_stream_begins_when_the_metadata_begins_to_come() -> None:
    """A round trip after it was asked for; then a connection and another one for the stream."""
    reads = steps(fit(CONTENT, trace(EVERYTHING, step_us=0)), hot(EVERYTHING))
    result = replay(hot(EVERYTHING), LINK, NOTHING, reads[:1], prefetch="hot")
    assert result.ready_s == pytest.approx(PULL_S + 2 * RTT, abs=0.05)


def test_workers_need_the_core_of_the_workload_if_there_is_no_other() -> None:
    link, layout = LinkSpeed(80e9, 0.0001, "fast"), hot(EVERYTHING)
    stored = sum(unit.entry.length for unit in layout.units)  # on such a link all of it comes
    busy = NOTHING._replace(worker_bytes_per_s=stored / 4.0)
    one, two = (
        replay(layout, link, busy._replace(cores=cores), [Step(10.0, [])], prefetch="hot").ready_s
        for cores in (1, 2)
    )
    assert one - two == pytest.approx(4.0, rel=0.1)


def test_the_time_of_the_tracer_is_taken_out() -> None:
    work = fit(CONTENT, trace([("bin/9", 0, B), ("bin/9", 0, B)], step_us=1_000_000))
    whole, less = (
        replay(PLAIN, NEAR, NOTHING._replace(traced_s=s), steps(work, PLAIN)).ready_s
        for s in (0.0, 0.25)
    )
    assert whole - less == pytest.approx(2 * 0.25, abs=0.01)


def test_files_on_their_own_take_a_request_each() -> None:
    reads: Reads = [(f"bin/{n}", 0, B) for n in range(10, 20)]
    result = start(FILES, reads, us=1000)
    assert result.requests == 3 + 10
    assert all(wait >= RTT for wait in result.waits)


def test_nothing_waits_on_a_link_without_delay() -> None:
    work = fit(CONTENT, trace(EVERYTHING, step_us=1000))
    result = replay(PLAIN, NEAR, NOTHING, steps(work, PLAIN), work.end_s)
    assert result.ready_s == pytest.approx(work.local_s, rel=0.05)


@given(
    reads=st.lists(
        st.tuples(st.sampled_from(["large", "bin/3", "bin/8", "bin/30", "sparse"]),
                  st.integers(0, 70).map(lambda n: n * B), st.integers(1, 40).map(lambda n: n * B)),
        min_size=1, max_size=30,
    ),
    mbit=st.floats(0.1, 10_000),
    rtt=st.sampled_from([0.0, 0.001, 0.02, 0.3]),
    us=st.integers(0, 50_000),
    kind=st.sampled_from(["plain", "hot", "streamed", "files"]),
)  # fmt: skip
def test_every_read_is_answered_and_no_byte_comes_twice(
    reads: Reads, mbit: float, rtt: float, us: int, kind: str
) -> None:
    reads = [read for read in reads if read[1] < CONTENT.file(_key(read[0])).size]
    if not reads:
        return
    link = LinkSpeed(mbit * 1e6, rtt, "any")
    layouts: dict[str, Layout] = {"plain": PLAIN, "files": FILES}
    layout = layouts.get(kind) or hot(reads)
    result = start(layout, reads, link, prefetch="hot" if kind == "streamed" else "none", us=us)
    assert len(result.waits) == len(reads)
    assert result.bytes <= layout.size + FIRST_WINDOW
    needed = any(step.needs for step in steps(fit(CONTENT, trace(reads)), layout))
    assert result.bytes * 8 / link.bits_per_s <= result.ready_s + 1e-6
    assert (result.requests > 3) == needed or kind == "streamed"
    again = start(layout, reads, link, prefetch="hot" if kind == "streamed" else "none", us=us)
    assert again == result


def _key(path: str) -> FileKey:
    found = CONTENT.find(path.encode())
    assert found is not None
    return found

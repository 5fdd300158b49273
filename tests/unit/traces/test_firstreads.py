# SPDX-License-Identifier: Apache-2.0
"""First reads: each block once, at its earliest time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.traces.firstreads import FirstReads, merge, only_first
from firstread.traces.tracefile import MAX_READ_SIZE, Trace, TracedRead, TraceHeader

B = 4096
SMALL = st.builds(
    TracedRead,
    st.integers(0, 9),
    st.integers(0, 40).map(lambda block: block * B),
    st.integers(1, 20).map(lambda block: block * B),
    st.sampled_from([b"a", b"b"]),
)


def blocks(reads: Sequence[TracedRead]) -> list[tuple[bytes, int]]:
    return [
        (read.path, block)
        for read in reads
        for block in range(read.offset // B, (read.offset + read.length) // B)
    ]


@given(st.lists(SMALL))
def test_each_block_comes_once_and_as_early_as_it_was_read(reads: list[TracedRead]) -> None:
    first = list(only_first(reads))
    times: dict[tuple[bytes, int], int] = {}
    for read in sorted(reads, key=lambda read: read.time_us):
        for block in blocks([read]):
            times.setdefault(block, read.time_us)
    assert len(blocks(first)) == len(times)
    assert {b: r.time_us for r in first for b in blocks([r])} == times


def test_a_read_of_two_regions_is_whole() -> None:
    read = TracedRead(0, MAX_READ_SIZE - B, 2 * B, b"a")
    assert blocks(list(FirstReads().of(read))) == blocks([read])


def test_a_part_of_a_block_counts_whole() -> None:
    assert list(FirstReads().of(TracedRead(0, 0, 1, b"a"))) == [TracedRead(0, 0, B, b"a")]


def test_hostile_offsets_take_no_memory() -> None:
    first = FirstReads()
    for number in range(1000):
        list(first.of(TracedRead(0, (1 << 61) + number * (1 << 40), 1, b"a")))
    assert sum(value.bit_length() for value in first._seen.values()) <= 1000 * 1024


def test_traces_merge_by_the_earliest_time() -> None:
    one = Trace(
        TraceHeader(version=1, image="x", ready_us=10, read_ahead_kib=4),
        [TracedRead(1, 0, B, b"a"), TracedRead(5, 0, B, b"b")],
    )
    two = Trace(
        TraceHeader(version=1, image="x", ready_us=20, read_ahead_kib=8, starts=2),
        [TracedRead(2, 0, B, b"b"), TracedRead(3, 0, 2 * B, b"a")],
    )
    merged = merge([one, two])
    assert merged.reads == [
        TracedRead(1, 0, B, b"a"),
        TracedRead(2, 0, B, b"b"),
        TracedRead(3, B, B, b"a"),
    ]
    header = merged.header
    assert (header.image, header.ready_us, header.starts, header.read_ahead_kib) == ("x", 20, 3, 8)


def test_traces_of_two_images_merge_without_a_name() -> None:
    traces = [Trace(TraceHeader(version=1, image=name), []) for name in ("x", "y")]
    assert merge(traces).header.image == ""
    assert merge(traces).header.ready_us is None


def test_a_merged_trace_has_no_more_reads_than_a_trace_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstread.traces.firstreads.MAX_READS", 3)
    header = TraceHeader(version=1)
    traces = [
        Trace(header, [TracedRead(time, 4096 * time, 4096, name) for time in range(3)])
        for name in (b"a", b"b")
    ]
    assert [read.time_us for read in merge(traces).reads] == [0, 0, 1]

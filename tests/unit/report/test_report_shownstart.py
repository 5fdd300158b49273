# SPDX-License-Identifier: Apache-2.0
"""What counts as a start, and the figures of one."""

from __future__ import annotations

import pytest
from msgspec import structs

from firstread.fetch.imagehistory import ReadWaited, RequestMade, SectorCame, Step
from firstread.report.shownstart import (
    LEAST_S,
    QUIET_S,
    Start,
    Wait,
    cause_of,
    directories,
    of_record,
    of_trace,
)
from firstread.report.startrecord import FileRead
from firstread.testing.startrecords import start_record
from firstread.traces.tracefile import Trace, TracedRead, TraceHeader
from firstread.units import MiB


def start(*reads: tuple[float, float], kind: str = "start", **more: object) -> Start:
    waits = [Wait(at, seconds, 4096) for at, seconds in reads]
    return Start("x", kind, [], waits, [], **more)  # type: ignore[arg-type]


def test_a_start_is_over_when_reads_pause() -> None:
    found = start((1, 1), (2 + QUIET_S, 1), (30 + QUIET_S, 1))
    assert found.end == 3 + QUIET_S
    assert found.waits() == [1, 1]
    assert found.later_reads() == 1


def test_a_start_lasts_at_least_as_long_as_its_steps() -> None:
    assert start((1, 1), steps=[Step("mount", 0, 40)]).end == 40
    assert start((1, 1), ready=20.0).end == 20
    assert start().end == LEAST_S


def test_a_trace_has_no_pauses() -> None:
    assert start((0, 0), (600, 0), kind="trace").end == 600


def test_bytes_of_a_request_arrive_evenly() -> None:
    requests = [
        RequestMade(1.0, 2.0, 0, "demand", 400, 400),
        RequestMade(3.0, 0.0, 0, "prefetch", 100, 100),
        RequestMade(3.5, 9.0, 0, "demand", 100, 0),
    ]
    found = start(requests=requests).arrivals(4.0, 4)
    assert found["demand"] == [0, 200, 200, 0]
    assert found["prefetch"] == pytest.approx([0, 0, 0, 100])


def test_bytes_that_come_after_the_axis_are_left_out() -> None:
    found = start(requests=[RequestMade(1.0, 2.0, 0, "demand", 400, 400)])
    assert found.arrivals(2.0, 2) == {"demand": [0, 200]}


def test_a_sector_was_there_before_or_is_absent() -> None:
    assert cause_of(SectorCame(9, 1, 9, None, None)) == "before"
    assert cause_of(SectorCame(9, 1, 8, None, None)) == "absent"
    assert cause_of(SectorCame(9, 1, 9, "hot", 1.0)) == "hot"


def test_a_record_says_when_it_was_ready() -> None:
    record = start_record()
    assert of_record(record).ready == 2.0
    record.steps.append(Step("ready", 2.0, 0.5))
    assert of_record(record).ready == 2.5
    assert of_record(structs.replace(record, steps=[])).ready is None


def test_bytes_that_were_fetched_and_not_read() -> None:
    record = start_record()
    record.sectors[7] = SectorCame(4 * MiB, MiB, 4 * MiB, None, None)  # was on the node before
    assert of_record(record).unused() == (16 * MiB, 12 * MiB)
    record.used = None
    assert of_record(record).unused() is None


def test_a_moment_that_no_calendar_has() -> None:
    for began in (-1e300, 1e300):
        assert dict(of_record(structs.replace(start_record(), began=began)).facts)["began"]


def test_a_trace_is_summed_up_by_file() -> None:
    reads = [TracedRead(5, 0, 4096, b"a"), TracedRead(9, 8192, 8192, b"b\xff")]
    reads.append(TracedRead(2_000_000, 4096, 8192, b"a"))
    found = of_trace(Trace(TraceHeader(version=1, ready_us=1_500_000), reads), "t")
    assert [(f.path, f.reads, f.bytes) for f in found.files] == [
        ("/a", 2, 12288),
        ("/b\\xff", 1, 8192),
    ]
    assert [f.first for f in found.files] == pytest.approx([5e-6, 9e-6])
    assert (found.ready, found.end) == (1.5, 2.0)


def row(path: str, size: int) -> FileRead:
    return FileRead(path, 1, size, 1.0, 0.5, None)


TREE = [row("/a/b/c/one", 50), row("/a/b/d/two", 30), row("/a/b/three", 5), row("/e/four", 9)]


@pytest.mark.parametrize(
    ("most", "found"),
    [
        (1, {"/": 94}),
        (2, {"/a/b/": 85, "/e/": 9}),
        (4, {"/a/b/c/": 50, "/a/b/d/": 30, "/a/b/*": 5, "/e/": 9}),
        (9, {"/a/b/c/": 50, "/a/b/d/": 30, "/a/b/*": 5, "/e/": 9}),
    ],
)
def test_directories_are_as_deep_as_there_is_room(most: int, found: dict[str, int]) -> None:
    rows = directories(TREE, most)
    assert {row.path: row.bytes for row in rows} == found
    assert [row.bytes for row in rows] == sorted(found.values(), reverse=True)


def test_a_directory_sums_up_its_files() -> None:
    files = [FileRead("/a/b", 1, 10, None, 0.5, 7), FileRead("/a/c", 2, 20, 3.0, 1.0, None)]
    assert directories(files, 1) == [FileRead("/a/", 3, 30, 3.0, 1.5, 7)]
    assert directories([], 5) == []


def test_reads_are_shown_in_order_of_time() -> None:
    record = start_record()
    record.reads[0] = ReadWaited(1.9, 0.01, 0, 0, 4096)
    assert [read.at for read in of_record(record).reads] == sorted(r.at for r in record.reads)

# SPDX-License-Identifier: Apache-2.0
"""A trace as the work of an image."""

from __future__ import annotations

import pytest

from firstread.errors import UsageError
from firstread.testing.tuning import convert, trace
from firstread.tune.workload import fit

CONTENT = convert().content
B = 4096


def test_the_time_between_reads_is_work() -> None:
    work = fit(CONTENT, trace([("large", 0, B), ("bin/9", 0, B)], step_us=2000, ready_us=10_000))
    assert [read.think_s for read in work.reads] == [0.002, 0.002]
    assert work.end_s == pytest.approx(0.006)
    assert work.local_s == pytest.approx(0.010)


def test_without_a_moment_of_readiness_the_last_read_is_it() -> None:
    work = fit(CONTENT, trace([("large", 0, B), ("bin/9", 0, B)]))
    assert (work.end_s, work.later) == (0, 0)


def test_reads_after_ready_do_not_count() -> None:
    work = fit(CONTENT, trace([("large", 0, B), ("bin/9", 0, B)], ready_us=1500))
    assert (len(work.reads), work.later) == (1, 1)


def test_reads_of_other_images_are_counted() -> None:
    reads = [("gone", 0, B), ("large", 0, B), ("bin", 0, B), ("large", 1 << 30, B)]
    work = fit(CONTENT, trace(reads))
    assert (len(work.reads), work.left_out) == (1, 3)
    assert work.local_s == pytest.approx(0.004), "their time passes nevertheless"


@pytest.mark.parametrize("reads", [[], [("gone", 0, B)]])
def test_a_trace_with_nothing_of_the_image_is_an_error(reads: list[tuple[str, int, int]]) -> None:
    with pytest.raises(UsageError, match=r"no reads|none of the 1 reads"):
        fit(CONTENT, trace(reads))


def test_a_trace_that_is_ready_before_its_first_read_is_called_that() -> None:
    with pytest.raises(
        UsageError, match=r"all 1 reads of the trace .* after the workload was ready"
    ):
        fit(CONTENT, trace([("large", 0, B)], step_us=1000, ready_us=1))


def test_a_workload_has_the_pace_of_a_local_start() -> None:
    work = fit(CONTENT, trace([("bin/9", 0, 4096), ("large", 0, 4096)], ready_us=5000))
    paced = work.paced(work.local_s / 4)
    assert paced.local_s == pytest.approx(work.local_s / 4)
    assert [read.think_s * 4 for read in paced.reads] == pytest.approx(
        [read.think_s for read in work.reads]
    )
    assert work.paced(0).local_s == 0

# SPDX-License-Identifier: Apache-2.0
"""Which reads of a soak should have been saved."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.soak.judge import Row, Span, exit_code, judge, last_line, table
from benchmarks.soak.plan import TROUBLES, times

pytestmark = pytest.mark.benchmarks

CALM = Span("nothing", 0.0, 10.0)
FLIPS = Span("flips", 10.0, 20.0, 7, may_fail=frozenset({"real"}), must_fail=True)
KILLS = (Span("kill", 20.0, 25.0, 1), Span("kill", 25.0, 30.0, 1))
SPANS = (CALM, FLIPS, *KILLS)
GONE = [(26.0, 27.0)]


def bad(start: float, end: float, kind: str = "failed") -> dict[str, Any]:
    return {"bad": kind, "path": "x", "from": start, "to": end, "errno": 5}


def good(end: float, reads: int = 1, *seconds: float) -> dict[str, Any]:
    return {"from": end - 0.2, "to": end, "reads": reads, "seconds": list(seconds)}


def judged(group: str, *records: dict[str, Any]) -> dict[str, Row]:
    return {row.name: row for row in judge([(group, records)], SPANS, GONE, "other")}


def counts(row: Row) -> tuple[int, int, int, int]:
    return row.reads, row.failed, row.allowed, row.wrong


def test_a_read_that_fails_while_nothing_is_wrong_should_not() -> None:
    rows = judged("real", good(5.0, 3), bad(4.0, 5.0))
    assert counts(rows["nothing"]) == (4, 1, 0, 0)
    assert exit_code(list(rows.values())) == 1


def test_a_fault_that_cannot_be_saved_fails_its_own_mounts_only() -> None:
    assert counts(judged("real", bad(11.0, 12.0))["flips"]) == (1, 0, 1, 0)
    assert counts(judged("other", bad(11.0, 12.0))["flips"]) == (1, 1, 0, 0)
    # It is counted where it ends, and belongs to what began it.
    assert counts(judged("real", bad(19.0, 21.0))["kill"]) == (1, 0, 1, 0)
    assert counts(judged("real", bad(20.5, 21.0))["kill"]) == (1, 1, 0, 0)


def test_reads_may_fail_while_nobody_holds_the_descriptors() -> None:
    rows = judged("other", bad(25.5, 26.5), bad(26.9, 28.0), bad(27.5, 28.0), bad(20.0, 25.9))
    assert counts(rows["kill"]) == (4, 2, 2, 0)
    assert rows["kill"].count == 2


def test_wrong_bytes_are_never_allowed() -> None:
    rows = judged("real", bad(11.0, 12.0, "wrong"), bad(26.0, 26.5, "wrong"))
    assert rows["flips"].wrong == rows["kill"].wrong == 1
    assert exit_code(list(rows.values())) == 1
    assert rows["flips"].outcome(Row("")) == "NOT as the policy says"


def test_a_reader_that_hangs_is_said_in_the_last_line() -> None:
    rows = list(judged("real", bad(1.0, 9.0, "hung")).values())
    assert last_line(rows).endswith(", 1 readers hung")
    assert exit_code(rows) == 1


def test_all_well() -> None:
    rows = list(judged("real", good(5.0, 40), bad(11.0, 12.0)).values())
    assert last_line(rows) == "41 reads, 0 failed, 0 wrong, 9 faults injected"
    assert exit_code(rows) == 0
    assert [row.outcome(Row("")) for row in rows] == ["yes"] * 3


def test_a_fault_that_should_have_shown_and_did_not_is_told() -> None:
    rows = judged("real", good(12.0, 5))
    assert rows["flips"].outcome(Row("")) == "no read failed in this time"


def test_others_are_compared_with_how_they_were_undisturbed() -> None:
    calm, slow = good(5.0, 100, *[0.01] * 100), good(11.0, 100, *[0.01] * 90, *[0.03] * 10)
    rows = list(judged("other", calm, slow, bad(11.0, 11.5)).values())
    assert rows[0].p99_s == 0.01
    rows[1].failed = 0
    rows[1].allowed = 1
    assert rows[1].outcome(rows[0]) == "others wait LONGER"
    assert table(rows)[2][6] == "30 ms (3.0x)"
    assert table(rows)[3][6] == ""  # too few to say anything


def test_reads_that_wait_until_an_attack_is_over() -> None:
    attack = Span("attack", 10.0, 20.0, 1, goes_on=True)
    for reads, waits in ((5, False), (4, True)):
        logs = [("real", [good(5.0, 100), good(15.0, reads)])]
        rows = judge(logs, [CALM, attack], [], "other")
        assert (rows[1].outcome(rows[0]) == "reads wait for its END") is waits
        assert exit_code(rows) == int(waits)


def test_the_time_is_divided() -> None:
    long, short = times(600, 6), times(1, 6)
    spent = long.undisturbed + long.kills + len(TROUBLES) * (long.each_trouble + 1)
    assert abs(spent + 6 * (long.each_attack + 1) - 600) < 1
    assert min(short.undisturbed, short.each_trouble, short.each_attack, short.kills) > 3


def test_left_out_faults_give_their_time_to_the_rest() -> None:
    one = times(100, 1, {"attacks"})
    assert (one.undisturbed, one.each_trouble, one.each_attack, one.kills) == (5, 0, 94, 0)
    two = times(100, 2, {"attacks", "kills"})
    assert abs(two.undisturbed + 2 * (two.each_attack + 1) + two.kills - 100) < 1

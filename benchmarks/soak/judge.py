# SPDX-License-Identifier: Apache-2.0
"""Judges the logs of readers: which reads should the policy have saved? Pure.

Owns the rules, the table and the last line. Invariant: every bad read is counted in exactly one
row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

P99_LIMIT = 2.0  # of other mounts, times what it is undisturbed
LEAST_SAMPLES = 50  # for a percentile to mean anything
LEAST_PACE = 0.05  # of the reads a second without a fault: with less, they wait until it is over

Record = dict[str, Any]
HEAD = (
    "what fails",
    "times",
    "reads",
    "failed",
    "allowed to",
    "wrong",
    "p99 of others",
    "as it should be",
)


@dataclass(frozen=True)
class Span:
    """A time with one fault.

    Args:
        name: of the row.
        start: monotonic seconds.
        end: likewise.
        count: injected faults, or kills.
        may_fail: groups whose reads the policy lets fail.
        must_fail: some of these reads must fail; the table reports if none did.
        others: compare the reads of other mounts with undisturbed ones.
        goes_on: it does not concern reads: they may be slow, but must not wait for its end.
    """

    name: str
    start: float
    end: float
    count: int = 0
    may_fail: frozenset[str] = frozenset()
    must_fail: bool = False
    others: bool = True
    goes_on: bool = False


@dataclass
class Row:
    """The fate of reads in all spans of one name."""

    name: str
    count: int = 0
    reads: int = 0
    failed: int = 0
    allowed: int = 0
    wrong: int = 0
    hung: int = 0
    must_fail: bool = False
    others: bool = True
    goes_on: bool = False
    lasted_s: float = 0.0
    seconds: list[float] = field(default_factory=list)  # of files of other mounts

    def waits(self, undisturbed: Row) -> bool:
        """Return whether reads waited until the end of something that does not concern them."""
        if not self.goes_on or not undisturbed.lasted_s:
            return False
        return self.reads / self.lasted_s < LEAST_PACE * undisturbed.reads / undisturbed.lasted_s

    @property
    def p99_s(self) -> float | None:
        """The 99th percentile of the time for a file of other mounts."""
        if len(self.seconds) < LEAST_SAMPLES:
            return None
        return sorted(self.seconds)[int(0.99 * len(self.seconds))]

    def outcome(self, undisturbed: Row) -> str:
        """Return in a few words whether the policy held."""
        if self.failed or self.wrong or self.hung:
            return "NOT as the policy says"
        if self.waits(undisturbed):
            return "reads wait for its END"
        if self.must_fail and not self.allowed:
            return "no read failed in this time"
        limit_s = P99_LIMIT * (undisturbed.p99_s or 0.0)
        slow = self.others and limit_s and self.p99_s and self.p99_s > limit_s
        return "others wait LONGER" if slow else "yes"


def judge(
    logs: Iterable[tuple[str, Sequence[Record]]],
    spans: Sequence[Span],
    gone: Sequence[tuple[float, float]],
    bystander: str,
) -> list[Row]:
    """Return a row for each name of a span, in order.

    Args:
        logs: (group of mounts, lines of a reader of it).
        spans: one after the other, in order of time.
        gone: times in which no process held the kernel's descriptors: any read may fail then.
        bystander: the group whose sectors come from the undisturbed registry.
    """
    rows: dict[str, Row] = {}
    for span in spans:
        row = rows.setdefault(span.name, Row(span.name))
        row.count += span.count
        row.lasted_s += span.end - span.start
        row.must_fail, row.others, row.goes_on = span.must_fail, span.others, span.goes_on
    for group, records in logs:
        for record in records:
            found = _span_of(spans, record["to"])
            if found is None:
                continue
            row = rows[found.name]
            if "reads" in record:
                row.reads += record["reads"]
                if group == bystander:
                    row.seconds += record["seconds"]
            else:
                _count(row, record, group, spans, gone)
    return list(rows.values())


def _count(
    row: Row,
    record: Record,
    group: str,
    spans: Sequence[Span],
    gone: Sequence[tuple[float, float]],
) -> None:
    row.reads += 1
    if record["bad"] == "wrong":
        row.wrong += 1
    elif record["bad"] == "hung":
        row.hung += 1
    elif _allowed(record, group, spans, gone):
        row.allowed += 1
    else:
        row.failed += 1


def _allowed(
    record: Record, group: str, spans: Sequence[Span], gone: Sequence[tuple[float, float]]
) -> bool:
    start, end = record["from"], record["to"]
    return any(start <= until and since <= end for since, until in gone) or any(
        group in span.may_fail and span.start <= end and start <= span.end for span in spans
    )


def _span_of(spans: Sequence[Span], moment: float) -> Span | None:
    return next((span for span in spans if span.start <= moment < span.end), None)


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the cells of the table, its head first."""
    undisturbed = rows[0].p99_s
    cells: list[tuple[str, ...]] = [HEAD]
    for row in rows:
        p99 = row.p99_s
        times = f" ({p99 / undisturbed:.1f}x)" if p99 and undisturbed and row is not rows[0] else ""
        cells.append(
            (
                row.name,
                f"{row.count:,}" if row.count else "",
                f"{row.reads:,}",
                str(row.failed),
                str(row.allowed),
                str(row.wrong),
                f"{p99 * 1000:.0f} ms{times}" if p99 else "",
                row.outcome(rows[0]),
            )
        )
    return cells


def last_line(rows: Sequence[Row]) -> str:
    """Return the last line of a soak."""
    reads, failed, wrong, count = (
        sum(getattr(row, name) for row in rows) for name in ("reads", "failed", "wrong", "count")
    )
    hung = sum(row.hung for row in rows)
    return (
        f"{reads} reads, {failed} failed, {wrong} wrong, {count} faults injected"
        f"{f', {hung} readers hung' if hung else ''}"
    )


def exit_code(rows: Sequence[Row]) -> int:
    """Return 1 if a byte was wrong, or if a read wrongly failed, hung or waited."""
    return int(any(row.failed or row.wrong or row.hung or row.waits(rows[0]) for row in rows))

# SPDX-License-Identifier: Apache-2.0
"""The figures of starts: one `Run` each, grouped, summed up, and as CSV.

Owns the columns. Works on values; the one file that it writes is the CSV.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import median, percentile

MB = 1_000_000


@dataclass(frozen=True)
class Run:
    """One cold start; times are seconds from the request to pull.

    Args:
        link: name of the link.
        workload: name of the workload.
        mode: name of the mode.
        number: of the run, from 0.
        pulled_s: the image is pulled; 0 if there is no such moment.
        ready_s: the workload answers.
        sent_bytes: bodies that the registry had sent in full by then.
        requests: that it had answered with them, GET only.
        wire_bytes: that had come over the link, with headers; 0 without a link.
        present: sectors on the node; 0 if it has none.
        sectors: of the image.
        hot_bytes: compressed, of the sectors that the image calls hot.
    """

    link: str
    workload: str
    mode: str
    number: int
    pulled_s: float = 0.0
    ready_s: float = 0.0
    sent_bytes: int = 0
    requests: int = 0
    wire_bytes: int = 0
    present: int = 0
    sectors: int = 0
    hot_bytes: int = 0

    @property
    def bytes_to_ready(self) -> int:
        """Bytes that had come when it was ready: of the link, if there is one."""
        return self.wire_bytes or self.sent_bytes


@dataclass(frozen=True)
class Cell:
    """All runs of one mode with one workload and link; at least one."""

    runs: tuple[Run, ...]

    @property
    def ready_s(self) -> float:
        return median([run.ready_s for run in self.runs])

    @property
    def spread(self) -> tuple[float, float]:
        """The fastest run, and the 95th percentile."""
        times = [run.ready_s for run in self.runs]
        return min(times), percentile(times, 0.95)

    @property
    def middle(self) -> Run:
        """The run of the median."""
        return sorted(self.runs, key=lambda run: run.ready_s)[len(self.runs) // 2]

    def __str__(self) -> str:
        (low, high), run = self.spread, self.middle
        parts = [f"{self.ready_s:.2f} s" + (f" ({low:.2f} to {high:.2f})" if low < high else "")]
        if run.pulled_s:
            parts.append(f"pull {run.pulled_s:.2f}")
        parts.append(f"{run.bytes_to_ready / MB:.1f} MB, {run.requests} requests")
        if run.sectors:
            parts.append(f"{run.present} of {run.sectors} sectors")
        return ", ".join(parts)


Cells = dict[tuple[str, str, str], Cell]
"""By link, workload and mode, in the order of the command line."""


def cells(runs: Iterable[Run]) -> Cells:
    """Group runs."""
    grouped: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.link, run.workload, run.mode), []).append(run)
    return {key: Cell(tuple(group)) for key, group in grouped.items()}


def write_csv(runs: Iterable[Run], path: Path) -> None:
    """Write one line for each run."""
    names = [field.name for field in dataclasses.fields(Run)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for run in runs:
            writer.writerow(_text(getattr(run, name)) for name in names)


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def table(found: Cells) -> list[str]:
    """Return a Markdown table for each link: ready times, bytes and requests of each cell."""
    lines = []
    for link in dict.fromkeys(key[0] for key in found):
        lines += [
            f"**Link: {link}**",
            "",
            "| image | mode | ready, median s | min | p95 | pull s | MB | requests |",
            "|---|---|--:|--:|--:|--:|--:|--:|",
        ]
        for (at, workload, mode), cell in found.items():
            if at == link:
                run, (low, high) = cell.middle, cell.spread
                pull = f"{run.pulled_s:.2f}" if run.pulled_s else ""
                lines.append(
                    f"| {workload} | {mode} | {cell.ready_s:.2f} | {low:.2f} | {high:.2f} | {pull}"
                    f" | {run.bytes_to_ready / MB:.1f} | {run.requests} |"
                )
        lines.append("")
    return lines

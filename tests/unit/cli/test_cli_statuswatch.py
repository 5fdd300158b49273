# SPDX-License-Identifier: Apache-2.0
"""How a status looks while somebody watches it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from msgspec import structs
from rich.console import Console

from firstread.cache.report import OnlineFigures
from firstread.cli.statuswatch import BAR, Rates, bar, display, lines
from firstread.config import PolicyTable
from firstread.control.daemonstatus import (
    ConfigurationStatus,
    FetcherStatus,
    Status,
    SupervisorStatus,
)
from firstread.fetch.stats import ImageStats
from firstread.mounts.counts import NodeCounts
from firstread.mounts.nodestatus import MountStatus, Policies
from firstread.units import MiB


def mounted(**values: Any) -> MountStatus:
    fields = structs.asdict(ImageStats().figures()) | {
        "mountpoint": "/m",
        "image": "host/app:1",
        "digest": "sha256:0",
        "device": "fanotify",
        "repository": "r",
        "source": "s",
        "sectors": 80,
        "present": 60,
        "self_sufficient": False,
        "pinned": False,
        "holders": [],
        "policies": Policies.of(PolicyTable()),
        "wanted": 0,
        "prefetch": "hot",
        "hot": 0,
        "hot_present": 0,
        "read_ahead_kib": 16,
        "came_by_cause": {"demand": 30, "prefetch": 10},
        "last_waits_s": [0.1, 0.2, 0.3, 0.4, 0.05],
        "bytes_fetched": 10 * MiB,
        "requests": 7,
    }
    return MountStatus(**(fields | values))


def status(*mounts: MountStatus) -> Status:
    store = dict.fromkeys(OnlineFigures.__struct_fields__, 0)
    return Status(
        store=OnlineFigures(**store),
        mounts=list(mounts),
        totals=NodeCounts().document(ImageStats()),
        endpoints=[],
        supervisor=SupervisorStatus(11),
        fetcher=FetcherStatus(pid=12, restarts=0, healthy=True, waiting_reads=3),
        namespace="",
        configuration=ConfigurationStatus(None, {}),
    )


def shown(*mounts: MountStatus, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(display(status(*mounts), {"/m": 2 * MiB}))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rates_come_from_two_statuses() -> None:
    rates = Rates()
    assert rates.of(status(mounted(bytes_fetched=100)), 1.0) == {"/m": 0}
    assert rates.of(status(mounted(bytes_fetched=400)), 3.0) == {"/m": 150}
    assert rates.of(status(mounted(bytes_fetched=50)), 4.0) == {"/m": 0}  # of a new fetcher
    both = status(mounted(bytes_fetched=60), mounted(mountpoint="/n"))
    assert rates.of(both, 5.0) == {"/m": 10, "/n": 0}


def test_a_line_for_each_mount() -> None:
    (line,) = lines(status(mounted()), {"/m": 2 * MiB}, 0.0)
    assert line[8:] == (
        "  /m  60 of 80 sectors (30 demand, 10 prefetch)  2.0 MiB/s  10.0 MiB in 7 requests"
        "  waiting: 3 reads  last waits: 50.0, 400.0, 300.0, 200.0 ms"
    )
    (line,) = lines(status(), {}, 0.0)
    assert line[8:] == "  nothing is mounted  waiting: 3 reads"


@pytest.mark.parametrize(
    ("values", "styles"),
    [
        ({}, {"default": 10, "blue": 15, "green": 5, "bright_black": 10}),
        ({"present": 0, "came_by_cause": {}}, {"bright_black": BAR}),
        ({"present": 80, "came_by_cause": {}}, {"default": BAR}),
        ({"present": 1, "came_by_cause": {"demand": 160}}, {"blue": BAR}),  # evicted since
        ({"present": 4, "came_by_cause": {"new": 4}}, {"default": 2, "bright_black": BAR - 2}),
        ({"sectors": 0, "present": 0, "came_by_cause": {}}, {"bright_black": BAR}),
    ],
)
def test_a_bar_shows_why_sectors_came(values: dict[str, Any], styles: dict[str, int]) -> None:
    drawn = bar(mounted(**values))
    assert len(drawn) == BAR
    assert {str(s.style): s.end - s.start for s in drawn.spans} == styles


def test_a_terminal_shows_each_mount() -> None:
    text = shown(mounted(last_error="it broke"))
    assert "daemon 11, waiting: 3 reads" in text
    assert "host/app:1  at /m\n" in text
    assert f"{'━' * 30}{'─' * 10}  60 of 80 sectors (30 demand, 10 prefetch)\n" in text
    assert "2.0 MiB/s  10.0 MiB in 7 requests  last waits: 50.0" in text
    assert "error: it broke\n" in text


def test_names_move_no_cursor_and_fit_the_terminal() -> None:
    hostile = mounted(image="[bold]x\x1b[2J" + "y" * 500, mountpoint="/m")
    text = shown(hostile, width=60)
    assert "\x1b" not in text
    assert "[bold]x" in text
    assert max(map(len, text.splitlines())) <= 60

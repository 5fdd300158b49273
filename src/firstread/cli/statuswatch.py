# SPDX-License-Identifier: Apache-2.0
"""``firstread status --watch``: mounts and what they fetch, live.

Owns the rates, which two statuses give, and how a status looks on a terminal and without one. A
terminal shows the last status; elsewhere each mount gets a line a second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from firstread.printable import printable
from firstread.units import counted, format_size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from firstread.control.client import Client
    from firstread.control.daemonstatus import Status
    from firstread.mounts.nodestatus import MountStatus

INTERVAL_S = 1.0
BAR = 40  # columns
STYLES = {
    "demand": "blue",
    "hot": "dark_orange",
    "prefetch": "green",
    "completion": "magenta",
    "background": "yellow",
}
HEALTHY, FAILING = "default", "red"


class Rates:
    """Bytes that each mount fetched a second, from the last two statuses."""

    def __init__(self) -> None:
        self._at = 0.0
        self._bytes: dict[str, int] = {}

    def of(self, status: Status, now: float) -> dict[str, float]:
        """Return the rates by mount point; 0 for a new mount, or after a new fetcher.

        Args:
            status: of now.
            now: monotonic seconds.
        """
        elapsed, before = max(now - self._at, 1e-3), self._bytes
        self._at = now
        self._bytes = {mount.mountpoint: mount.bytes_fetched for mount in status.mounts}
        return {
            place: max(0, count - before.get(place, count)) / elapsed
            for place, count in self._bytes.items()
        }


def watch(client: Client) -> None:
    """Show the status of the daemon each second until somebody interrupts it.

    Raises:
        FirstreadError: no daemon answers.
        OSError: stdout cannot be written.
    """
    statuses = _statuses(client)
    if not sys.stdout.isatty():
        for status, rates in statuses:
            click.echo("\n".join(map(printable, lines(status, rates, time.time()))))
        return
    from rich.live import Live

    from firstread.signals import unwinding_on_signals

    # A signal that ends it gives the cursor back.
    with unwinding_on_signals(), Live(auto_refresh=False) as live:
        for status, rates in statuses:
            live.update(display(status, rates), refresh=True)


def _statuses(client: Client) -> Iterator[tuple[Status, dict[str, float]]]:
    from firstread.control.daemonstatus import Status
    from firstread.documents import decode

    rates = Rates()
    while True:
        status = decode(client.get("/status"), Status)
        yield status, rates.of(status, time.monotonic())
        time.sleep(INTERVAL_S)


def lines(status: Status, rates: dict[str, float], moment: float) -> list[str]:
    """Return a line for each mount, or one if there is none.

    Args:
        status: of the daemon.
        rates: bytes a second, by mount point.
        moment: seconds since 1970.
    """
    clock = time.strftime("%H:%M:%S", time.localtime(moment))
    waiting = f"waiting: {counted(status.fetcher.waiting_reads, 'read')}"
    found = [
        f"{clock}  {mount.mountpoint}  {_sectors(mount)}  {_flow(mount, rates)}  {waiting}"
        f"{_waits(mount)}"
        for mount in status.mounts
    ]
    return found or [f"{clock}  nothing is mounted  {waiting}"]


def display(status: Status, rates: dict[str, float]) -> RenderableType:
    """Return what a terminal shows."""
    from rich.console import Group
    from rich.text import Text

    fetcher, store = status.fetcher, status.store
    head = (
        f"daemon {status.supervisor.pid}, waiting: {counted(fetcher.waiting_reads, 'read')}"
        f"    store {counted(store.sectors, 'sector')}, {format_size(store.bytes)}"
    )
    rows = [_cut(head)]
    for mount in status.mounts:
        rows += [
            Text(""),
            _cut(f"{mount.image}  at {mount.mountpoint}", "bold"),
            Text.assemble("  ", bar(mount), "  ", _sectors(mount), no_wrap=True, overflow="crop"),
            _cut(f"  {_flow(mount, rates)}{_waits(mount)}"),
        ]
        if mount.last_error:
            rows.append(_cut(f"  error: {mount.last_error}", FAILING))
    return Group(*rows)


def _cut(line: str, style: str = HEALTHY) -> Text:
    """Return one line, cut rather than wrapped; its text comes from anywhere."""
    from rich.text import Text

    return Text(printable(line), style, no_wrap=True, overflow="ellipsis")


def bar(mount: MountStatus) -> Text:
    """Return the sectors of a mount as a bar, in colours of why they came."""
    from rich.text import Text

    drawn, end = Text(), 0.0
    came = {cause: count for cause, count in mount.came_by_cause.items() if cause in STYLES}
    before = max(0, mount.present - sum(came.values()))
    scale = BAR / max(1, mount.sectors, before + sum(came.values()))
    parts = [("before", before), *((cause, came[cause]) for cause in STYLES if cause in came)]
    for cause, count in parts:
        begin, end = end, end + count * scale
        drawn.append("━" * (round(end) - round(begin)), STYLES.get(cause, "default"))
    return drawn.append("─" * (BAR - round(end)), "bright_black")


def _sectors(mount: MountStatus) -> str:
    causes = ", ".join(f"{count} {cause}" for cause, count in mount.came_by_cause.items())
    return f"{mount.present} of {mount.sectors} sectors{f' ({causes})' if causes else ''}"


def _flow(mount: MountStatus, rates: dict[str, float]) -> str:
    rate = rates.get(mount.mountpoint, 0.0)
    return (
        f"{format_size(rate)}/s  {format_size(mount.bytes_fetched)}"
        f" in {counted(mount.requests, 'request')}"
    )


def _waits(mount: MountStatus) -> str:
    """Return how long the last reads waited, the newest first."""
    last = ", ".join(f"{wait * 1000:.1f}" for wait in reversed(mount.last_waits_s[-4:]))
    return f"  last waits: {last} ms" if last else ""

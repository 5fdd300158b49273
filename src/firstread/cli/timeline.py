# SPDX-License-Identifier: Apache-2.0
"""The output of ``firstread run --stats``: the time of each step, and the bytes fetched.

Owns the clock and the lines (docs/run.md). Invariant: times count from the start of this process;
steps are those that a start waits for, in the order of their ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from firstread.errors import FirstreadError, NodeError
from firstread.units import counted, format_size

if TYPE_CHECKING:
    from firstread.control.client import Client
    from firstread.fetch.imagehistory import Step

    Keep = Callable[[Client, str, "Timeline"], None]


class Timeline:
    """Steps in seconds since the process began, and counters of the mount before and after.

    Args:
        keep: is told of the daemon and the mount point while the mount still exists.
    """

    def __init__(self, keep: Keep | None = None) -> None:
        self._keep = keep
        self._steps = {"command": _age()}
        self._lines: list[str] = []

    def mounted(self, mount: dict[str, Any], client: Client) -> None:
        """Add the daemon's measurements, and remember the counters so far.

        Args:
            mount: the daemon's answer.
            client: to ask it again.
        """
        moment = _age() - sum(mount["timeline"].values())
        for step, seconds in mount["timeline"].items():
            moment += seconds
            self._steps[step] = moment
        self._client, self._place = client, mount["mountpoint"]
        self._before = mount.get("before") or self._status()  # a daemon of before does not say

    def note(self, step: str) -> None:
        """Note the end of a step."""
        self._steps[step] = _age()

    def first_output(self) -> None:
        """Record the container's first output."""
        self.note("first output")

    def fetched(self) -> None:
        """Note the fetched bytes, while the mount still exists."""
        try:
            after, before = self._status(), self._before
        except FirstreadError as exc:
            self._lines = [f"  {'fetched':<13}unknown: {exc}"]
            return
        if after["requests"] < before["requests"]:
            before = {"bytes_fetched": 0, "requests": 0}  # a new fetcher starts from 0
        size = after["bytes_fetched"] - before["bytes_fetched"]
        requests = after["requests"] - before["requests"]
        self._lines = [
            f"  {'fetched':<13}{format_size(size)} in {counted(requests, 'request')};"
            f" {after['present']} of {after['sectors']} sectors are on this node"
        ]
        if self._keep is not None:
            self._keep(self._client, self._place, self)

    def report(self) -> list[str]:
        """Return the lines."""
        steps = sorted(self._steps.items(), key=lambda step: step[1])
        return [f"  {step:<13}{seconds * 1000:9.0f} ms" for step, seconds in steps] + self._lines

    def began(self) -> float:
        """Return when this process began, in seconds since 1970."""
        return time.time() - _age()

    def in_a_row(self) -> list[Step]:
        """Return the steps, each of which begins where the one before ends."""
        from firstread.fetch.imagehistory import Step

        ordered = sorted(self._steps.items(), key=lambda step: step[1])
        begins = [0.0, *(end for _, end in ordered)]
        return [
            Step(name, begin, end - begin)
            for (name, end), begin in zip(ordered, begins, strict=False)
        ]

    def _status(self) -> dict[str, Any]:
        mounts: list[dict[str, Any]] = self._client.get("/status")["mounts"]
        for mount in mounts:
            if mount["mountpoint"] == self._place:
                return mount
        raise NodeError("the image is no longer mounted")


def _age() -> float:
    """Return the age of this process; proc_pid_stat(5), field 22, in ticks of 10 ms."""
    with open("/proc/self/stat", "rb") as file:
        started = int(file.read().rpartition(b") ")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / 100

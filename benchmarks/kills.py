# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.kills``: the fetcher is killed every two seconds, by each device.

The load is that of `benchmarks.eviction`: two loops read an image, and the store has room for a
quarter of it. Twice a second the page cache is dropped, where FUSE and loop devices keep what the
store has evicted, so reads go on asking. A fetcher that has served no read yet is spared: on a
loaded machine none would ever get so far, and the kills would show nothing but that. Ends with an
error if a read failed or got a wrong byte, if there were too few kills, or if the reads asked too
seldom for the result to mean anything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import eviction, reliability
from benchmarks.measure import percentile
from firstread.errors import FirstreadError
from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon

SECONDS = 300.0
EVERY_S = 2.0
DROP_S = 0.5
DEVICES = "fanotify,fuse"
TIMES = ("p50", "p99", "longest")  # of the reads
LEAST_REQUESTS = 10  # for data, between two kills
COMMAND = "python -m benchmarks.kills --docs"


@dataclass
class Killer:
    """Kills the fetcher of a daemon from time to time.

    Args:
        every_s: seconds between two kills.
        kills: so far.
        waited: of them, kills that were late because the fetcher had served no read.
    """

    every_s: float
    kills: int = 0
    waited: int = 0
    _due: float = 0.0
    _dropped: float = 0.0
    _is_late: bool = False

    def __call__(self, daemon: Daemon) -> None:
        """Kill it if it is time, and if it has served a read."""
        if time.monotonic() >= self._dropped + DROP_S:
            drop_caches()
            self._dropped = time.monotonic()
        if time.monotonic() < self._due:
            return
        with contextlib.suppress(FirstreadError, OSError):  # there may be none for a moment
            status = daemon.status()
            if not any(mount["last_waits_s"] for mount in status["mounts"]):
                self._is_late = True
                return
            os.kill(status["fetcher"]["pid"], signal.SIGKILL)
            self.kills, self.waited = self.kills + 1, self.waited + self._is_late
            self._due, self._is_late = time.monotonic() + self.every_s, False


@dataclass(frozen=True)
class Outcome:
    """What one device has done.

    Args:
        device: it.
        kills: of the fetcher.
        waited: of them, for its first read.
        load: what the readers saw.
    """

    device: str
    kills: int
    waited: int
    load: eviction.Outcome

    def is_good(self, kills: int) -> bool:
        """Return whether no read failed, and whether at least so many kills show that."""
        asked = self.load.requests >= LEAST_REQUESTS * self.kills
        return not (self.load.failed or self.load.wrong) and self.kills >= kills and asked


def measure(scratch: Path, device: str, seconds: float, every_s: float = EVERY_S) -> Outcome:
    """Read for some seconds, and kill the fetcher again and again meanwhile."""
    scratch.mkdir()
    killer = Killer(every_s)
    load = eviction.measure(scratch, seconds, meanwhile=killer, device=device)
    return Outcome(device, killer.kills, killer.waited, load)


def chapter(
    outcomes: list[Outcome], setting: dict[str, str], seconds: float
) -> reliability.Chapter:
    """Return the chapter about it."""
    head = ("device", "kills", "late", "reads", "requests", "failed", "wrong", *TIMES)
    cells: list[tuple[str, ...]] = [head]
    for outcome in outcomes:
        load = outcome.load
        times = (percentile(load.reads, share) for share in (0.5, 0.99, 1.0))
        faults = (load.requests, load.failed, load.wrong)
        counts = (outcome.kills, outcome.waited, len(load.reads), *faults)
        cells.append(
            (outcome.device, *map(str, counts), *(f"{1000 * seconds:.0f} ms" for seconds in times))
        )
    load_of = f"{eviction.FILES} files of {eviction.FILE_BYTES // 1024} KiB, room for a quarter"
    setting |= {"load": f"{seconds:g} s for each device; {load_of}; read(2) and mmap"}
    setting |= {"late": "the fetcher had served no read when its two seconds were over"}
    setting |= {"requests": "of the registry, for data; each may bring several sectors"}
    kills, reads, failed, wrong = (
        sum(numbers)
        for numbers in zip(
            *((o.kills, len(o.load.reads), o.load.failed, o.load.wrong) for o in outcomes),
            strict=True,
        )
    )
    summary = f"{kills} kills under {reads} reads: {failed} failed, {wrong} wrong"
    return reliability.Chapter("kills", COMMAND, setting, cells, summary)


def main() -> int:
    def work(
        scratch: Path, setting: dict[str, str], seconds: float, devices: str
    ) -> reliability.Judged:
        outcomes = [measure(scratch / name, name, seconds) for name in devices.split(",")]
        least = int(seconds / EVERY_S / 4)  # a fetcher needs a moment to start, or a few seconds
        is_good = all(outcome.is_good(least) for outcome in outcomes)
        return chapter(outcomes, setting, seconds), is_good

    return reliability.run("kills", __doc__, work, seconds=SECONDS, devices=DEVICES)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.events``: what a read costs the daemon that the kernel asks it about.

Counts the processor time of supervisor and fetcher for two kinds of reads, by 1, 8 and 64 readers
at a time: *covered* ones, of a sector that is not whole, but has what they want, and *waiting*
ones, whose sector has yet to come. ``--against DIR`` measures another source tree by turns in the
same run, and prints ratios. One waiting read is charged with the fetch that it waits for; of more
readers the figure is what each further one adds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.host import Host
from benchmarks.measure import median
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from firstread.testing.plainimage import put_plain_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import KiB, MiB

READERS = (1, 8, 64)
ROUNDS = 5  # of each kind, by turns
COVERED = 2048  # reads in a round
SECTORS = 12  # that a round of waiting reads asks for
SECTOR_BYTES = {"covered": 1 * MiB, "waiting": 256 * KiB}  # a page for each reader
FRAME_BYTES = {"covered": 64 * KiB, "waiting": 256 * KiB}
HERE_BYTES = 512 * KiB  # of the sector that stays incomplete; more than 64 readers read
ANSWER_S = 0.03  # of the registry: all readers of a sector wait by then
READ_S = 30.0

# Thread n reads the page n of each file, `times` over; it forgets the page before.
_READER = """
import os, sys, threading
readers, times, names = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
fds = [os.open(name, os.O_RDONLY) for name in names]
for fd in fds:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
together = threading.Barrier(readers)
def read(offset):
    for fd in fds:
        together.wait()
        for _ in range(times):
            os.posix_fadvise(fd, offset, 4096, os.POSIX_FADV_DONTNEED)
            assert len(os.pread(fd, 4096, offset)) == 4096
threads = [threading.Thread(target=read, args=(4096 * n,)) for n in range(readers)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@dataclass
class Tree:
    """A source tree that is measured, and what was found: microseconds a read, by kind."""

    name: str
    host: Host
    registry: ScriptedRegistry
    found: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Have one sector that stays incomplete, and an image of sectors that are absent."""
        for name, count in (("covered", 1), ("waiting", ROUNDS * SECTORS * len(READERS))):
            put_plain_image(
                f"docker://{self.registry.host}/events/{name}:1",
                count=count,
                first=count,
                sector_bytes=SECTOR_BYTES[name],
                frame_bytes=FRAME_BYTES[name],
            )
            self.host.attach(f"{self.registry.host}/events/{name}:1", name)
        self._left = list(range(ROUNDS * SECTORS * len(READERS)))
        self.registry.script(
            f"GET /covered/blobs/ hangup {HERE_BYTES + 96 * KiB}\n"
            "GET /covered/blobs/ blackhole 900 x*\n"
            f"GET /blobs/ slow {ANSWER_S} x*"
        )
        _read(1, 1, [self.host.scratch / "covered/f0"])
        (path,) = (p for p in (self.host.root / "sectors").glob("*/*") if p.stat().st_size)
        while path.stat().st_size < HERE_BYTES:
            time.sleep(0.01)

    def covered(self, readers: int) -> None:
        """Read what is here."""
        self._measure("covered", readers, COVERED, ["covered/f0"], COVERED // readers)

    def waiting(self, readers: int) -> None:
        """Read what is absent, from the end: nothing is fetched ahead."""
        names = [f"waiting/f{self._left.pop()}" for _ in range(SECTORS)]
        self._measure("waiting", readers, readers * SECTORS, names, 1)

    def _measure(self, kind: str, readers: int, reads: int, names: list[str], times: int) -> None:
        before = self._cpu_ns()
        _read(readers, times, [self.host.scratch / name for name in names])
        spent = (self._cpu_ns() - before) / 1000 / reads
        self.found.setdefault((kind, readers), []).append(spent)

    def cost(self, kind: str, readers: int) -> float:
        """Return the microseconds that a read costs, the median of all rounds."""
        cost = median(self.found[kind, readers])
        if kind == "covered" or readers == 1:
            return cost
        return (cost * readers - median(self.found[kind, 1])) / (readers - 1)

    def _cpu_ns(self) -> int:
        """Return the processor time of both processes; source: clock_getcpuclockid(3)."""
        pids = self.host.supervisor, self.host.fetcher
        return sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in pids)


def _read(readers: int, times: int, paths: list[Path]) -> None:
    command = [sys.executable, "-I", "-S", "-c", _READER, str(readers), str(times)]
    subprocess.run([*command, *map(str, paths)], check=True, timeout=READ_S)


def measure(trees: list[Tree]) -> None:
    """Measure all by turns."""
    for tree in trees:
        tree.prepare()
    for _ in range(ROUNDS):
        for readers in READERS:
            for tree in trees:
                tree.covered(readers)
                tree.waiting(readers)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description=__doc__)
    parser.add_argument("--against", type=Path, metavar="DIR", help="another source tree")
    options = parser.parse_args()
    with scratch_directory() as scratch, ExitStack() as stack:
        trees = []
        for name, source in (("before", options.against), ("now", Path(__file__).parents[1])):
            if source is not None:
                registry = stack.enter_context(ScriptedRegistry())
                host = Host(scratch / name)
                host.wrapper = ("env", f"PYTHONPATH={source}/src")
                trees.append(Tree(name, stack.enter_context(host), registry))
        for label, text in describe(scratch).items():
            print(f"{label}: {text}")
        measure(trees)
    for key in trees[0].found:
        times = [tree.cost(*key) for tree in trees]
        ratio = f"  {times[-1] / times[0]:.2f}x" if len(times) > 1 else ""
        figures = "  ".join(f"{t.name} {us:6.1f} us" for t, us in zip(trees, times, strict=True))
        print(f"{key[0]:8} {key[1]:3} readers  {figures}{ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

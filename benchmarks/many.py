# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.many``: 500 mounts of 20 images on one node, and their leftovers.

Mounts, reads and unmounts; looks at times, at memory, and at leftovers in the kernel and on the
disk. Every read happens in another process. Exits with 1 if a goal was missed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import reliability
from benchmarks.host import Host
from benchmarks.report import number
from firstread.daemon.protocol import GROUP_FD
from firstread.testing.plainimage import put_plain_image
from firstread.testing.registry import DockerRegistry
from firstread.units import KiB

IMAGES, MOUNTS, FILES = 20, 500, 128
ROUNDS = 64  # of reads; each file of a mount is read once in all
MOUNT_P99_S = 1.0
GROWTH_BYTES = 100  # of memory per read: less than a record of it needs
READ_S = 300.0
SETTLE_S = 10.0  # a file or connection that a thread is about to close does not leak

READER = """
import hashlib, sys
bad = 0
for name in sys.stdin.read().split("\\0"):
    with open(name, "rb") as file:
        bad += len(file.read()) != 65536
print(bad)
"""


@dataclass(frozen=True)
class Held:
    """Everything that a node holds for mounts; all of it must go."""

    mounts: int
    marks: int
    records: int
    descriptors: int
    processes: int

    @classmethod
    def by(cls, host: Host) -> Held:
        """Look at a node."""
        pids = (host.supervisor, host.fetcher)
        info = Path(f"/proc/{pids[0]}/fdinfo/{GROUP_FD}").read_text()
        children = Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split()
        return cls(
            mounts=Path("/proc/mounts").read_bytes().count(f" {host.scratch}/".encode()),
            marks=info.count("fanotify ino:"),
            records=len(list((host.root / "mounts").iterdir())),
            descriptors=sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
            processes=1 + len(children),
        )

    def beyond(self, before: Held) -> dict[str, int]:
        """Return by name what the node holds now and did not hold before."""
        return {
            name: max(0, getattr(self, name) - getattr(before, name))
            for name in self.__dataclass_fields__
        }


class Many:
    """One run, and the cells of its table.

    Args:
        scratch: an empty directory.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.cells: list[tuple[str, ...]] = [("what", "figure", "goal", "met")]
        self.met = True

    def run(self) -> None:
        """Do all of it."""
        with DockerRegistry() as registry, Host(self._scratch / "node") as host:
            images = [f"{registry.host}/many/image{n}:1" for n in range(IMAGES)]
            for seed, image in enumerate(images):
                put_plain_image(
                    f"docker://{image}",
                    count=FILES,
                    first=1000 * seed,
                    sector_bytes=64 * KiB,
                    frame_bytes=16 * KiB,
                )
            before = Held.by(host)
            places = self._mount(host, images)
            self._read(host, places)
            self._unmount(host, places, before)

    def _mount(self, host: Host, images: list[str]) -> list[Path]:
        places, seconds = [], []
        for mount in range(MOUNTS):
            started = time.perf_counter()
            places.append(host.attach(images[mount % IMAGES], f"m{mount}"))
            seconds.append(time.perf_counter() - started)
        seconds.sort()
        self._add("mount, p99", seconds[int(0.99 * MOUNTS)] * 1000, "ms", MOUNT_P99_S * 1000)
        self._add("mount, median", seconds[MOUNTS // 2] * 1000, "ms")
        self._add("memory of both processes", host.rss_bytes() / 1e6, "MB")
        return places

    def _read(self, host: Host, places: list[Path]) -> None:
        """Read all mounts in turns.

        The first half does not count: threads and their buffers appear, and the daemon keeps the
        durations of the last 4,096 waiting reads of each image.
        """
        sizes, reads = [], 0
        for turn in range(ROUNDS):
            names = [f"{p}/f{turn * 2 + half}" for p in places for half in (0, 1)]
            command = [sys.executable, "-I", "-S", "-c", READER]
            done = subprocess.run(
                command,
                input="\0".join(names),
                text=True,
                capture_output=True,
                timeout=READ_S,
                check=False,
            )
            if done.returncode or done.stdout.strip() != "0":
                raise RuntimeError(f"a read failed: {done.stdout} {done.stderr[-300:]}")
            reads += len(names)
            sizes.append(host.rss_bytes())
        growth = max(0, sizes[-1] - sizes[ROUNDS // 2]) / (reads / 2)
        self._add("files read", reads, "")
        self._add("memory of both processes after that", sizes[-1] / 1e6, "MB")
        self._add("memory that grew per read, second half", growth, "bytes", GROWTH_BYTES)
        status = host.status()
        self._add("reads that failed", sum(m["failed_reads"] for m in status["mounts"]), "", 0)

    def _unmount(self, host: Host, places: list[Path], before: Held) -> None:
        started = time.perf_counter()
        for place in places:
            host.detach(place)
        self._add("all unmounted", time.perf_counter() - started, "s")
        until = time.monotonic() + SETTLE_S
        while any((left := Held.by(host).beyond(before)).values()) and time.monotonic() < until:
            time.sleep(0.1)
        for name, count in left.items():
            self._add(f"{name} left", count, "", 0)

    def _add(self, what: str, value: float, unit: str, limit: float | None = None) -> None:
        met = limit is None or value <= limit
        self.met &= met
        goal = "" if limit is None else f"<= {limit:g}"
        words = "" if limit is None else ("yes" if met else "NO")
        self.cells.append((what, f"{number(value)} {unit}".strip(), goal, words))


def main() -> int:
    """Run it once; see the module."""

    def work(scratch: Path, setting: dict[str, str]) -> reliability.Judged:
        many = Many(scratch)
        many.run()
        setting["images"] = f"{IMAGES}, each with {FILES} sectors of 64 KiB, from a real registry"
        summary = "all goals are met" if many.met else "a goal is MISSED"
        command = "python -m benchmarks.many --docs"
        return reliability.Chapter("many", command, setting, many.cells, summary), many.met

    return reliability.run("many", __doc__, work)


if __name__ == "__main__":
    sys.exit(main())

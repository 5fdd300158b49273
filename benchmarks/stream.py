# SPDX-License-Identifier: Apache-2.0
"""Hot sectors over a shaped link: how much of it they fill while they are read in order.

``python -m benchmarks.stream [MBIT/MS …] [--mib N]``. For each link it mounts an image whose bytes
are random, so that a byte of the link is a byte of a file, and reads the hot files in order from
the mount on: once as the node does by default, once without prefetch. Then it reads cold files
while a stream is under way, and while the link is idle. Invariant: the node has nothing of the
image before, and the figures of a link are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.host import Host
from benchmarks.link import Link
from benchmarks.measure import median, percentile
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from firstread.testing.caches import drop_caches
from firstread.testing.plainimage import put_hot_image
from firstread.testing.registry import DockerRegistry
from firstread.units import KiB, MiB

LINKS = ("25/80", "100/20", "1000/1")
SECTOR_BYTES, FRAME_BYTES = 4 * MiB, 256 * KiB
IMAGE = "bench/stream:1"
COLD = 8
PAGE = 4096
_READER = """
import json, os, sys, time
times = []
for path in sys.argv[2:]:
    fd = os.open(path, os.O_RDONLY)
    if int(sys.argv[1]):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    begun, position = time.monotonic(), 0
    while count := len(os.pread(fd, int(sys.argv[1]) or 1 << 17, position)):
        position += count
        if int(sys.argv[1]):
            break
    times.append(time.monotonic() - begun)
print(json.dumps([time.monotonic(), times]))
"""


@dataclass(frozen=True)
class Row:
    """The figures of one link and one mode.

    Args:
        link: as asked for.
        mode: of prefetch.
        seconds: from the request for the mount until the last hot byte was read.
        share: of the measured rate of the link.
        requests: by cause.
        cold_ms: first reads of cold files meanwhile: median, slowest.
    """

    link: str
    mode: str
    seconds: float
    share: float
    requests: dict[str, int]
    cold_ms: tuple[float, float]

    def __str__(self) -> str:
        requests = ", ".join(f"{count} {cause}" for cause, count in self.requests.items())
        return (
            f"{self.link:>8}  {self.mode:5} {self.seconds:8.2f} s  {self.share * 100:5.1f} %  cold"
            f" {self.cold_ms[0]:6.0f} ms, slowest {self.cold_ms[1]:6.0f} ms  {requests}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__)
    parser.add_argument("links", nargs="*", default=LINKS, metavar="MBIT/MS")
    parser.add_argument("--mib", type=int, default=64, help="of hot files [64]")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("it mounts, and drops caches: run it as root")
    with scratch_directory() as scratch:
        print(*(f"{name}: {text}" for name, text in describe(scratch).items()), sep="\n")
        hot = max(2, options.mib * MiB // SECTOR_BYTES)
        publish(scratch / "registry", hot)
        for link in options.links:
            mbit_s, milliseconds = map(float, link.split("/"))
            for row in measure(scratch, mbit_s, milliseconds / 1000, hot):
                print(row, flush=True)
    return 0


def publish(storage: Path, hot: int) -> None:
    """Put an image with so many hot files into a registry's storage."""
    with DockerRegistry(storage=storage) as registry:
        put_hot_image(
            f"docker://{registry.host}/{IMAGE}",
            cold=COLD,
            hot=hot,
            sector_bytes=SECTOR_BYTES,
            frame_bytes=FRAME_BYTES,
        )


def measure(scratch: Path, mbit_s: float, rtt_s: float, hot: int) -> Iterator[Row]:
    """Yield a row for each mode.

    Args:
        scratch: with the storage of a registry that has the image.
        mbit_s: of the link.
        rtt_s: likewise.
        hot: files of the image.
    """
    with ExitStack() as stack:
        link = stack.enter_context(Link(mbit_s, rtt_s))
        with link.far():
            storage = scratch / "registry"
            registry = stack.enter_context(DockerRegistry(storage=storage, address=link.address))
        image = f"{registry.host}/{IMAGE}"
        measured = link.measure()
        print(f"{link}: {measured}")
        for mode in ("none", "hot"):
            seconds, requests = _in_order(scratch, image, mode, hot)
            share = hot * SECTOR_BYTES / seconds / measured.bytes_per_s
            cold = _cold(scratch, image, mode)
            name = f"{mbit_s:g}/{rtt_s * 1000:g}"
            slow = median(cold) * 1000, percentile(cold, 1.0) * 1000
            yield Row(name, mode, seconds, share, requests, slow)


def _in_order(scratch: Path, image: str, mode: str, hot: int) -> tuple[float, dict[str, int]]:
    """Return how long it takes to mount and read all hot files, and the requests for sectors."""
    with _node(scratch) as host:
        begun = time.monotonic()
        place = _mount(host, image, mode)
        ended, _ = _read(place, range(COLD, COLD + hot))
        return ended - begun, dict(host.stats()["requests_by_cause"])


def _cold(scratch: Path, image: str, mode: str) -> list[float]:
    """Return how long first reads of cold files take, while hot ones are streamed if they are."""
    with _node(scratch) as host:
        place = _mount(host, image, mode)
        if mode == "hot":
            host.wait(lambda: host.stats()["bytes_by_cause"] or host.stats()["hot_present"])
        _, times = _read(place, range(COLD), PAGE)
        stats = host.stats()
        if mode == "hot" and stats["hot_present"] == stats["hot"]:
            raise RuntimeError("the stream had ended before the cold reads: give it more MiB")
        return times


@contextmanager
def _node(scratch: Path) -> Iterator[Host]:
    directory = scratch / f"node-{time.monotonic_ns()}"
    drop_caches()
    with Host(directory) as host:
        yield host


def _mount(host: Host, image: str, mode: str) -> Path:
    place = host.scratch / "mnt"
    place.mkdir()
    request: dict[str, Any] = {"image": image, "directory": str(place)}
    host.client.mount(**request, access={"plain_http": True}, policies={"prefetch": mode})
    return place


def _read(place: Path, numbers: Sequence[int], count: int = 0) -> tuple[float, list[float]]:
    """Read files from another process: whole, or `count` bytes at random; return end and times."""
    paths = [str(place / f"f{number}") for number in numbers]
    command = [sys.executable, "-c", _READER, str(count), *paths]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    ended, times = json.loads(done.stdout)
    return float(ended), list(times)


if __name__ == "__main__":
    sys.exit(main())

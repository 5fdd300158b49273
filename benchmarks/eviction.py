# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.eviction``: reads an image in loops, with room for a quarter of it.

One loop reads files in order, the other through mmap at random. Before each file they make the
kernel drop its pages, so that every read reaches the sector file. Ends with an error if a read
failed or got a wrong byte, if the store ever exceeded its limit, or if there were too few evictions
for the result to mean anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import reliability
from benchmarks.measure import median
from firstread.testing.daemon import Daemon
from firstread.testing.plainimage import put_plain_image
from firstread.testing.registry import DockerRegistry
from firstread.units import KiB, MiB

SECONDS = 60.0
STOP_S = 1.0
FILES, FILE_BYTES = 512, 256 * KiB
SHARE = 4  # of the image: what the store may hold
LOOPS = ("read", "mmap")
COMMAND = "python -m benchmarks.eviction --docs"

_READER = """
import hashlib, json, mmap, os, random, sys, time
place, how, seconds, least = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
expected = json.load(sys.stdin)
numbers, took, failed, wrong = list(range(len(expected))), [], 0, 0
end = time.monotonic() + seconds
while time.monotonic() < end or len(took) < least:
    if how == "mmap":
        random.shuffle(numbers)
    for number in numbers:
        if time.monotonic() >= end and len(took) >= least:
            break
        fd = os.open(f"{place}/f{number}", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.monotonic()
        try:
            if how == "mmap":
                with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
                    data = mapped[:]
            else:
                data = b""
                while part := os.read(fd, 1 << 20):
                    data += part
            wrong += hashlib.sha256(data).hexdigest() != expected[number]
        except OSError:
            failed += 1
        took.append(time.monotonic() - started)
        os.close(fd)
json.dump([took, failed, wrong], sys.stdout)
"""


@dataclass(frozen=True)
class Outcome:
    """The observations.

    Args:
        reads: seconds of each read of a file.
        failed: of them; a reader killed by SIGBUS counts as one.
        wrong: likewise.
        limit_bytes: of the store.
        largest_bytes: observed maximum of all sector files together.
        store: of the status, at the end.
        requests: for data, that the registry was asked.
    """

    reads: list[float]
    failed: int
    wrong: int
    limit_bytes: int
    largest_bytes: int
    store: dict[str, Any]
    requests: int = 0

    def is_good(self, evictions: int) -> bool:
        """Return whether nothing went wrong, and whether that means something."""
        bounded = 0 < self.largest_bytes <= self.limit_bytes
        return not (self.failed or self.wrong) and bounded and self.store["evictions"] >= evictions


def measure(
    scratch: Path,
    seconds: float,
    files: int = FILES,
    file_bytes: int = FILE_BYTES,
    meanwhile: Callable[[Daemon], None] = lambda _: None,
    least: int = 0,
    device: str = "fanotify",
) -> Outcome:
    """Read for some seconds, and `least` files in each loop; call `meanwhile` all the time."""
    limit = files * file_bytes // SHARE
    options = ("--device", device, "--cache-max", str(limit))
    with DockerRegistry() as registry, Daemon(scratch, *options) as daemon:
        reference = f"{registry.host}/bench/plain:1"
        image = put_plain_image(
            f"docker://{reference}", count=files, sector_bytes=file_bytes, frame_bytes=16 * KiB
        )
        expected = json.dumps([hashlib.sha256(content).hexdigest() for content in image.contents])
        (scratch / "expected").write_text(expected)
        place = daemon.mount(reference)
        readers = [_start(scratch, place, how, seconds, least) for how in LOOPS]
        largest = 0
        try:
            while any(reader.poll() is None for reader in readers):
                with still(daemon) as is_still:
                    if is_still:
                        largest = max(largest, _held_bytes(daemon.root))
                meanwhile(daemon)
                time.sleep(0.2)
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()
        said = [_said(scratch, how, reader) for how, reader in zip(LOOPS, readers, strict=True)]
        return Outcome(
            [read for took, _, _ in said for read in took],
            sum(failed for _, failed, _ in said),
            sum(wrong for _, _, wrong in said),
            limit,
            largest,
            daemon.status()["store"],
            registry.counts.requests_of("/blobs/"),
        )


@contextlib.contextmanager
def still(daemon: Daemon) -> Iterator[bool]:
    """Stop all fetchers for a moment: a look at many changing files shows no single moment.

    Yields False if they did not stop soon, or something replaces them.
    """
    stopped = []
    try:
        with contextlib.suppress(OSError):
            for pid in daemon.children():
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        until = time.monotonic() + STOP_S
        while any(map(_runs, stopped)) and time.monotonic() < until:
            time.sleep(0.001)
        yield bool(stopped) and not any(map(_runs, stopped))
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _runs(pid: int) -> bool:
    """Return whether any thread of a process could still run."""
    states = []
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            states.append(task.read_text().rpartition(")")[2].split()[0])
    return any(state not in "TtZX" for state in states)


def _start(
    scratch: Path, place: Path, how: str, seconds: float, least: int
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _READER, str(place), how, str(seconds), str(least)]
    with (scratch / "expected").open() as expected, (scratch / f"said-{how}").open("w") as output:
        return subprocess.Popen(command, stdin=expected, stdout=output)


def _said(scratch: Path, how: str, reader: subprocess.Popen[bytes]) -> tuple[list[float], int, int]:
    if reader.returncode:
        return [], 1, 0
    took, failed, wrong = json.loads((scratch / f"said-{how}").read_text())
    return took, failed, wrong


def _held_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "sectors").glob("*/*"))


def chapter(outcome: Outcome, setting: dict[str, str], seconds: float) -> reliability.Chapter:
    """Return the chapter about it."""
    reads, store = sorted(outcome.reads), outcome.store
    late = reads[int(0.99 * len(reads))]
    cells = [
        ("", "figure", "note"),
        ("time", f"{seconds:.0f} s", "a loop in order with read(2), one at random with mmap"),
        ("image", f"{FILES * FILE_BYTES / MiB:.0f} MiB", f"in {FILES} sectors"),
        ("limit of the store", f"{outcome.limit_bytes / MiB:.0f} MiB", "`--cache-max`"),
        ("largest store seen", f"{outcome.largest_bytes / MiB:.1f} MiB", "five times a second"),
        ("reads of a file", str(len(reads)), f"of {FILE_BYTES // KiB} KiB, from the sector file"),
        ("evictions", str(store["evictions"]), f"{store['evicted_bytes'] / MiB:.0f} MiB"),
        ("failed", str(outcome.failed), ""),
        ("wrong bytes", str(outcome.wrong), ""),
        ("a read, median", f"{median(reads) * 1000:.1f} ms", f"p99 {late * 1000:.0f} ms"),
        ("longest read", f"{reads[-1] * 1000:.0f} ms", "it waited for room"),
    ]
    summary = (
        f"{store['evictions']} evictions under {len(reads)} reads:"
        f" {outcome.failed} failed, {outcome.wrong} wrong"
    )
    return reliability.Chapter("eviction", COMMAND, setting, cells, summary)


def main() -> int:
    def work(scratch: Path, setting: dict[str, str], seconds: float) -> reliability.Judged:
        outcome = measure(scratch, seconds)
        return chapter(outcome, setting, seconds), outcome.is_good(int(10 * seconds))

    return reliability.run("eviction", __doc__, work, seconds=SECONDS)


if __name__ == "__main__":
    sys.exit(main())

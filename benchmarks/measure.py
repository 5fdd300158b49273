# SPDX-License-Identifier: Apache-2.0
"""The cost of processes: time, memory, and hidden files.

Owns readings of /proc and rusage. Invariant: a measurement adds only a look at /proc every
`SAMPLE_S`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.02
DISK_BLOCK = 512  # unit of st_blocks


@dataclass(frozen=True)
class Usage:
    """The cost of a command: seconds, seconds of CPU with its children, bytes of memory and disk.

    `temporary_bytes` is the most that its unnamed and temporary files had at once.
    """

    wall_s: float
    cpu_s: float
    peak_rss: int
    temporary_bytes: int
    output: str


def run(
    command: Sequence[str | Path], *, env: dict[str, str] | None = None, temporary: str = ""
) -> Usage:
    """Run `command` to its end.

    Args:
        command: program and arguments.
        env: its environment; this process's if None.
        temporary: beginning of the names of temporary files.

    Raises:
        RuntimeError: it failed; with the end of its output.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
        with _sampled(process.pid, temporary) as sample:
            _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed with {process.returncode}: {text[-1000:]}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Usage(wall_s, cpu_s, max(sample.rss, usage.ru_maxrss * 1024), sample.disk, text)


class _Sample:
    """The highest readings so far."""

    rss = disk = 0


@contextlib.contextmanager
def _sampled(pid: int, temporary: str) -> Iterator[_Sample]:
    """Look at `pid` and its children until the block ends."""
    sample, ended = _Sample(), threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_S):
            pids = [pid, *children(pid)]
            sample.rss = max(sample.rss, sum(map(rss_bytes, pids)))
            sample.disk = max(sample.disk, hidden_bytes(pids, temporary))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield sample
    finally:
        ended.set()
        thread.join()


def children(pid: int) -> list[int]:
    """Return the processes below `pid`; threads of any may have started them."""
    found = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += [int(child), *children(int(child))]
    return found


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process; shared memory counts in full."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def pss_bytes(pid: int) -> int:
    """Return the resident memory of a process; shared memory counts in part."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def hidden_bytes(pids: Iterable[int], temporary: str) -> int:
    """Return the bytes on disk of open files without a name, or with a `temporary` one."""
    sizes = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{name}"
                with contextlib.suppress(OSError):
                    seen = os.stat(path)
                    base = os.path.basename(os.readlink(path))
                    passing = not seen.st_nlink or (temporary and base.startswith(temporary))
                    if stat.S_ISREG(seen.st_mode) and passing:
                        sizes[seen.st_dev, seen.st_ino] = seen.st_blocks * DISK_BLOCK
    return sum(sizes.values())


def touch_memory(size: int) -> None:
    """Use so many bytes of memory, and free them: the next user finds them at hand.

    A virtual machine may give free memory back to its host every 2 s (virtio-balloon, free page
    reporting). The host then takes a fault for each page that is used again: writing 1 GiB to files
    took 2 s of processor time, not 0.2 s.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, size, flags=flags).close()


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of `values` are."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(values: Sequence[float]) -> float:
    """Return the middle one of `values`, the upper of two."""
    return percentile(values, 0.5)

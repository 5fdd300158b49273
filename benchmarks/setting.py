# SPDX-License-Identifier: Apache-2.0
"""The setting of a benchmark: host, kernel, disk, and other users of them.

Owns questions about the machine, and the page cache; nothing of firstread.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path

CALM_S = 1.0
CONTENDED = 0.10  # of all cores


def describe(scratch: Path) -> dict[str, str]:
    """Return labels and texts that a reader of figures must know.

    Args:
        scratch: directory on the measured file system.
    """
    busy = busy_share(CALM_S)
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "host": f"Linux {platform.release()}, {cores} cores of {_processor()}, {memory:.0f} GiB",
        "disk": _disk(scratch),
        "others": f"used {busy:.0%} of the cores before the start"
        + (" (contended: the figures are too high)" if busy > CONTENDED else ""),
    }


def busy_share(seconds: float) -> float:
    """Return the share of all cores in use during the next `seconds`."""

    def read() -> tuple[int, int]:
        first = Path("/proc/stat").read_text().partition("\n")[0]
        ticks = [int(field) for field in first.split()[1:9]]
        return sum(ticks), ticks[3] + ticks[4]

    total, idle = read()
    time.sleep(seconds)
    total_now, idle_now = read()
    return 1 - (idle_now - idle) / max(1, total_now - total)


def drop_caches() -> None:
    """Empty the page cache, and the caches of names and inodes, except for dirty data."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    match = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()


def _disk(path: Path) -> str:
    command = ("findmnt", "--noheadings", "--output", "SOURCE,FSTYPE", "--target", str(path))
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    source, kind = found.stdout.split()
    queue = Path("/sys/class/block") / os.path.basename(source) / "queue/read_ahead_kb"
    ahead = f", reads ahead {queue.read_text().strip()} KiB" if queue.exists() else ""
    return f"{kind} on {source}{ahead}"

# SPDX-License-Identifier: Apache-2.0
"""What a device itself costs: reads of 4 KiB that ask, answered at once from memory.

No daemon, no registry: this process fills and answers. Each file is one sector of 4 KiB, read once
in random order. Invariant: every absent read has asked, and every read got its bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.measure import percentile
from benchmarks.report import Section
from firstread.testing.devicebench import DeviceBench
from firstread.testing.flatmount import FlatMount
from firstread.testing.fusemount import FuseMount
from firstread.testing.lazymount import LazyMount
from firstread.units import KiB

BENCHES: dict[str, Callable[..., DeviceBench]] = {
    "fanotify": LazyMount,
    "flat": partial(FlatMount, name="flat"),
    "loop": partial(FlatMount, name="loop"),
    "fuse": FuseMount,
}
SECTORS, SECTOR_BYTES = 4000, 4 * KiB

_READER = """
import hashlib, json, os, random, sys, time
place, numbers = sys.argv[1], list(range(int(sys.argv[2])))
random.Random(1).shuffle(numbers)
took, digest = [], hashlib.sha256()
for number in numbers:
    os.stat(f"{place}/{number}")
for number in numbers:
    fd = os.open(f"{place}/{number}", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    data = os.pread(fd, 4096, 0)
    took.append(time.perf_counter() - started)
    digest.update(data)
    os.close(fd)
print(json.dumps([took, digest.hexdigest()]))
"""


def transport(section: Section, scratch: Path) -> None:
    """Time reads of absent sectors, then of present ones without their pages in the mount."""
    digests = set()
    for name, make in BENCHES.items():
        place = scratch / f"transport-{name}"
        place.mkdir()
        with make(place, sectors=SECTORS, sector_bytes=SECTOR_BYTES) as bench:
            for what in ("absent", "present"):
                times, digest, asked = _read(bench)
                if what == "absent" and asked != SECTORS:
                    raise RuntimeError(f"{asked} of {SECTORS} reads asked {name}")
                digests.add(digest)
                middle, late = (percentile(times, share) * 1e6 for share in (0.5, 0.99))
                detail = f"p99 {late:.0f} us; {asked} of {SECTORS} asked"
                section.add(f"4 KiB, {what}: {name}", middle, "us", detail=detail)
    if len(digests) != 1:
        raise RuntimeError("devices gave different bytes")


def _read(bench: DeviceBench) -> tuple[list[float], str, int]:
    command = [sys.executable, "-I", "-S", "-c", _READER, str(bench.mountpoint), str(SECTORS)]
    with (bench.mountpoint.parent / "said").open("w+") as file:
        reader = bench.started(subprocess.Popen(command, stdout=file, text=True))
        asked = 0
        while reader.poll() is None:
            for read in bench.reads(timeout=0.05):
                bench.complete(read)
                asked += 1
        file.seek(0)
        took, digest = json.load(file)
    return took, digest, asked

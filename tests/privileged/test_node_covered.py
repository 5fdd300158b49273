# SPDX-License-Identifier: Apache-2.0
"""Reads that are answered as soon as they are covered: without a fetch, and never wrongly."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import put_plain_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import KiB

pytestmark = pytest.mark.privileged

SECTOR, FRAME = 256 * KiB, 16 * KiB

# Reads random pages of all files until told to stop; prints how many, and what was wrong.
_READ_PAGES = """
import os, random, sys
place, expected, stop = sys.argv[1:4]
files = [
    (os.open(f"{place}/{name}", os.O_RDONLY), open(f"{expected}/{name}", "rb").read())
    for name in os.listdir(place)
]
for fd, _ in files:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
count, wrong = 0, []
while not os.path.exists(stop):
    fd, data = random.choice(files)
    offset = random.randrange(len(data) // 4096) * 4096
    os.posix_fadvise(fd, offset, 4096, os.POSIX_FADV_DONTNEED)
    try:
        if os.pread(fd, 4096, offset) != data[offset : offset + 4096]:
            wrong.append("bytes")
    except OSError as exc:
        wrong.append(exc.errno)
    count += 1
print(count, wrong)
"""


def test_a_covered_read_is_answered_while_the_fetcher_is_suspended(tmp_path: Path) -> None:
    script = f"GET /blobs/ hangup {SECTOR // 2}\nGET /blobs/ blackhole 600 x*"
    with ScriptedRegistry() as registry, Daemon(tmp_path, "--health", "60") as daemon:
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(f"docker://{reference}", count=1, sector_bytes=SECTOR)
        place = daemon.mount(reference)
        registry.script(script)
        assert output(daemon.reading(place / "f0", how="random")) == image.summary(0)
        (path,) = (p for p in (daemon.root / "sectors").glob("*/*") if p.stat().st_size)
        daemon.wait(lambda: path.stat().st_size >= 4 * FRAME)
        waited, fetcher = daemon.mounted(place)["waited_reads"], daemon.fetcher
        os.kill(fetcher, signal.SIGSTOP)
        try:
            covered = daemon.reading(place / "f0", FRAME, how="random")
            beyond = daemon.reading(place / "f0", SECTOR - FRAME, how="random")
            assert output(covered) == image.summary(0, FRAME)
            with pytest.raises(subprocess.TimeoutExpired):
                beyond.wait(timeout=0.5)
        finally:
            os.kill(fetcher, signal.SIGCONT)
        daemon.wait(lambda: daemon.mounted(place)["waited_reads"] == waited + 2)


@pytest.mark.parametrize("device", ["fanotify", "fuse"])
def test_no_read_fails_while_sectors_go_and_who_answers_is_suspended_again_and_again(
    tmp_path: Path, device: str
) -> None:
    """By FUSE the fetcher itself answers covered reads."""
    expected, stop = tmp_path / "expected", tmp_path / "stop"
    limits = ("--cache-max", str(6 * SECTOR), "--health", "60")
    expected.mkdir()
    with (
        ScriptedRegistry() as registry,
        Daemon(tmp_path, "--device", device, *limits) as daemon,
    ):
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(
            f"docker://{reference}", count=16, sector_bytes=SECTOR, frame_bytes=FRAME
        )
        place = daemon.mount(reference)
        registry.script(f"GET /blobs/ trickle {4 * SECTOR} x*")  # so that sectors stay incomplete
        for number, data in enumerate(image.contents):
            (expected / f"f{number}").write_bytes(data)
        command = [sys.executable, "-I", "-S", "-c", _READ_PAGES]
        command += [str(path) for path in (place, expected, stop)]
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        supervisor, fetcher, draw = daemon.supervisor, daemon.fetcher, random.Random(1)
        answering = fetcher if device == "fuse" else supervisor
        evicted = daemon.status()["store"]["evictions"] + 20
        while daemon.status()["store"]["evictions"] < evicted:
            os.kill(answering, signal.SIGSTOP)
            time.sleep(draw.uniform(0.1, 0.3))  # more than the grace
            os.kill(answering, signal.SIGCONT)
            time.sleep(draw.uniform(0.0, 0.2))
        stop.touch()
        said = [reader.communicate(timeout=PATIENCE_S)[0].strip() for reader in readers]
        assert [one.partition(" ")[2] for one in said] == ["[]"] * 3
        assert (daemon.supervisor, daemon.fetcher) == (supervisor, fetcher)

# SPDX-License-Identifier: Apache-2.0
"""Many reads that wait for one image, of readers that live and of such as were killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstread.node.held import LEAST
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import MiB

pytestmark = pytest.mark.privileged

NOFILE = 1024
ROOM = NOFILE - 256  # for events that wait
SECTOR = 4 * MiB

# Reads pages of a file, each in a thread; prints how many were right when all have ended.
_READ_PAGES = """
import os, sys, threading
path, expected, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
fd = os.open(path, os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
data = open(expected, "rb").read()
found = []
def read(page):
    try:
        found.append(os.pread(fd, 4096, page * 4096) == data[page * 4096 : (page + 1) * 4096])
    except OSError as exc:
        found.append(exc.errno)
threading.stack_size(65536)
threads = [threading.Thread(target=read, args=(first + n,)) for n in range(count)]
for thread in threads:
    thread.start()
print("begun", flush=True)
for thread in threads:
    thread.join()
print(found.count(True), found.count(5), len(found))
"""


class Pages:
    """A process that reads many pages of a file at once.

    Args:
        path: of the file.
        expected: path of a file with the same content.
        first: page.
        count: pages.
    """

    def __init__(self, path: Path, expected: Path, first: int, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _READ_PAGES, path, expected, str(first), str(count)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "begun\n"

    def outcome(self) -> tuple[int, int, int]:
        """Return how many reads were right, were EIO, and were done."""
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        right, failed, done = map(int, out.split())
        return right, failed, done

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE_S)


@contextmanager
def mounted(
    scratch: Path, *options: str
) -> Iterator[tuple[Daemon, ScriptedRegistry, Path, Path, PlainImage]]:
    """Give a daemon with few descriptors, a registry, and an image of it that is mounted."""
    with (
        ScriptedRegistry() as registry,
        Daemon(scratch, *options, command=("prlimit", f"--nofile={NOFILE}:{NOFILE}")) as daemon,
    ):
        reference = f"docker://{registry.host}/lazy/hangs:1"
        image = put_plain_image(reference, count=2, sector_bytes=SECTOR)
        expected = scratch / "expected"
        expected.write_bytes(image.contents[0])
        yield daemon, registry, daemon.mount(reference, "hangs"), expected, image


def waiting(daemon: Daemon) -> int:
    return int(daemon.status()["fetcher"]["waiting_reads"])


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_reads_of_killed_readers_do_not_stay(tmp_path: Path) -> None:
    with mounted(tmp_path) as (daemon, registry, place, expected, _):
        registry.script("GET /blobs/ slow 600 x1000")
        before = [descriptors(pid) for pid in (daemon.supervisor, daemon.fetcher)]
        pages = Pages(place / "f0", expected, 0, 200)
        daemon.wait(lambda: waiting(daemon) == 200)
        # All events are of one sector: one file for all of them in the fetcher.
        assert descriptors(daemon.fetcher) < before[1] + 50
        pages.kill()
        daemon.wait(lambda: waiting(daemon) == 0)
        daemon.wait(lambda: descriptors(daemon.supervisor) <= before[0] + 2)
        assert daemon.mounted(place)["failed_reads"] == 0


def test_an_image_with_very_many_live_readers_leaves_room_for_others(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    with mounted(tmp_path) as (daemon, registry, place, expected, _):
        other = daemon.mount(plain[0], "other")
        registry.script("GET /blobs/ slow 600 x1000")
        pages = [Pages(place / "f0", expected, 300 * n, 300) for n in range(3)]
        # Those beyond half of the room have failed; more that come are denied, too.
        daemon.wait(lambda: daemon.mounted(place)["failed_reads"] >= 900 - ROOM / 2 - 1)
        assert abs(waiting(daemon) - ROOM / 2) <= LEAST
        assert "take the room of others" in daemon.mounted(place)["last_error"]
        for number in range(8):
            assert output(daemon.reading(other / f"f{number}")) == plain[1].summary(number)
        assert daemon.mounted(other)["failed_reads"] == 0
        assert len(daemon.log("a read fails")) < 30  # not a line for each
        for each in pages:
            each.kill()
        daemon.wait(lambda: waiting(daemon) == 0)


def test_more_reads_at_once_than_there_is_room_for_wait_and_are_right(tmp_path: Path) -> None:
    """The supervisor leaves in the kernel what it has no descriptor for."""
    with mounted(tmp_path, "--health", "120") as (daemon, _, place, expected, _):
        fetcher = daemon.fetcher
        os.kill(fetcher, signal.SIGSTOP)
        try:
            pages = [Pages(place / "f0", expected, 500 * n, 500) for n in range(2)]
            daemon.wait(lambda: daemon.log("no more are taken"))
            assert descriptors(daemon.supervisor) < NOFILE - 200
        finally:
            os.kill(fetcher, signal.SIGCONT)
        assert [each.outcome() for each in pages] == [(500, 0, 500)] * 2
        assert daemon.fetcher == fetcher

# SPDX-License-Identifier: Apache-2.0
"""Many waiting reads of one image, by live readers and by killed ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstread.fetch.reads import LEAST
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.pagereader import Pages
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import MiB

pytestmark = pytest.mark.privileged

NOFILE = 1024
ROOM = NOFILE - 256  # for events that wait
SECTOR = 4 * MiB


@contextmanager
def mounted(
    scratch: Path, *options: str
) -> Iterator[tuple[Daemon, ScriptedRegistry, Path, Path, PlainImage]]:
    """Yield a daemon with few descriptors, a registry, and a mounted image from it."""
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
        # All events are for one sector: the fetcher has one file for all of them.
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
        # Reads beyond half of the room have failed; the fetcher denies further ones, too.
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


def test_reads_beyond_the_room_wait_and_are_right(tmp_path: Path) -> None:
    """The supervisor leaves events in the kernel for which it has no descriptor."""
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

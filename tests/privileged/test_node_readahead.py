# SPDX-License-Identifier: Apache-2.0
"""The read-ahead of a mount from its start on."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from firstread.device.readahead import (
    KNOWN_START_KIB,
    START_KIB,
    STEADY_KIB,
    read_ahead,
    set_read_ahead,
)
from firstread.testing.command import program
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_hot_image

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(120)]

READ_ONLY = ("unshare", "--mount", "--propagation", "private", "sh", "-c")
READ_ONLY_SYS = (*READ_ONLY, 'mount -o remount,bind,ro /sys && exec "$@"', "sh")


def test_a_lazy_mount_starts_small_and_one_whose_image_is_whole_large(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    first = daemon.mount(plain[0], "first")
    assert read_ahead(first) == daemon.mounted(first)["read_ahead_kib"] == START_KIB
    assert "0 of 8 present, lazy, read-ahead 16 KiB" in daemon.run("status").stdout
    assert daemon.run("fetch", "--all", plain[0]).code == 0
    second = daemon.mount(plain[0], "second")
    assert read_ahead(second) == daemon.mounted(second)["read_ahead_kib"] == STEADY_KIB
    daemon.wait(lambda: read_ahead(first) == STEADY_KIB)


def test_a_start_is_over_when_no_read_waits_any_more(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    assert output(daemon.reading(place / "f0")) == plain[1].summary(0)
    assert read_ahead(place) == START_KIB
    daemon.wait(lambda: read_ahead(place) == STEADY_KIB)
    assert daemon.mounted(place)["present"] < 8


def test_a_container_that_joins_a_shared_mount_changes_nothing(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    def join(holder: str) -> Path:
        answer = daemon.client.mount(
            image=plain[0], directory=None, policy="missing", holder=holder
        )
        return Path(answer["mountpoint"])

    place = join("one")
    assert read_ahead(place) == START_KIB
    assert output(daemon.reading(place / "f0")) == plain[1].summary(0)
    daemon.wait(lambda: read_ahead(place) == STEADY_KIB)
    assert join("other") == place
    assert read_ahead(place) == STEADY_KIB


def test_a_start_that_the_image_knows_reads_nothing_ahead(daemon: Daemon, tmp_path: Path) -> None:
    """Read-ahead would leave the hot sectors, because no two starts cut the same windows."""
    reference = f"oci:{tmp_path}/hot:latest"
    put_hot_image(reference)
    place = daemon.mount(reference, "hot", "--prefetch", "none")  # else it may be whole at once
    assert read_ahead(place) == daemon.mounted(place)["read_ahead_kib"] == KNOWN_START_KIB
    assert daemon.run("fetch", "--all", place).code == 0
    daemon.wait(lambda: read_ahead(place) == STEADY_KIB)


def test_the_next_fetcher_goes_on_with_a_start(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    starting, started = daemon.mount(plain[0], "starting"), daemon.mount(plain[0], "started")
    assert output(daemon.reading(started / "f0")) == plain[1].summary(0)
    daemon.wait(lambda: read_ahead(started) == STEADY_KIB)
    place = daemon.mount(plain[0], "late")
    for each in (starting, started, place):
        set_read_ahead(each, 64)  # as if it had been lost
    os.kill(daemon.fetcher, signal.SIGKILL)
    daemon.wait(lambda: daemon.status()["fetcher"]["restarts"] == 1)
    assert read_ahead(started) == STEADY_KIB
    assert read_ahead(place) == START_KIB
    daemon.wait(lambda: read_ahead(starting) == STEADY_KIB)


def test_a_node_that_cannot_set_it_serves_all_the_same(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path, command=READ_ONLY_SYS) as daemon:
        enter = ["nsenter", "--target", str(daemon.supervisor), "--mount"]
        for name in ("one", "other"):
            place = tmp_path / name
            place.mkdir()
            where = ("--root", str(daemon.root), "--run-dir", str(daemon.run_dir))
            command = [*enter, *program("mount", *where, plain[0], str(place))]
            subprocess.run(command, check=True, timeout=PATIENCE_S)
        assert daemon.mounted(place)["read_ahead_kib"] == 128
        lines = [line for line in daemon.log() if "keep the read-ahead" in line["message"]]
        assert len(lines) == 1
        done = subprocess.run(
            [*enter, "cat", str(place / "f1")], capture_output=True, timeout=PATIENCE_S, check=True
        )
        assert done.stdout == plain[1].contents[1]

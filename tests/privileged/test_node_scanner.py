# SPDX-License-Identifier: Apache-2.0
"""A virus scanner with one thread, on the file system of the store and on mounts.

It reads a file of a lazy mount, and so waits for the fetcher, while every open(2) on the file
system of the store waits for the scanner. Nothing that answers the read may open a file by name.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output, summary
from firstread.testing.plainimage import put_one_file
from firstread.testing.registry import DockerRegistry
from firstread.testing.scanner import Scanner
from firstread.testing.scripted import ScriptedRegistry
from firstread.testing.shortage import small_filesystem
from firstread.units import KiB, MiB

pytestmark = pytest.mark.privileged

SECTOR = 64 * KiB
BIG = 2 * MiB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system: scanning it holds up nobody else on this machine."""
    with small_filesystem(tmp_path, size=256 * MiB) as place:
        yield place


@pytest.fixture
def scanner(tmp_path: Path, disk: Path) -> Iterator[Scanner]:
    with Scanner(tmp_path / "scanned") as running:
        running.watch(disk)
        yield running


def put(destination: str, seed: int) -> bytes:
    """Convert an image with one file of many sectors; return its content."""
    return put_one_file(destination, BIG, seed=seed, sector_bytes=SECTOR, frame_bytes=16 * KiB)


@pytest.mark.parametrize("source", ["registry", "layout"])
def test_reads_mounts_status_and_eviction_go_on_beside_a_scanner(
    disk: Path, scanner: Scanner, source: str
) -> None:
    (disk / "scratch").mkdir()
    with (
        DockerRegistry() as registry,
        Daemon(disk / "scratch", "--cache-max", "1536KiB", "--stall", "60") as daemon,
    ):
        if source == "registry":
            names = [f"{registry.host}/lazy/{n}:1" for n in "ab"]
            contents = [put(f"docker://{name}", n) for n, name in enumerate(names)]
        else:
            names = [f"oci:{disk}/{n}:latest" for n in "ab"]
            contents = [put(name, n) for n, name in enumerate(names)]
        place = daemon.mount(names[0], "a")
        scanner.watch(place, mount=True)
        readers = [daemon.reading(place / "big", 0, BIG) for _ in range(2)]
        other = daemon.mount(names[1], "b")
        scanner.watch(other, mount=True)
        assert output(daemon.reading(other / "big", 0, BIG)) == summary(contents[1])
        assert [output(reader) for reader in readers] == [summary(contents[0])] * 2

        status = daemon.status()
        assert [mount["failed_reads"] for mount in status["mounts"]] == [0, 0]
        assert status["store"]["evictions"] > 0
        scanned = scanner.scanned()
        assert f"{place}/big" in scanned
        assert any(f"{daemon.root}/sectors/" in path for path in scanned)


def test_a_scanner_that_reads_absent_data_holds_up_others_briefly(
    disk: Path, scanner: Scanner
) -> None:
    """Every open of a file waits for it, those of firstread too."""
    (disk / "scratch").mkdir()
    with ScriptedRegistry() as registry, Daemon(disk / "scratch") as daemon:
        put(f"docker://{registry.host}/lazy/a:1", 0)
        place = daemon.mount(f"{registry.host}/lazy/a:1", "a")
        scanner.watch(place, mount=True)
        registry.script("GET /blobs/ slow 600 x1000")
        reader = daemon.reading(place / "big", 0, 4096)
        daemon.wait(lambda: daemon.status()["fetcher"]["waiting_reads"] == 1)
        assert f"{place}/big" not in scanner.scanned()
        daemon.wait(lambda: f"{place}/big" in scanner.scanned())  # its read failed
        assert "a scanner has waited" in daemon.mounted(place)["last_error"]
        daemon.wait(lambda: daemon.status()["fetcher"]["waiting_reads"] == 1)
        assert reader.poll() is None  # this one waits for --stall
        doctor = daemon.run("doctor", "--json")
        checks = {check["name"]: check for check in json.loads(doctor.stdout)["checks"]}
        found = checks["virus scanners"]
        assert found["status"] == "warn"
        assert f"pid {scanner.pid}" in found["detail"]


def test_a_fetcher_that_dies_is_replaced_beside_a_scanner(disk: Path, scanner: Scanner) -> None:
    """The supervisor does not wait until its child has opened its program."""
    (disk / "scratch").mkdir()
    with DockerRegistry() as registry, Daemon(disk / "scratch") as daemon:
        content = put(f"docker://{registry.host}/lazy/a:1", 0)
        place = daemon.mount(f"{registry.host}/lazy/a:1", "a")
        scanner.watch(place, mount=True)
        reader = daemon.reading(place / "big", 0, BIG)
        before = daemon.fetcher
        os.kill(before, signal.SIGKILL)
        assert output(reader) == summary(content)
        assert daemon.fetcher != before

# SPDX-License-Identifier: Apache-2.0
"""``firstread trace --from``: what a running mount has read of absent data."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.plainimage import PlainImage
from firstread.traces.savedtrace import load_trace
from firstread.units import KiB

pytestmark = pytest.mark.privileged


def read(daemon: Daemon, path: Path, offset: int) -> None:
    assert not output(daemon.reading(path, offset, 4 * KiB, "random")).startswith("errno")


def test_the_record_of_a_mount_is_a_trace(
    daemon: Daemon, plain: tuple[str, PlainImage], tmp_path: Path
) -> None:
    place, out = daemon.mount(plain[0]), tmp_path / "trace"
    wanted = [("f3", 16 * KiB), ("f1", 0), ("f2", 200 * KiB)]
    for name, offset in wanted:
        read(daemon, place / name, offset)
    read(daemon, place / "f3", 64 * KiB)  # it is present by now
    ran = daemon.run("trace", "--from", place, "-o", out)
    assert (ran.code, ran.stdout) == (0, ""), ran
    assert ran.stderr.startswith(f"{out}: 3 reads of 3 files")
    trace = load_trace(out)
    assert [(r.path.decode(), r.offset, r.length) for r in trace.reads] == [
        (name, offset, 4 * KiB) for name, offset in wanted
    ]
    assert trace.header.image.startswith("sha256:")
    assert trace.header.ready_us is None


def test_an_image_that_two_mounts_have_is_seen_once(
    daemon: Daemon, plain: tuple[str, PlainImage], tmp_path: Path
) -> None:
    """The second mount does not begin the record anew."""
    place, out = daemon.mount(plain[0]), tmp_path / "trace"
    read(daemon, place / "f0", 0)
    other = daemon.mount(plain[0], "other")
    read(daemon, other / "f1", 0)
    assert daemon.run("trace", "--from", other, "-o", out).code == 0
    assert [read.path for read in load_trace(out).reads] == [b"f0", b"f1"]


def test_a_later_fetcher_says_that_it_has_not_seen_the_start(
    daemon: Daemon, plain: tuple[str, PlainImage], tmp_path: Path
) -> None:
    place, out = daemon.mount(plain[0]), tmp_path / "trace"
    read(daemon, place / "f0", 0)
    fetcher = daemon.fetcher
    os.kill(fetcher, signal.SIGKILL)
    daemon.wait(lambda: daemon.fetcher != fetcher)
    read(daemon, place / "f1", 0)
    ran = daemon.run("trace", "--from", place, "-o", out)
    assert ran.code == 0, ran
    assert "began with the daemon's last restart" in ran.stderr
    assert [read.path for read in load_trace(out).reads] == [b"f1"]


def test_reads_of_a_sector_file_anywhere_do_no_harm(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    fetcher = daemon.fetcher
    files = [path for path in (daemon.root / "sectors").glob("*/*") if not path.stat().st_size]
    output(daemon.reading(files[0], 1 << 50, 4 * KiB))
    read(daemon, place / "f1", 0)
    assert daemon.fetcher == fetcher


def test_another_directory_has_no_record(daemon: Daemon, tmp_path: Path) -> None:
    out = tmp_path / "trace"
    ran = daemon.run("trace", f"--from={tmp_path}", "-o", out)
    assert ran.code == 2
    assert "is not a mount of firstread" in ran.stderr
    assert not out.exists()


@pytest.fixture
def collecting(tmp_path: Path) -> Iterator[Daemon]:
    config = tmp_path / "config.toml"
    config.write_text(f'[trace]\ncollect = "{tmp_path / "traces"}"\n')
    with Daemon(tmp_path, "--config", str(config)) as running:
        yield running


def test_a_node_keeps_a_trace_of_a_cold_start(
    collecting: Daemon, plain: tuple[str, PlainImage], tmp_path: Path
) -> None:
    """The start ends with its mount, which is sooner than it is quiet."""
    place, traces = collecting.mount(plain[0]), tmp_path / "traces"
    for number in range(100):
        if (place / f"f{number}").exists():
            read(collecting, place / f"f{number}", 0)
    digest = collecting.mounted(place)["digest"]
    assert collecting.run("umount", place).code == 0
    collecting.wait(lambda: list(traces.glob("*.jsonl")))
    (path,) = traces.iterdir()
    assert path.name.startswith(digest.replace(":", "-"))
    trace = load_trace(path)
    assert trace.reads[0].path == b"f0"
    assert len(trace.reads) == len({read.path for read in trace.reads}) > 1
    assert trace.header.image.startswith("sha256:")

# SPDX-License-Identifier: Apache-2.0
"""What a node must do, whatever its device: with a real daemon, real mounts and a registry.

A test class derives from `NodeSuite`, gives `NodeSuite.node`, and says whether its mounts outlive
all processes. It needs the fixture ``scratch``, an empty directory. What a device does by itself is
in `firstread.testing.suites.device`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon
from firstread.testing.devicebench import output
from firstread.testing.pacedreader import PacedReader
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.registry import DockerRegistry
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import KiB

SECTOR, FRAME, COUNT = 64 * KiB, 4 * KiB, 96
HEALTH_S = "2"
EIO = "errno 5"
LOST = (EIO, "errno 103", "errno 107")  # ECONNABORTED, ENOTCONN: of a dead connection
STALLED = "GET /blobs/ blackhole 60 x*"

Published = tuple[DockerRegistry, str, PlainImage]

_LIST = "import os, sys\nfor top, _, names in os.walk(sys.argv[1]):\n"
_LIST += "    for name in names:\n        os.lstat(os.path.join(top, name))\n"

_LOOP = """
import hashlib, os, sys
place, expected = sys.argv[1], open(sys.argv[2]).read().split()
for _ in range(2):
    for number, digest in enumerate(expected):
        fd = os.open(f"{place}/f{number}", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with open(fd, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == digest, number
print("right")
"""


def digests(image: PlainImage) -> list[str]:
    """Return the digest of each file of a plain image."""
    return [image.summary(number, 0, SECTOR).split()[1] for number in range(len(image.contents))]


def lists(place: Path) -> None:
    """Have another process look at every name of a mount."""
    command = [sys.executable, "-I", "-S", "-c", _LIST, str(place)]
    subprocess.run(command, check=True, timeout=PATIENCE_S)


def _loop(node: Daemon, place: Path, image: PlainImage) -> subprocess.Popen[str]:
    """Start a process that reads all files twice, and drops the pages of each before."""
    expected = node.scratch / "digests"
    expected.write_text("\n".join(digests(image)))
    command = [sys.executable, "-I", "-S", "-c", _LOOP, str(place), str(expected)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def waits(node: Daemon, count: int) -> None:
    """Wait until the fetcher has so many reads that wait."""
    node.wait(lambda: node.status()["fetcher"]["waiting_reads"] >= count)


def kill_fetcher(node: Daemon) -> None:
    """Kill the fetcher; return when there is another one."""
    pid = node.fetcher
    os.kill(pid, signal.SIGKILL)
    node.wait(lambda: node.fetcher != pid)


def kill_supervisor(node: Daemon) -> None:
    """Kill the supervisor; return when its fetcher has taken its place."""
    fetcher = node.fetcher
    os.kill(node.supervisor, signal.SIGKILL)
    node.wait_supervisor(fetcher)
    node.wait(lambda: node.fetcher != fetcher)


def stop_fetcher(node: Daemon) -> None:
    """Stop the fetcher, as a debugger or a freezer does; return when it has been replaced."""
    pid = node.fetcher
    os.kill(pid, signal.SIGSTOP)
    node.wait(lambda: pid not in node.children())
    node.wait(lambda: node.fetcher != pid)


def kill_both(node: Daemon) -> None:
    """Kill supervisor and fetcher, and start a daemon."""
    node.end_all(signal.SIGKILL, anchor=False)
    node.start()


def reload(node: Daemon) -> None:
    """Have another version take over."""
    assert node.run("daemon", "--reload").code == 0


DEATHS = (kill_fetcher, kill_supervisor, stop_fetcher, kill_both, reload)


class NodeSuite(ABC):
    """The suite."""

    outlives_processes: bool
    """Whether a mount that no process holds any more can be served again."""
    reads_alone = False
    """Whether the kernel reads present data though no process lives."""
    beyond_sectors = 0
    """What the kernel may read ahead of a small read, in sectors of this suite."""

    @abstractmethod
    def node(self, scratch: Path, *options: str) -> Daemon:
        """Return a daemon with the device, which is not started yet; `options` are more of it."""

    @pytest.fixture(scope="class")
    @classmethod
    def published(cls) -> Iterator[Published]:
        """A registry with an image, each file of which is one sector."""
        with DockerRegistry() as registry:
            reference = f"{registry.host}/lazy/plain:1"
            image = put_plain_image(
                f"docker://{reference}", count=COUNT, sector_bytes=SECTOR, frame_bytes=FRAME
            )
            yield registry, reference, image

    @contextlib.contextmanager
    def _stalled(self, scratch: Path) -> Iterator[tuple[ScriptedRegistry, Daemon, Path, str]]:
        """Give a node with a mount of a registry that answers no request for data."""
        with ScriptedRegistry() as registry, self.node(scratch) as node:
            reference = f"{registry.host}/lazy/plain:1"
            image = put_plain_image(f"docker://{reference}", sector_bytes=SECTOR)
            place = node.mount(reference)
            registry.script(STALLED)
            yield registry, node, place, image.summary(1)

    def test_a_new_node_fetches_what_is_read_and_no_more(
        self, scratch: Path, published: Published
    ) -> None:
        registry, reference, image = published
        with self.node(scratch) as node:
            place = node.mount(reference)
            registry.forget()
            lists(place)
            assert registry.counts.requests_of("/blobs/") == 0
            assert node.mounted(place)["present"] == 0

            part = node.reading(place / "f7", 0, 4096, "random")
            assert output(part) == image.summary(7)
            node.wait(lambda: node.mounted(place)["present"] == 1)
            assert 0 < registry.counts.bytes_of("/blobs/") < SECTOR * 1.1

            registry.forget()
            places = [(number * (SECTOR // 64), 512) for number in range(64)]
            readers = [node.reading(place / "f5", at, size, "random") for at, size in places]
            for reader, (at, size) in zip(readers, places, strict=True):
                assert output(reader) == image.summary(5, at, size)
            assert 1 <= registry.counts.requests_of("/blobs/") <= 1 + self.beyond_sectors

            assert output(_loop(node, place, image)) == "right"
            status = node.mounted(place)
            assert status["present"] == status["sectors"] == COUNT
            assert (status["failed_reads"], status["fetch_errors"]) == (0, 0)
            assert registry.counts.bytes_of("/blobs/") < COUNT * SECTOR * 1.1  # each one once

    def test_sectors_are_evicted_under_reads_that_never_fail(
        self, scratch: Path, published: Published
    ) -> None:
        _, reference, image = published
        room = COUNT * SECTOR // 4
        with self.node(scratch, "--cache-max", str(room)) as node:
            place = node.mount(reference)
            loops = [_loop(node, place, image) for _ in range(2)]
            assert [output(loop) for loop in loops] == ["right"] * 2
            store = node.status()["store"]
            assert store["evictions"] >= COUNT // 2
            assert 0 < store["bytes"] <= room

    @pytest.mark.parametrize("death", DEATHS, ids=lambda death: death.__name__)
    def test_processes_die_stop_and_change_and_no_read_fails(
        self, scratch: Path, published: Published, death: Callable[[Daemon], None]
    ) -> None:
        _, reference, image = published
        with self.node(scratch, "--health", HEALTH_S) as node:
            place = node.mount(reference)
            with PacedReader(place, COUNT, stretches=2, pause_s=0.01) as reader:
                reader.go_on()
                death(node)
                reader.go_on()
                assert reader.digests() == digests(image)
            assert node.mounted(place)["failed_reads"] == 0

    def test_all_processes_die_and_reads_fail_until_the_next_daemon(
        self, scratch: Path, published: Published
    ) -> None:
        _, reference, image = published
        with self.node(scratch) as node:
            place = node.mount(reference)
            whole = image.summary(0, 0, SECTOR)
            assert output(node.reading(place / "f0", 0, SECTOR)) == whole
            node.end_all(signal.SIGKILL)
            drop_caches()
            assert output(node.reading(place / "f1")) in LOST
            present = output(node.reading(place / "f0", 0, SECTOR))
            assert present == whole if self.reads_alone else present in LOST
            node.start()
            if not self.outlives_processes:
                place = node.mount(reference)
            for number in (0, 1, 2):
                read = output(node.reading(place / f"f{number}", 0, SECTOR))
                assert read == image.summary(number, 0, SECTOR)

    def test_a_node_stops_and_starts_again(self, scratch: Path, published: Published) -> None:
        registry, reference, image = published
        with self.node(scratch) as node:
            place = node.mount(reference)
            assert output(node.reading(place / "f3", 0, SECTOR)) == image.summary(3, 0, SECTOR)
            node.wait(lambda: node.mounted(place)["present"] == 1)
            assert node.run("umount", place).code == 0
            node.end_all(signal.SIGTERM)
            node.start()
            place = node.mount(reference)
            registry.forget()
            drop_caches()
            assert output(node.reading(place / "f3", 0, SECTOR)) == image.summary(3, 0, SECTOR)
            assert registry.counts.requests_of("/blobs/") == 0
            assert output(node.reading(place / "f4")) == image.summary(4)

    def test_reads_wait_for_a_stalled_registry(self, scratch: Path, published: Published) -> None:
        with self._stalled(scratch) as (registry, node, place, expected):
            other = node.mount(published[1], "other")
            readers = [node.reading(place / "f1", how="random") for _ in range(3)]
            waits(node, 1)
            lists(place)
            assert output(node.reading(other / "f0")) == published[2].summary(0)
            assert [reader.poll() for reader in readers] == [None] * 3
            registry.script("")
            kill_fetcher(node)  # with the requests that are never answered
            assert [output(reader) for reader in readers] == [expected] * 3

    def test_a_mount_ends_while_it_is_read(self, scratch: Path) -> None:
        with self._stalled(scratch) as (registry, node, place, expected):
            reader = node.reading(place / "f1", how="random")
            waits(node, 1)
            assert f"pid {reader.pid}" in node.run("umount", place).stderr
            assert node.run("umount", "--lazy", place).code == 0
            assert os.listdir(place) == []
            assert reader.poll() is None
            registry.script("")
            kill_fetcher(node)
            assert output(reader) == expected
            node.wait(lambda: not node.status()["mounts"])

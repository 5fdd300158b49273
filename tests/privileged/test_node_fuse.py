# SPDX-License-Identifier: Apache-2.0
"""A node with FUSE: whole images, and the death of its processes."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.daemon.anchor import anchors
from firstread.daemon.kept import of_anchors
from firstread.mounts.table import mounted_erofs
from firstread.testing.daemon import Daemon, drop_caches, tree_of
from firstread.testing.images import feature_tree
from firstread.testing.lazymount import output
from firstread.testing.observe import differences
from firstread.testing.pacedreader import PacedReader
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import KiB

pytestmark = pytest.mark.privileged

SECTOR = 64 * KiB
COUNT = 100
LOST = ("errno 103", "errno 107")  # ECONNABORTED, ENOTCONN


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, PlainImage]:
    """An image of many small sectors, so that there is always one in flight."""
    reference = f"oci:{tmp_path_factory.mktemp('many')}/layout:latest"
    return reference, put_plain_image(
        reference, count=COUNT, sector_bytes=SECTOR, frame_bytes=4 * KiB
    )


def fuse_options(scratch: Path) -> tuple[str, str]:
    """Return the options of a daemon with FUSE."""
    path = scratch / "fuse.toml"
    path.write_text('[node]\ndevice = "fuse"\n')
    return "--config", str(path)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, *fuse_options(tmp_path)) as daemon:
        yield daemon


def digests(image: PlainImage) -> list[str]:
    return [image.summary(number, 0, SECTOR).split()[1] for number in range(COUNT)]


def test_the_image_with_every_feature_is_shown_as_it_is(node: Daemon, lazy_features: str) -> None:
    place = node.mount(lazy_features)
    assert not differences(feature_tree(), tree_of(place))
    status = node.mounted(place)
    assert status["device"] == "fuse"
    assert status["self_sufficient"]
    assert (status["failed_reads"], status["fetch_errors"]) == (0, 0)
    assert status["read_ahead_kib"]
    drop_caches()
    events = status["events"]
    assert not differences(feature_tree(), tree_of(place))
    assert node.mounted(place)["events"] == events


def test_a_mount_of_a_sector_store_without_events_works(tmp_path: Path) -> None:
    """Such as one on tmpfs, which raises no fanotify pre-content events."""
    reference = f"oci:{tmp_path}/layout:latest"
    image = put_plain_image(reference)
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as root,
        Daemon(tmp_path, root=Path(root)) as daemon,
    ):
        place = daemon.mount(reference)
        assert daemon.mounted(place)["device"] == "fuse"
        assert output(daemon.reading(place / "f1")) == image.summary(1)


def test_the_fetcher_dies_ten_times_and_no_read_fails(
    node: Daemon, many: tuple[str, PlainImage]
) -> None:
    place = node.mount(many[0])
    with PacedReader(place, COUNT, stretches=10) as reader:
        for _ in range(10):
            pid = node.fetcher
            reader.go_on()
            os.kill(pid, signal.SIGKILL)
            node.wait(lambda pid=pid: node.fetcher != pid)  # type: ignore[misc]
        assert reader.digests() == digests(many[1])
    assert node.status()["fetcher"]["restarts"] == 10


def test_the_supervisor_dies_and_no_read_fails(node: Daemon, many: tuple[str, PlainImage]) -> None:
    place = node.mount(many[0])
    with PacedReader(place, COUNT, stretches=3, pause_s=0.01) as reader:
        for _ in range(3):
            fetcher = node.fetcher
            reader.go_on()
            os.kill(node.supervisor, signal.SIGKILL)
            node.wait_supervisor(fetcher)
            assert node.fetcher != fetcher
        assert reader.digests() == digests(many[1])


def test_upgrades_fail_no_read(node: Daemon, many: tuple[str, PlainImage]) -> None:
    place = node.mount(many[0])
    with PacedReader(place, COUNT, stretches=2, pause_s=0.01) as reader:
        reader.go_on()
        assert node.run("daemon", "--reload").code == 0
        second = node.mount(many[0], "second")
        reader.go_on()
        node.replace()
        assert reader.digests() == digests(many[1])
    assert output(node.reading(second / "f7")) == many[1].summary(7)


def test_a_read_that_waits_outlives_all_processes(tmp_path: Path) -> None:
    with ScriptedRegistry() as registry, Daemon(tmp_path, *fuse_options(tmp_path)) as node:
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(f"docker://{reference}")
        place = node.mount(reference)
        registry.script("GET /blobs/ status 503 x1000")
        readers = [node.reading(place / f"f{n}", how="random") for n in range(3)]
        node.wait(lambda: node.status()["fetcher"]["waiting_reads"] >= 3)
        node.end_all(signal.SIGKILL, anchor=False)
        drop_caches()
        readers.append(node.reading(place / "f3"))
        registry.script("")
        node.start()
        assert [output(reader) for reader in readers] == [image.summary(n) for n in range(4)]


def test_a_mount_that_nobody_holds_is_lost_and_can_be_made_again(
    node: Daemon, many: tuple[str, PlainImage]
) -> None:
    place = node.mount(many[0])
    assert output(node.reading(place / "f0")) == many[1].summary(0)
    node.end_all(signal.SIGKILL)
    assert output(node.reading(place / "f1")) in LOST
    node.start()
    assert str(place) not in mounted_erofs()
    assert node.log("is lost: mount it again")
    assert output(node.reading(node.mount(many[0]) / "f0")) == many[1].summary(0)


def test_an_unmounted_image_leaves_no_descriptor(
    node: Daemon, many: tuple[str, PlainImage]
) -> None:
    place = node.mount(many[0])
    node.wait(lambda: len(of_anchors(anchors(str(node.root)))) == 1)
    assert node.run("umount", place).code == 0
    node.wait(lambda: not of_anchors(anchors(str(node.root))))

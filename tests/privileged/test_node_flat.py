# SPDX-License-Identifier: Apache-2.0
"""A node with the flat device, on a block device or not: whole images, deaths and upgrades."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from firstread.daemon.anchor import anchors
from firstread.daemon.kept import of_anchors
from firstread.device.loopdevice import CONTROL
from firstread.mounts.table import mounted_erofs
from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon, tree_of
from firstread.testing.images import feature_tree
from firstread.testing.lazymount import output, summary
from firstread.testing.nbdmount import NBD
from firstread.testing.observe import differences
from firstread.testing.pacedreader import PacedReader
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import KiB

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(not os.path.exists(CONTROL), reason="there are no loop devices"),
]

ALL = pytest.mark.parametrize("device", ["flat", "loop", "mixed", NBD])
SOME = pytest.mark.parametrize("device", ["flat", "loop", NBD])
SECTOR = 64 * KiB
SOON_S = "30"  # the least that reads wait in the kernel, where they do
COUNT = 60  # files of `many` that are read
EIO = "errno 5"


@ALL
def test_the_image_with_every_feature_is_shown_as_it_is(
    tmp_path: Path, device: str, lazy_features: str
) -> None:
    with Daemon(tmp_path, "--device", device) as node:
        place = node.mount(lazy_features)
        assert not differences(feature_tree(), tree_of(place))
        status = node.mounted(place)
        assert status["device"] == device
        assert (status["failed_reads"], status["fetch_errors"]) == (0, 0)
        assert status["read_ahead_kib"]
        drop_caches()
        assert not differences(feature_tree(), tree_of(place))
        assert node.mounted(place)["events"] == status["events"]


@ALL
def test_deaths_and_upgrades_fail_no_read(
    tmp_path: Path, device: str, many: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path, "--device", device) as node:
        place = node.mount(many[0])
        with PacedReader(place, COUNT, stretches=6, pause_s=0.01) as reader:
            for _ in range(2):
                fetcher = node.fetcher
                reader.go_on()
                os.kill(fetcher, signal.SIGKILL)
                node.wait(lambda pid=fetcher: node.fetcher != pid)  # type: ignore[misc]
            reader.go_on()
            assert node.run("daemon", "--reload").code == 0
            second = node.mount(many[0], "second")
            reader.go_on()
            node.replace()
            fetcher = node.fetcher
            reader.go_on()
            os.kill(node.supervisor, signal.SIGKILL)
            node.wait_supervisor(fetcher)
            reader.go_on()
            expected = [many[1].summary(n, 0, SECTOR).split()[1] for n in range(COUNT)]
            assert reader.digests() == expected
        assert output(node.reading(second / "f7")) == many[1].summary(7)


@pytest.mark.parametrize("device", ["loop", NBD])
def test_reads_that_wait_outlive_all_but_the_anchor(tmp_path: Path, device: str) -> None:
    with ScriptedRegistry() as registry, Daemon(tmp_path, "--device", device) as node:
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(f"docker://{reference}")
        place = node.mount(reference)
        registry.script("GET /blobs/ status 503 x1000")
        readers = [node.reading(place / f"f{n}", how="random") for n in range(3)]
        node.wait(lambda: node.status()["fetcher"]["waiting_reads"] >= 3)
        node.end_all(signal.SIGKILL, anchor=False)
        node.start()
        node.wait(lambda: node.status()["fetcher"]["waiting_reads"] >= 3)
        registry.script("")
        assert [output(reader) for reader in readers] == [image.summary(n) for n in range(3)]


@SOME
def test_a_mount_that_nobody_holds(
    tmp_path: Path, device: str, many: tuple[str, PlainImage]
) -> None:
    """A block device is served again, under the same mount; without one the mount is lost."""
    with Daemon(tmp_path, "--device", device, "--anchor", SOON_S) as node:
        place = node.mount(many[0])
        assert output(node.reading(place / "f0")) == many[1].summary(0)
        mounted = os.stat(place).st_dev
        with open(place / "f3", "rb") as user:
            node.end_all(signal.SIGKILL)
            assert output(node.reading(place / "f1")) == EIO
            node.start()
            if device in ("loop", "nbd"):
                assert os.stat(place).st_dev == mounted
                assert os.fstat(user.fileno()).st_dev == mounted
                assert many[1].summary(3, 0, SECTOR) == summary(user.read())
            else:
                assert str(place) not in mounted_erofs()
                assert node.log("is lost: mount it again")
                node.mount(many[0])
        for number in (0, 1):
            assert output(node.reading(place / f"f{number}")) == many[1].summary(number)


@SOME
def test_a_mount_is_read_on_after_its_unmount_and_leaves_nothing(
    tmp_path: Path, device: str, many: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path, "--device", device) as node:
        place = node.mount(many[0])
        node.wait(lambda: len(of_anchors(anchors(str(node.root)))) == 1)
        with open(place / "f3", "rb") as user:
            assert node.run("umount", place).code
            assert node.run("umount", "--lazy", place).code == 0
            fetcher = node.fetcher
            os.kill(fetcher, signal.SIGKILL)
            node.wait(lambda: node.fetcher != fetcher)
            assert many[1].summary(3, 0, SECTOR) == summary(user.read())
        node.wait(lambda: not of_anchors(anchors(str(node.root))))
        node.wait(lambda: bool(node.log("nobody uses what was mounted at")))


@pytest.mark.parametrize("device", ["flat"])
def test_another_device_gives_its_mounts_up(
    tmp_path: Path, device: str, many: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path, "--device", device) as before:
        place = before.mount(many[0])
        before.end_all(signal.SIGKILL)
        with Daemon(tmp_path, "--device", "fanotify") as node:
            assert str(place) not in mounted_erofs()
            assert output(node.reading(node.mount(many[0]) / "f0")) == many[1].summary(0)


@pytest.mark.parametrize("device", ["loop", NBD])
def test_reads_fail_when_the_daemon_is_stopped(tmp_path: Path, device: str) -> None:
    with ScriptedRegistry() as registry, Daemon(tmp_path, "--device", device) as node:
        reference = f"{registry.host}/lazy/plain:1"
        put_plain_image(f"docker://{reference}")
        place = node.mount(reference)
        registry.script("GET /blobs/ blackhole 60 x*")
        reader = node.reading(place / "f1", how="random")
        node.wait(lambda: node.status()["fetcher"]["waiting_reads"] >= 1)
        node.end_all(signal.SIGTERM)
        assert output(reader) == EIO
        assert output(node.reading(place / "f2", how="random")) == EIO

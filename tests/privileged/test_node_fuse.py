# SPDX-License-Identifier: Apache-2.0
"""A node with FUSE: whole images, and the death of its processes."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstread.config import Config
from firstread.daemon import choice
from firstread.daemon.anchor import anchors
from firstread.daemon.handover import FIXED
from firstread.daemon.kept import of_anchors
from firstread.device.erofsmount import unmount
from firstread.device.fusedevice import FuseDevice
from firstread.device.readahead import START_KIB, STEADY_KIB
from firstread.errors import NodeError
from firstread.mounts.table import mounted_erofs
from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon, tree_of
from firstread.testing.images import feature_tree
from firstread.testing.lazymount import output, summary
from firstread.testing.manager import ServiceManager
from firstread.testing.observe import differences
from firstread.testing.pacedreader import PacedReader
from firstread.testing.plainimage import (
    PlainImage,
    put_hot_image,
    put_one_file,
    put_plain_image,
)
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import KiB

pytestmark = pytest.mark.privileged

SECTOR = 64 * KiB
COUNT = 100  # files of `many` that are read
LOST = ("errno 103", "errno 107")  # ECONNABORTED, ENOTCONN


def fuse_options(scratch: Path, more: str = "") -> tuple[str, str]:
    """Return the options of a daemon with FUSE, and more of its configuration."""
    path = scratch / "fuse.toml"
    path.write_text(f'[node]\ndevice = "fuse"\n{more}')
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
        assert daemon.mounted(place)["device"] == "flat"
        assert output(daemon.reading(place / "f1")) == image.summary(1)


def test_a_start_that_the_image_knows_reads_nothing_ahead(
    node: Daemon, tmp_path: Path, many: tuple[str, PlainImage]
) -> None:
    """Read-ahead would leave the hot sectors, because windows are not those of the trace."""
    reference = f"oci:{tmp_path}/hot:latest"
    put_hot_image(reference)
    hot = node.mount(reference, "hot", "--prefetch", "none")  # else it may be whole at once
    assert node.mounted(hot)["read_ahead_kib"] == FuseDevice.capabilities.known_start_kib == 4
    unknown = node.mount(many[0], "unknown", "--prefetch", "none")
    assert node.mounted(unknown)["read_ahead_kib"] == START_KIB
    assert node.run("fetch", "--all", hot).code == 0
    node.wait(lambda: node.mounted(hot)["read_ahead_kib"] == STEADY_KIB)


def test_a_covered_read_does_not_wait_for_its_sector(tmp_path: Path) -> None:
    options = fuse_options(tmp_path)
    with ScriptedRegistry() as registry, Daemon(tmp_path, *options) as node:
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(f"docker://{reference}", count=1, sector_bytes=SECTOR)
        place = node.mount(reference)
        registry.script(f"GET /blobs/ hangup {SECTOR // 2}\nGET /blobs/ blackhole 600 x*")
        assert output(node.reading(place / "f0", how="random")) == image.summary(0)
        (path,) = (p for p in (node.root / "sectors").glob("*/*") if p.stat().st_size)
        node.wait(lambda: path.stat().st_size >= 8 * KiB)
        waited = sum(node.status()["totals"]["first_reads"]["counts"])
        covered = node.reading(place / "f0", 4 * KiB, how="random")
        assert output(covered) == image.summary(0, 4 * KiB)
        node.wait(lambda: node.mounted(place)["waited_reads"] == waited + 1)
        assert sum(node.status()["totals"]["first_reads"]["counts"]) == waited


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


def waits(node: Daemon, count: int) -> None:
    """Wait until the fetcher has so many reads that wait."""
    node.wait(lambda: node.status()["fetcher"]["waiting_reads"] >= count)


def kill_fetcher(node: Daemon) -> None:
    os.kill(node.fetcher, signal.SIGKILL)


def kill_supervisor(node: Daemon) -> None:
    fetcher = node.fetcher
    os.kill(node.supervisor, signal.SIGKILL)
    node.wait_supervisor(fetcher)


def reload(node: Daemon) -> None:
    assert node.run("daemon", "--reload").code == 0


def kill_all(node: Daemon) -> None:
    node.end_all(signal.SIGKILL, anchor=False)
    node.start()


ENDS = [kill_fetcher, kill_supervisor, reload, Daemon.replace, kill_all]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_reads_that_wait_outlive_who_has_them(
    tmp_path: Path, end: Callable[[Daemon], None]
) -> None:
    with ScriptedRegistry() as registry, Daemon(tmp_path, *fuse_options(tmp_path)) as node:
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(f"docker://{reference}")
        place = node.mount(reference)
        registry.script("GET /blobs/ status 503 x1000")
        readers = [node.reading(place / f"f{n}", how="random") for n in range(3)]
        waits(node, 3)
        for _ in range(2):
            fetcher = node.fetcher
            end(node)
            node.wait(lambda pid=fetcher: node.fetcher != pid)  # type: ignore[misc]
            waits(node, 3)
        drop_caches()
        readers.append(node.reading(place / "f3"))
        registry.script("")
        assert [output(reader) for reader in readers] == [image.summary(n) for n in range(4)]


def test_systemd_keeps_many_mounts(tmp_path: Path, many: tuple[str, PlainImage]) -> None:
    options = fuse_options(tmp_path)
    with ServiceManager(tmp_path) as manager, Daemon(tmp_path, *options, manager=manager) as node:
        places = [node.mount(many[0], f"mnt{number}") for number in range(9)]
        node.wait(lambda: len(manager.kept) == len(FIXED) + 2 * len(places))
        for number in (1, 2):
            node.end_all(signal.SIGKILL)
            late = node.reading(places[0] / f"f{number}")
            node.start()
            assert output(late) == many[1].summary(number)
            for place in places:
                assert output(node.reading(place / f"f{number}")) == many[1].summary(number)
        assert node.run("umount", places[0]).code == 0
        node.wait(lambda: len(manager.kept) == len(FIXED) + 2 * len(places) - 2)


def test_mounts_of_a_fetcher_that_dies_at_once_are_kept(
    node: Daemon, many: tuple[str, PlainImage]
) -> None:
    """The supervisor is busy meanwhile: it hears of them when their fetcher is dead."""
    supervisor, fetcher = node.supervisor, node.fetcher
    os.kill(supervisor, signal.SIGSTOP)
    places = [node.mount(many[0], f"mnt{number}") for number in range(5)]
    os.kill(fetcher, signal.SIGKILL)
    os.kill(supervisor, signal.SIGCONT)
    node.wait(lambda: node.fetcher != fetcher)
    assert [output(node.reading(place / "f0")) for place in places] == [many[1].summary(0)] * 5


def test_a_read_over_sectors_that_become_doubtful_meanwhile(tmp_path: Path) -> None:
    """It is asked for again by who answers it."""
    size, options = 4 * SECTOR, fuse_options(tmp_path, '[cache]\nverify = "mount"\n')
    with ScriptedRegistry() as registry, Daemon(tmp_path, *options) as node:
        reference = f"{registry.host}/lazy/big:1"
        frame = 16 * KiB
        content = put_one_file(
            f"docker://{reference}", size, sector_bytes=SECTOR, frame_bytes=frame
        )
        place = node.mount(reference)
        first = node.reading(place / "big", 3 * SECTOR, SECTOR, "direct")
        assert output(first) == summary(content[3 * SECTOR :])
        registry.script("GET /blobs/ status 503 x1000")
        reader = node.reading(place / "big", 2 * SECTOR, 2 * SECTOR, "direct")
        waits(node, 1)
        node.mount(reference, "second")  # what is present is checked when it is read next
        registry.script("")
        assert output(reader) == summary(content[2 * SECTOR :])
        assert node.status()["fetcher"]["restarts"] == 0


# -- another device --------------------------------------------------------------------------------


def test_mounts_of_fanotify_are_left_alone(tmp_path: Path, many: tuple[str, PlainImage]) -> None:
    with Daemon(tmp_path, "--device", "fanotify") as before:
        place = before.mount(many[0])
        assert output(before.reading(place / "f0")) == many[1].summary(0)
        before.end_all(signal.SIGKILL)
        with Daemon(tmp_path, "--device", "fuse") as node:
            assert str(place) in mounted_erofs()
            assert node.log("is left alone: it is of the device fanotify")
            assert output(node.reading(place / "f0")) == many[1].summary(0)
            second = node.mount(many[0], "second")
            assert output(node.reading(second / "f1")) == many[1].summary(1)
            unmount(second)
            node.end_all(signal.SIGKILL)
            before.start()
            assert output(before.reading(place / "f2")) == many[1].summary(2)


def test_mounts_of_fuse_are_lost_with_it(tmp_path: Path, many: tuple[str, PlainImage]) -> None:
    with Daemon(tmp_path, "--device", "fuse") as before:
        place = before.mount(many[0])
        before.end_all(signal.SIGKILL)
        with Daemon(tmp_path, "--device", "fanotify") as node:
            assert str(place) not in mounted_erofs()
            assert output(node.reading(node.mount(many[0]) / "f0")) == many[1].summary(0)


def test_no_other_device_is_chosen_while_mounts_need_the_one_before(
    daemon: Daemon, many: tuple[str, PlainImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> str:
        raise NodeError("this kernel reads zeros")

    place = daemon.mount(many[0])
    daemon.end_all(signal.SIGKILL)
    (daemon.root / "kernel.json").unlink()
    first, *others = choice.DEVICES
    monkeypatch.setattr(choice, "DEVICES", (first._replace(prove=refuse), *others))
    with pytest.raises(NodeError, match=f"reads zeros; .*{place}"):
        choice.choose(daemon.root, Config())
    unmount(place)
    os.close(choice.choose(daemon.root, Config()))


# -- ends ------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("stop", ["fail", "wait"])
def test_a_stop_says_what_becomes_of_mounts(
    tmp_path: Path, many: tuple[str, PlainImage], stop: str
) -> None:
    with Daemon(tmp_path, "--device", "fuse", "--on-stop", stop) as node:
        place = node.mount(many[0])
        said = node.run("daemon", "--stop").stdout
        node.end_all(signal.SIGTERM, anchor=False)  # only its exit status is left to collect
        if stop == "fail":
            assert said.endswith("; 1 mount is lost: unmount it, or mount the image again\n")
            assert output(node.reading(place / "f0")) in LOST
            assert node.tell("", "umount", place).code == 0  # starts a daemon, which clears it away
            assert str(place) not in mounted_erofs()
        else:
            assert said.endswith("; 1 mount stays: reads wait for another daemon for 300 s\n")
            reader = node.reading(place / "f0")
            node.start()
            assert output(reader) == many[1].summary(0)


def test_an_unmounted_image_leaves_no_descriptor(
    node: Daemon, many: tuple[str, PlainImage]
) -> None:
    place = node.mount(many[0])
    node.wait(lambda: len(of_anchors(anchors(str(node.root)))) == 1)
    assert node.run("umount", place).code == 0
    node.wait(lambda: not of_anchors(anchors(str(node.root))))

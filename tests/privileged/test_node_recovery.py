# SPDX-License-Identifier: Apache-2.0
"""The next daemon takes over from the last one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from firstread import __version__
from firstread.device.erofsmount import unmount
from firstread.errors import NodeError
from firstread.run.processes import identify
from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output, summary
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.testing.shortage import few_descriptors, unreadable
from firstread.units import KiB

pytestmark = pytest.mark.privileged

EIO = "errno 5"
SECTOR = 256 * KiB


def records(daemon: Daemon) -> list[Path]:
    return sorted((daemon.root / "mounts").iterdir())


def test_a_daemon_that_ends_in_order_leaves_its_mounts_to_the_next(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    places = [daemon.mount(plain[0], name) for name in ("one", "with space", "tab\tand\\slash")]
    assert output(daemon.reading(places[0] / "f0")) == plain[1].summary(0)
    daemon.end_all(signal.SIGTERM)
    daemon.start()
    mounts = {mount["mountpoint"]: mount for mount in daemon.status()["mounts"]}
    assert mounts.keys() == {str(place) for place in places}
    for number, place in enumerate(places):
        assert output(daemon.reading(place / f"f{number + 1}")) == plain[1].summary(number + 1)
        assert daemon.run("umount", place).code == 0
    assert records(daemon) == []


def test_a_daemon_that_is_stopped_by_command_leaves_its_mounts_to_the_next(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place, pid = daemon.mount(plain[0]), daemon.supervisor
    assert output(daemon.reading(place / "f0")) == plain[1].summary(0)
    assert f"daemon     {__version__} (process {pid})" in daemon.run("version").stdout
    ran = daemon.run("daemon", "--stop")
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.stdout == (
        f"the daemon (process {pid}) has ended; 1 mount stays: start another before anybody"
        " reads absent data\n"
    )
    assert identify(pid) is None
    assert output(daemon.reading(place / "f0")) == plain[1].summary(0)
    assert output(daemon.reading(place / "f1")) == EIO
    daemon.end_all(signal.SIGTERM)  # only its exit status is left to collect
    daemon.start()
    assert daemon.run("umount", place).code == 0
    ran = daemon.run("daemon", "--stop")
    assert (ran.code, ran.stdout.count("stay")) == (0, 0)
    assert daemon.run("umount", place).code == 2  # which starts no daemon
    assert not daemon.client.alive()


def test_records_of_lost_mounts_are_removed(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    places = [daemon.mount(plain[0], name) for name in ("stays", "goes")]
    daemon.end_all(signal.SIGKILL)
    unmount(places[1])
    (daemon.root / "mounts/torn.json").write_bytes(b'{"mountpoint": "/x"')
    (daemon.root / "mounts/torn.tmp").write_bytes(b"")
    daemon.start()
    assert [mount["mountpoint"] for mount in daemon.status()["mounts"]] == [str(places[0])]
    assert len([path for path in records(daemon) if path.suffix == ".json"]) == 1
    assert daemon.log(f"mount {places[1]} is gone")


def test_a_mount_without_its_source_is_taken_over_and_waits(daemon: Daemon, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    image = put_plain_image(f"oci:{layout}:latest")
    place = daemon.mount(f"oci:{layout}:latest")
    assert output(daemon.reading(place / "f0", 0, SECTOR)) == image.summary(0, 0, SECTOR)
    daemon.end_all(signal.SIGKILL)
    layout.rename(tmp_path / "away")
    daemon.start()
    drop_caches()
    assert output(daemon.reading(place / "f0", 0, SECTOR)) == image.summary(0, 0, SECTOR)
    assert output(daemon.reading(place / "f1", how="random")) == EIO
    (tmp_path / "away").rename(layout)
    assert output(daemon.reading(place / "f1", how="random")) == image.summary(1)


def test_a_daemon_starts_without_the_files_of_an_image(
    daemon: Daemon, plain: tuple[str, PlainImage], tmp_path: Path
) -> None:
    other = f"oci:{tmp_path}/other:latest"
    put_plain_image(other, first=50)
    lost, kept = daemon.mount(plain[0], "lost"), daemon.mount(other, "kept")
    daemon.end_all(signal.SIGTERM)
    (damaged,) = [
        path
        for path in (daemon.root / "images").iterdir()
        if str(path / "metadata") in Path("/proc/mounts").read_text() and str(lost) in _line(path)
    ]
    shutil.rmtree(damaged)
    daemon.start()
    assert [mount["mountpoint"] for mount in daemon.status()["mounts"]] == [str(kept)]
    assert daemon.log("cannot be taken over")
    unmount(lost)
    daemon.mount(plain[0], "lost")  # its metadata is fetched again


def test_a_mount_heals_once_the_files_of_its_image_return(
    daemon: Daemon, plain: tuple[str, PlainImage], tmp_path: Path
) -> None:
    """A fetcher without these files must not forget a standing mount."""
    place = daemon.mount(plain[0])
    daemon.end_all(signal.SIGKILL)
    (config,) = (daemon.root / "images").glob("*/config.json")
    config.rename(tmp_path / "away")
    daemon.start()
    assert daemon.log("cannot be taken over")
    assert output(daemon.reading(place / "f1")) == EIO
    assert daemon.run("cache", "prune").code == 0
    assert daemon.run("cache", "verify", "--repair").code == 5
    assert config.parent.is_dir()
    (tmp_path / "away").rename(config)
    daemon.wait(lambda: daemon.status()["mounts"])
    assert output(daemon.reading(place / "f1")) == plain[1].summary(1)


def test_reads_wait_for_a_mount_whose_image_cannot_be_opened_yet(
    daemon: Daemon, plain: tuple[str, PlainImage], tmp_path: Path
) -> None:
    """Meanwhile nothing removes its files, and nothing is mounted over it."""
    place = daemon.mount(plain[0])
    assert output(daemon.reading(place / "f0", 0, SECTOR)) == plain[1].summary(0, 0, SECTOR)
    before = daemon.fetcher
    (config,) = (daemon.root / "images").glob("*/config.json")
    with unreadable(config):
        os.kill(before, signal.SIGKILL)
        daemon.wait(lambda: daemon.fetcher != before)
        assert daemon.log("cannot be taken over yet")
        reader = daemon.reading(place / "f1")
        daemon.wait(lambda: daemon.status()["fetcher"]["waiting_reads"])
        assert "could not be taken over yet" in daemon.run("umount", place).stderr
        assert daemon.run("mount", plain[0], place).code == 5
        assert daemon.run("cache", "prune", "--json").json["sectors"] == 0
        assert daemon.run("cache", "verify", "--repair").code == 5
        assert reader.poll() is None
    assert output(reader) == plain[1].summary(1)
    assert [mount["mountpoint"] for mount in daemon.status()["mounts"]] == [str(place)]
    assert output(daemon.reading(place / "f0", 0, SECTOR)) == plain[1].summary(0, 0, SECTOR)
    assert daemon.run("umount", place).code == 0


def test_a_mount_that_left_its_place_waits_until_its_image_can_be_opened(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    before = daemon.fetcher
    (config,) = (daemon.root / "images").glob("*/config.json")
    with open(place / "f1", "rb") as user:
        with unreadable(config):
            os.kill(before, signal.SIGKILL)
            daemon.wait(lambda: daemon.fetcher != before)
            subprocess.run(["umount", "--lazy", place], check=True)
            for _ in range(2):  # each is an attempt, too
                assert daemon.run("umount", place).code == 5
        daemon.wait(lambda: daemon.log("took over mount"))
        assert summary(user.read()) == plain[1].summary(1, 0, SECTOR)
    daemon.wait(lambda: os.listdir(daemon.root / "mounts") == [])


def test_a_fetcher_short_of_descriptors_throws_nothing_away(daemon: Daemon, tmp_path: Path) -> None:
    with ScriptedRegistry() as registry:
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(f"docker://{reference}")
        place = daemon.mount(reference)
        (tmp_path / "second").mkdir()
        (directory,) = (daemon.root / "images").iterdir()
        fetcher = daemon.fetcher
        refused = 0
        for spare in range(1, 5):  # the first is the command's connection
            with few_descriptors(fetcher, spare):
                ran = daemon.run("mount", reference, tmp_path / "second")
                refused += ran.code != 0
            if ran.code == 0:
                assert daemon.run("umount", tmp_path / "second").code == 0
            assert list((daemon.root / "images").iterdir()) == [directory]
        assert refused
        os.kill(fetcher, signal.SIGKILL)
        daemon.wait(lambda: daemon.fetcher != fetcher)
        assert output(daemon.reading(place / "f3")) == image.summary(3)


def test_reads_wait_while_the_fetcher_has_no_descriptor_left(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    for number, spare in enumerate((0, 1)):
        with few_descriptors(daemon.fetcher, spare):
            reader = daemon.reading(place / f"f{number}")
            if not spare:
                daemon.wait(
                    lambda: daemon.log("reads wait") or "Too many open files" in daemon.output()
                )
        assert output(reader) == plain[1].summary(number)
    assert daemon.mounted(place)["failed_reads"] == 0
    assert not daemon.log("a read fails")


def test_reads_wait_while_the_supervisor_has_no_descriptor_left(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    """If the supervisor read them, the kernel would deny them."""
    place = daemon.mount(plain[0])
    with few_descriptors(daemon.supervisor):
        reader = daemon.reading(place / "f0")
        daemon.wait(lambda: daemon.log("no events are taken"))
    assert output(reader) == plain[1].summary(0)
    assert not daemon.log("a read fails")


def _line(path: Path) -> str:
    lines = Path("/proc/mounts").read_text().splitlines()
    return next(line for line in lines if line.startswith(str(path)))


def test_a_half_filled_sector_is_resumed(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    place = daemon.mount(plain[0])
    assert output(daemon.reading(place / "f2", 0, SECTOR)) == plain[1].summary(2, 0, SECTOR)
    daemon.end_all(signal.SIGKILL)
    (whole,) = [
        path
        for path in (daemon.root / "sectors").rglob("*")
        if path.is_file() and path.stat().st_size
    ]
    content = whole.read_bytes()
    with whole.open("r+b") as file:
        file.truncate(3 * 16 * KiB + 5000)  # in the middle of a frame
    drop_caches()
    daemon.start()
    assert output(daemon.reading(place / "f2", 0, SECTOR)) == plain[1].summary(2, 0, SECTOR)
    assert whole.read_bytes() == content


def test_sectors_are_flushed_when_it_is_calm(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    """Sectors without the owner's write permission are flushed; see the store."""
    place = daemon.mount(plain[0])
    assert daemon.run("fetch", "--all", place).code == 0
    daemon.end_all(signal.SIGKILL)  # before it has been calm for long enough
    daemon.start()
    files = [path for path in (daemon.root / "sectors").rglob("*") if path.is_file()]
    assert len(files) == 8
    daemon.wait(lambda: all(path.stat().st_mode & 0o777 == 0o400 for path in files))


def test_a_daemon_without_a_working_fetcher_exits(daemon: Daemon) -> None:
    daemon.end_all(signal.SIGTERM)
    (daemon.root / "sectors/00").rmdir()  # only a fetcher looks into it
    with pytest.raises(Exception, match=r"daemon hung up|no daemon answers"):
        daemon.start()
    daemon.wait(lambda: daemon.log("no fetcher starts: giving up"))


def test_holders_of_a_mount_change_only_with_its_record(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    for holder in ("a", "b"):
        daemon.client.post("/mount", image=plain[0], holder=holder)
    table = daemon.root / "mounts"
    subprocess.run(["chattr", "+i", table], check=True, timeout=PATIENCE_S)
    try:
        with pytest.raises(NodeError, match="cannot write the mount table"):
            daemon.client.post("/mount", image=plain[0], holder="c")
        with pytest.raises(NodeError, match="cannot write the mount table"):
            daemon.client.post("/release", holder="b")
        (mount,) = daemon.status()["mounts"]
        assert mount["holders"] == ["a", "b"]
    finally:
        subprocess.run(["chattr", "-i", table], check=True, timeout=PATIENCE_S)
    for holder in ("b", "a"):
        daemon.client.post("/release", holder=holder)
    assert daemon.status()["mounts"] == []


def test_a_mount_unmounted_by_others_is_released_without_complaint(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    answer = daemon.client.post("/mount", image=plain[0], holder="a")
    unmount(Path(answer["mountpoint"]))
    daemon.client.release("a")
    assert daemon.status()["mounts"] == []
    assert records(daemon) == []

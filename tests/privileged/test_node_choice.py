# SPDX-License-Identifier: Apache-2.0
"""The device of a node: chosen, asked for, changed, missing; and what a user is told of it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from firstread.mounts.table import mounted_erofs
from firstread.testing.caches import drop_caches
from firstread.testing.command import program
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output, summary
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.units import KiB

pytestmark = pytest.mark.privileged

SECTOR = 256 * KiB

# Runs a command in a mount namespace of its own, whose /dev has no device of a kernel module.
_NO_MODULES = (
    'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && exec "$@"'
)


def refusal(*command: str) -> tuple[int, str]:
    """Return the exit code and the output of a daemon that must exit."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return done.returncode, done.stdout + done.stderr


def daemon_command(tmp_path: Path, *options: str) -> list[str]:
    places = ("--root", tmp_path / "root", "--run-dir", tmp_path / "run")
    return program("daemon", *map(str, places), *options)


def test_status_says_which_device_and_why_no_better_one(tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as root,
        Daemon(tmp_path, root=Path(root)) as node,
    ):
        device = node.status()["device"]
        first, *_ = device["passed_over"]
        assert (device["wanted"], first["device"]) == ("auto", "fanotify")
        assert "is on tmpfs" in first["reason"]
        assert first["fix"] == "choose a --root on ext4, xfs or btrfs"
        lines = node.run("status").stdout.splitlines()
        assert f"device   {device['name']}" in lines
        assert f"  not fanotify: {first['reason']}" in lines
        node.replace()  # who takes over knows it, too
        assert node.status()["device"] == device
        node.end_all(signal.SIGTERM)
        assert node.run("cache", "ls").code == 0  # without a daemon, too


def test_the_best_device_passes_nothing_over(daemon: Daemon) -> None:
    assert daemon.status()["device"] == {"name": "fanotify", "passed_over": [], "wanted": "auto"}
    assert "device   fanotify" in daemon.run("status").stdout.splitlines()


def test_another_device_of_the_configuration_counts_after_a_stop(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[node]\ndevice = "fuse"\n')
    with Daemon(tmp_path, "--config", str(path)) as node:
        place = node.mount(plain[0])
        path.write_text('[node]\ndevice = "fanotify"\n')
        ran = node.run("daemon", "--reload")
        assert ran.code == 0
        assert "its device stays fuse: to have fanotify, as the configuration asks" in ran.stdout
        node.wait(lambda: node.status()["device"]["wanted"] == "fanotify")
        assert "device   fuse, until the daemon is stopped" in node.run("status").stdout
        checks = {check["name"]: check for check in node.run("doctor", "--json").json["checks"]}
        assert checks["daemon's device"]["status"] == "warn"
        assert output(node.reading(place / "f0")) == plain[1].summary(0)
        node.end_all(signal.SIGTERM)
        node.start()
        assert node.status()["device"]["name"] == "fanotify"
        assert str(place) not in mounted_erofs()  # with the last who held it, it was lost


def test_a_mount_of_another_device_is_named_once_and_can_be_unmounted(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path, "--device", "fanotify") as before:
        place = before.mount(plain[0])
        before.end_all(signal.SIGKILL)
        with Daemon(tmp_path, "--device", "fuse") as node:
            ran = node.run("umount", place)
            assert ran.code == 5
            assert f"the mount at {place} is left alone" in ran.stderr
            assert f"umount {place}" in ran.stderr
            checks = {check["name"]: check for check in node.run("doctor", "--json").json["checks"]}
            assert checks[f"mount {place}"]["status"] == "warn"
            (said,) = node.log("is left alone")
            assert said["level"] == "warning"
            subprocess.run(["umount", place], check=True)
            assert node.run("umount", place).code == 2  # nothing of ours is there any more
            assert not list((node.root / "mounts").iterdir())
            assert output(node.reading(node.mount(plain[0]) / "f0")) == plain[1].summary(0)


def read_all(node: Daemon, place: Path, image: PlainImage, numbers: range) -> None:
    drop_caches()
    readers = [node.reading(place / f"f{n}", 0, SECTOR) for n in numbers]
    assert [output(reader) for reader in readers] == [image.summary(n, 0, SECTOR) for n in numbers]


def test_what_a_mount_of_another_device_reads_stays(tmp_path: Path) -> None:
    """Nobody sees its reads, so no file of it may become shorter, as long as it is used."""
    left, shares, other = (f"oci:{tmp_path}/layout{number}:latest" for number in range(3))
    image = put_plain_image(left, count=4)
    shared, others = put_plain_image(shares, first=2, count=3), put_plain_image(other, first=9)
    with Daemon(tmp_path, "--device", "fanotify") as before:
        place = before.mount(left)
        read_all(before, place, image, range(1, 4))
        before.end_all(signal.SIGKILL)
        with Daemon(tmp_path, "--device", "fuse", "--cache-max", str(6 * SECTOR)) as node:
            new, second = node.mount(shares, "shares"), node.mount(other, "other")

            def fill() -> None:
                read_all(node, new, shared, range(2))  # not all of it, which would spare it
                read_all(node, second, others, range(8))

            fill()
            assert node.status()["store"]["evictions"]
            read_all(node, place, image, range(1, 4))
            with open(place / "f3", "rb") as user:
                subprocess.run(["umount", "--lazy", place], check=True)
                node.mount(left)  # its place is free
                fill()
                assert summary(user.read()) == image.summary(3, 0, SECTOR)
            node.wait(lambda: len(os.listdir(node.root / "mounts")) == 3)


def test_a_device_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    code, said = refusal(*daemon_command(tmp_path, "--device", "floppy"))
    assert code == 2
    assert "'floppy' is not one of 'auto', 'fanotify'" in said
    path = tmp_path / "config.toml"
    path.write_text('[node]\ndevice = "floppy"\n')
    code, said = refusal(*daemon_command(tmp_path, "--config", str(path)))
    assert code == 2
    assert f"{path}: " in said
    assert "which is one of 'auto', 'fanotify', " in said


def test_a_device_whose_module_is_missing(tmp_path: Path) -> None:
    command = daemon_command(tmp_path, "--device", "fuse")
    code, said = refusal("unshare", "-m", "sh", "-c", _NO_MODULES, "sh", *command)
    assert code == 5, said
    assert "the device fuse does not work here: " in said
    assert "load the module fuse" in said
    assert "Traceback" not in said


def test_a_mount_that_outlives_its_processes_keeps_its_device(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path, "--device", "loop") as before:
        place = before.mount(plain[0])
        before.end_all(signal.SIGKILL)
        with Daemon(tmp_path) as node:
            device = node.status()["device"]
            assert device["name"] == "loop"
            assert device["passed_over"][0]["device"] == "fanotify"
            assert device["passed_over"][0]["reason"].startswith(f"the mount at {place} can be")
            assert output(node.reading(place / "f0")) == plain[1].summary(0)
            checks = {check["name"]: check for check in node.run("doctor", "--json").json["checks"]}
            assert checks["daemon's device"]["status"] == "ok"
            assert node.run("umount", place).code == 0
            node.end_all(signal.SIGTERM)
            node.start()
            assert node.status()["device"]["name"] == "fanotify"

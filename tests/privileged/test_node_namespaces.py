# SPDX-License-Identifier: Apache-2.0
"""Commands and daemons in separate mount namespaces: an invisible mount is a failure."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.control.namespace import mount_namespace
from firstread.mounts.table import mounted_erofs
from firstread.testing.command import firstread, program
from firstread.testing.daemon import Daemon
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon in its own mount namespace, out of which nothing propagates."""
    unshare = ("unshare", "--mount", "--propagation", "private")
    with Daemon(tmp_path_factory.mktemp("apart"), command=unshare) as running:
        yield running


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon in the mount namespace of the tests."""
    with Daemon(tmp_path_factory.mktemp("near")) as running:
        yield running


def elsewhere(daemon: Daemon, script: str, propagation: str = "private") -> tuple[int, str, str]:
    """Run a script in another mount namespace; ``fr VERB … $at`` is a command."""
    places = shlex.join(daemon._places())
    start = shlex.join(program())
    command = ["unshare", "--mount", "--propagation", propagation, "sh", "-c"]
    done = subprocess.run(
        [*command, f"fr() {{ {start} \"$@\"; }}; at='{places}'; {script}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def mounts_of(daemon: Daemon) -> list[str]:
    return [mount["mountpoint"] for mount in daemon.status()["mounts"]]


def test_a_command_fails_where_it_cannot_see_its_mount(
    apart: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = apart.scratch / "host"
    place.mkdir()
    theirs = apart.status()["namespace"]
    where = ("--root", str(apart.root), "--run-dir", str(apart.run_dir))
    for arguments in (("mount", *where, plain[0], str(place)), ("run", *where, "--rm", plain[0])):
        ran = firstread(*arguments)
        assert ran.code in (5, 125), ran
        assert f"the daemon is in the mount namespace {theirs}" in ran.stderr
        assert mount_namespace() in ran.stderr
        assert "nsenter --target" in ran.stderr
        assert mounts_of(apart) == []
    checks = {check["name"]: check for check in apart.run("doctor", "--json").json["checks"]}
    assert checks["mount namespace"]["status"] == "warn"
    assert theirs in checks["mount namespace"]["detail"]


def test_a_command_in_the_daemons_namespace_works_as_always(
    apart: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = apart.scratch / "inside"
    place.mkdir()
    enter = ["nsenter", "--target", str(apart.fetcher), "--mount"]
    for verb, *arguments in (["mount", plain[0], str(place)], ["umount", str(place)]):
        command = [*enter, *program(verb, *arguments, *apart._places())]
        subprocess.run(command, check=True, timeout=PATIENCE_S)
        assert mounts_of(apart) == ([str(place)] if verb == "mount" else [])


def test_a_mount_for_a_command_elsewhere_is_not_left_on_the_host(
    near: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = near.scratch / "private"
    place.mkdir()
    code, _, said = elsewhere(near, f"fr mount {plain[0]} {place} $at")
    assert code == 5
    assert f"the daemon is in the mount namespace {mount_namespace()}" in said
    assert mounts_of(near) == []
    assert str(place) not in mounted_erofs()


def test_a_propagated_mount_is_seen(near: Daemon, plain: tuple[str, PlainImage]) -> None:
    """A DaemonSet has its own namespace, to which mounts of the host propagate."""
    shared = near.scratch / "shared"
    shared.mkdir()
    subprocess.run(["mount", "--bind", shared, shared], check=True)
    subprocess.run(["mount", "--make-shared", shared], check=True)
    try:
        (shared / "at").mkdir()
        script = (
            f"fr mount {plain[0]} {shared}/at $at && ls {shared}/at && fr umount {shared}/at $at"
        )
        code, listed, said = elsewhere(near, script, "slave")
        assert (code, said) == (0, "")
        assert "f0" in listed
    finally:
        subprocess.run(["umount", shared], check=True)


def test_a_remaining_copy_of_a_mount_is_reported(
    near: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = near.mount(plain[0], "copied")
    code, _, said = elsewhere(near, f"fr umount {place} $at")
    assert code == 5
    assert "is unmounted for the daemon, but still mounted here" in said
    near.wait(lambda: mounts_of(near) == [])


def test_a_directory_of_this_namespace_only(near: Daemon, plain: tuple[str, PlainImage]) -> None:
    hidden = near.scratch / "hidden"
    hidden.mkdir()
    hide = f"mount -t tmpfs none {hidden} && mkdir {hidden}/only"
    script = f"{hide} && fr mount {plain[0]} {hidden}/only $at"
    code, _, said = elsewhere(near, script)
    assert code == 5
    assert "is not a directory where the daemon is" in said
    assert mount_namespace() in said
    assert os.listdir(hidden) == []


def test_an_attached_image_and_the_configuration_of_the_daemon(
    near: Daemon, plain: tuple[str, PlainImage], tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[registry]\nhosts_dirs = []\n")
    checks = {check["name"]: check for check in near.run("doctor", "--json").json["checks"]}
    assert "of the daemon that runs" in checks["configuration"]["detail"]
    assert checks["mount namespace"]["status"] == "ok"
    ran = near.run("doctor", "--json", "--config", str(config))
    checks = {check["name"]: check for check in ran.json["checks"]}
    assert checks["configuration"]["detail"] == str(config)
    config.write_text("[registry]\nhosts_dirs = 1\n")
    ran = near.run("doctor", "--json", "--config", str(config))
    checks = {check["name"]: check for check in ran.json["checks"]}
    assert (ran.code, checks["configuration"]["status"]) == (5, "fail")
    assert str(config) in checks["configuration"]["detail"]

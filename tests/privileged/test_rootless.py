# SPDX-License-Identifier: Apache-2.0
"""The node of an ordinary user: mounts, containers and deaths in a user namespace."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstread.testing.command import Ran
from firstread.testing.ordinaryuser import OrdinaryUser, missing_tools
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.registry import DockerRegistry

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be less"),
    pytest.mark.skipif(bool(missing_tools()), reason=f"needs {', '.join(missing_tools())}"),
]

Image = tuple[str, PlainImage]

CONTAINER = ("--rm", "--plain-http")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that everybody can reach."""
    with tempfile.TemporaryDirectory(prefix="rootless-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def image(place: Path) -> Image:
    """An image that the user can read, a sector per file."""
    reference = f"oci:{place}/layout:latest"
    return reference, put_plain_image(reference)


@pytest.fixture
def scratch(place: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def user(scratch: Path) -> Iterator[OrdinaryUser]:
    with OrdinaryUser(scratch) as user:
        yield user


def mounted(user: OrdinaryUser, image: Image, name: str = "mnt") -> Path:
    place = user.home / name
    if not place.exists():
        user.own_directory(place)
    ran = user.run("mount", image[0], place)
    assert (ran.code, ran.stderr) == (0, ""), ran
    assert f"seen by: firstread enter ls {place}" in ran.stdout
    return place


def shows(user: OrdinaryUser, place: Path, image: Image, *numbers: int) -> bool:
    """Return whether files of a mount have their content, to a program of the user."""
    ran = user.inside("sha256sum", *(place / f"f{number}" for number in numbers))
    assert ran.code == 0, ran
    digests = [hashlib.sha256(image[1].contents[number]).hexdigest() for number in numbers]
    return [line.split()[0] for line in ran.stdout.splitlines()] == digests


def daemon_of(user: OrdinaryUser) -> list[int]:
    """Return the processes of the daemon: supervisor and fetcher."""
    pid = int((user.run_dir / "daemon.pid").read_text())
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def wait(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_mount_has_true_bytes_and_ends(user: OrdinaryUser, image: Image) -> None:
    place = mounted(user, image)
    assert shows(user, place, image, *range(8))
    assert list(place.iterdir()) == [], "others see it, too"
    status = user.run("status", "--json").json
    assert [mount["device"] for mount in status["mounts"]] == ["fuse"]
    assert status["mounts"][0]["failed_reads"] == 0
    ran = user.run("enter", "sh", "-c", f"id -u; ls {place} | head -n 1; exit 3")
    assert ran == Ran(3, "0\nf0\n", "")
    owners = {path.lstat().st_uid for path in [*user.root.rglob("*"), *user.run_dir.rglob("*")]}
    assert owners == {user.uid}
    assert user.run("umount", place).code == 0
    assert user.inside("ls", place) == Ran(0, "", "")


def test_doctor_says_what_the_user_has(user: OrdinaryUser) -> None:
    ran = user.run("doctor")
    assert ran.code == 0, ran
    assert f"user {user.uid} is root of it, with 65,537 user ids" in ran.stdout
    assert "the device fuse works with" in ran.stdout
    assert list(user.processes()) == []


# -- deaths ----------------------------------------------------------------------------------------


def test_a_mount_outlives_each_process_of_its_daemon(user: OrdinaryUser, image: Image) -> None:
    place = mounted(user, image)
    assert shows(user, place, image, 0)
    supervisor, fetcher = daemon_of(user)
    os.kill(fetcher, signal.SIGKILL)
    assert shows(user, place, image, 1)
    _, fetcher = daemon_of(user)
    os.kill(supervisor, signal.SIGKILL)
    assert shows(user, place, image, 2)
    wait(
        lambda: (user.run_dir / "daemon.pid").read_text() == f"{fetcher}\n"
    )  # it is supervisor now
    assert user.run("umount", place).code == 0


def test_a_mount_outlives_all_of_them_and_the_next_command_serves_it(
    user: OrdinaryUser, image: Image
) -> None:
    place = mounted(user, image)
    assert shows(user, place, image, 0)
    supervisor, fetcher = daemon_of(user)
    os.kill(supervisor, signal.SIGSTOP)  # it would start another fetcher
    for pid in (fetcher, supervisor):
        os.kill(pid, signal.SIGKILL)
    second = mounted(user, image, "second")
    assert shows(user, place, image, 1, 2)
    assert shows(user, second, image, 1, 3)
    ran = user.run("daemon", "--reload")
    assert ran.code == 0, ran
    assert shows(user, second, image, 4)
    assert user.run("status", "--json").json["mounts"][0]["failed_reads"] == 0


def test_commands_find_the_namespace_through_the_daemon(user: OrdinaryUser, image: Image) -> None:
    """As where somebody else has made it: ``podman unshare firstread mount``."""
    place = mounted(user, image)
    keeper, *_ = (user.run_dir / "namespace").read_text().split()
    os.kill(int(keeper), signal.SIGKILL)
    assert user.run("umount", place).code == 0
    assert user.inside("ls", place) == Ran(0, "", "")


def test_a_namespace_that_cannot_be_joined(user: OrdinaryUser, image: Image) -> None:
    """As where a daemon runs in a container that has this run directory."""
    place = mounted(user, image)
    keeper, *_ = (user.run_dir / "namespace").read_text().split()
    os.kill(int(keeper), signal.SIGKILL)
    (user.run_dir / "daemon.pid").write_text("1\n")
    words = f"a daemon runs in {user.run_dir}, and its namespaces cannot be joined"
    ran = user.run("umount", place)
    assert ran.code == 5
    assert words in ran.stderr
    ran = user.run("doctor")
    assert ran.code == 5
    assert f"FAIL  user namespace: {words}\n      try again" in ran.stdout
    assert "ok    device fuse: works" in ran.stdout
    assert "nsenter" not in ran.stdout
    assert ran.stdout.count("firstread daemon --stop") == 2
    assert user.run("daemon", "--stop").code == 0
    assert shows(user, mounted(user, image), image, 0)


def test_commands_at_the_same_time_share_one_namespace(user: OrdinaryUser, image: Image) -> None:
    user.own_directory(user.run_dir)
    # Of a process that has its number by chance: nobody believes it.
    (user.run_dir / "namespace").write_text(f"{os.getpid()} user:[1] mnt:[2]\n")
    places = [user.own_directory(user.home / f"mnt{number}") for number in range(3)]
    running = [user.start("mount", image[0], place) for place in places]
    for command in running:
        out, error = command.communicate(timeout=PATIENCE_S)
        assert (command.returncode, error) == (0, ""), out
    for place in places:
        assert shows(user, place, image, 0)


# -- containers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app(app_registry: DockerRegistry) -> str:
    return f"{app_registry.host}/app"


@pytest.fixture(scope="module")
def runner(place: Path) -> Iterator[OrdinaryUser]:
    (place / "runner").mkdir()
    with OrdinaryUser(place / "runner") as user:
        yield user


def run(user: OrdinaryUser, app: str, script: str, *options: str) -> Ran:
    return user.run("run", *CONTAINER, "--entrypoint=/bin/sh", *options, app, "-c", script)


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_container_runs_its_command(runner: OrdinaryUser, app: str, runtime: str) -> None:
    if not shutil.which(runtime):
        pytest.skip(f"{runtime} is not installed")
    chosen = f"--runtime={runtime}"
    assert runner.run("run", *CONTAINER, chosen, app) == Ran(0, "from the image\n", "")
    script = "id -u; id -g; stat -c %u /srv/empty; exit 7"
    assert run(runner, app, script, chosen) == Ran(7, "1000\n1001\n1000\n", "")
    assert run(runner, app, "id -u", "--privileged", "--user=0", chosen) == Ran(0, "0\n", "")
    assert runner.run("ps", "-a").stdout.count("\n") == 1


def test_a_container_changes_its_own_copy_of_the_tree(runner: OrdinaryUser, app: str) -> None:
    script = (
        "cat /data/0 | sha256sum; rm -r /srv/full && mkdir /srv/full && ls -A /srv/full;"
        " echo new > /etc/passwd; chown 1000:1001 /etc/passwd; stat -c %u:%g /etc/passwd;"
        " mv /data/1 /data/moved; ls /data | wc -l; echo > /dev/null; test -c /dev/zero"
    )
    ran = run(runner, app, script, "--user=0")
    assert ran.code == 0, ran
    digest, owner, count = ran.stdout.split("\n")[0].split()[0], *ran.stdout.split("\n")[1:3]
    assert (len(digest), owner, count) == (64, "1000:1001", "6")
    assert run(runner, app, "cat /srv/full/data", "--user=0").stdout == "of the image\n"


def test_a_detached_container_has_a_log_and_stops(runner: OrdinaryUser, app: str) -> None:
    ran = runner.run(
        *("run", "-d", "--plain-http", "--name=web", "--entrypoint=/bin/sh", "--user=0"),
        *(app, "-c", "echo up; exec sleep 1000"),
    )
    assert ran.code == 0, ran
    wait(lambda: runner.run("logs", "web").stdout == "up\n")
    assert runner.run("exec", "web", "echo", "inside") == Ran(0, "inside\n", "")
    assert runner.run("rm", "--force", "web") == Ran(0, "web\n", "")
    assert runner.run("status", "--json").json["mounts"] == []


def test_a_trace_is_for_root(runner: OrdinaryUser, app: str) -> None:
    ran = runner.run("trace", "--plain-http", "--seconds=1", "-o", "/dev/null", app)
    assert ran.code == 125
    assert "the kernel lets root alone see all reads of a start" in ran.stderr


# -- users with less -------------------------------------------------------------------------------


def test_a_user_without_subordinate_ids_runs_containers_as_root_alone(
    scratch: Path, app: str
) -> None:
    with OrdinaryUser(scratch, ids=False) as user:
        ran = run(user, app, "id -u; tty; ls -ln /srv | grep -c 65534", "--user=0", "-w/")
        assert ran == Ran(0, "0\nnot a tty\n1\n", "")
        ran = run(user, app, "id")
        assert ran.code == 125
        assert "the container needs the uid 1000, and this user namespace has none" in ran.stderr
        assert "usermod --add-subuids" in ran.stderr
        doctor = user.run("doctor")
        assert "with 1 user id: other owners" in doctor.stdout


@pytest.mark.parametrize(
    "arguments", [("mount", "oci:/x:y", "/tmp"), ("run", "oci:/x:y"), ("daemon",), ("enter", "ls")]
)
def test_a_host_without_user_namespaces_is_refused_at_once(
    scratch: Path, arguments: tuple[str, ...]
) -> None:
    with OrdinaryUser(scratch, jailed=True) as user:
        ran = user.run(*arguments)
        assert ran.code == (125 if arguments[0] == "run" else 5)
        assert "an ordinary user needs a user namespace, and this host gives none" in ran.stderr
        assert list(user.processes()) == []


def test_doctor_says_that_there_are_no_user_namespaces(scratch: Path) -> None:
    with OrdinaryUser(scratch, jailed=True) as user:
        ran = user.run("doctor")
        assert ran.code == 5
        assert "FAIL  user namespace: an ordinary user needs" in ran.stdout
        assert "no device works with" in ran.stdout
        assert user.run("status").code == 5

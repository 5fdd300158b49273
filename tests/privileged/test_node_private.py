# SPDX-License-Identifier: Apache-2.0
"""Other users of the machine can neither reach a daemon nor plant anything for it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from firstread.run.capabilities import available
from firstread.testing.command import firstread, program
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage

pytestmark = pytest.mark.privileged

NOBODY = 65534

_CONNECT = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
peer = socket.socket(socket.AF_UNIX)
peer.settimeout(20)
try:
    peer.connect(sys.argv[1])
    peer.sendall(b"GET /status HTTP/1.0\\r\\n\\r\\n")
    print("answer", len(peer.recv(100)))
except (PermissionError, ConnectionError) as exc:
    print(type(exc).__name__)
"""


_LISTEN = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listens", flush=True)
while True:
    peer, _ = listener.accept()
    said = peer.recv(100)
    if said:
        print(said, flush=True)
"""


def connected_as_nobody(socket_path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _CONNECT, socket_path],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return done.stdout.strip()


def start(root: Path, run_dir: Path) -> tuple[int, str]:
    """Run a daemon that must refuse; return its exit code and its message."""
    done = firstread("daemon", "--root", root, "--run-dir", run_dir)
    return done.code, done.stderr


def test_only_root_has_a_way_to_the_socket(daemon: Daemon) -> None:
    control = daemon.run_dir / "control.sock"
    assert stat.S_IMODE(control.stat().st_mode) == 0o600
    for path in (daemon.scratch, *daemon.scratch.parents[:-2]):
        path.chmod(0o755)  # the directories of tests
    assert connected_as_nobody(control) == "PermissionError"  # of the directory
    daemon.run_dir.chmod(0o755)
    assert connected_as_nobody(control) == "PermissionError"  # of the socket
    control.chmod(0o666)
    said = connected_as_nobody(control)  # whatever the modes are
    assert said in ("answer 0", "BrokenPipeError", "ConnectionResetError")
    assert daemon.client.alive()


def test_a_daemon_creates_only_private_files(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    place = daemon.mount(plain[0])
    assert daemon.run("fetch", "--all", place).code == 0
    for top in (daemon.root, daemon.run_dir):
        seen = 0
        for directory, _, names in os.walk(top):
            assert stat.S_IMODE(os.lstat(directory).st_mode) == 0o700, directory
            seen += 1 + len(names)
        assert seen > 2
    assert daemon.run("umount", place).code == 0


@pytest.mark.parametrize("which", ["root", "run"])
def test_a_directory_of_another_user_is_refused(tmp_path: Path, which: str) -> None:
    (tmp_path / which).mkdir(mode=0o700)
    os.chown(tmp_path / which, NOBODY, NOBODY)
    code, said = start(tmp_path / "root", tmp_path / "run")
    assert code == 5
    assert f"{tmp_path / which} belongs to user 65534, not to 0" in said
    assert not list((tmp_path / which).iterdir())


@pytest.mark.parametrize(
    ("verb", "which"),
    [
        *[(verb, which) for verb in ("daemon", "mount", "run") for which in ("root", "run")],
        *[("ps", "root"), ("cache ls", "root"), ("snapshotter", "root"), ("snapshotter", "run")],
    ],
)
@pytest.mark.parametrize(
    ("owner", "mode", "words"),
    [
        (NOBODY, 0o755, "user 65534, the owner of {}, could replace"),
        (0, 0o777, "others can write to {} (mode 0777), and replace"),
    ],
    ids=["of another user", "open to all"],
)
def test_a_directory_below_that_of_another_user_is_refused(
    tmp_path: Path, verb: str, which: str, owner: int, mode: int, words: str
) -> None:
    """Its owner could replace it, however private it is itself."""
    theirs = tmp_path / "theirs"
    (theirs / "between").mkdir(parents=True)
    theirs.chmod(mode)
    os.chown(theirs, owner, owner)
    places = {"root": tmp_path / "root", "run": tmp_path / "run"}
    places[which] = theirs / "between/ours"
    if verb == "cache ls":
        places[which].mkdir(mode=0o700)
        (places[which] / "format.json").write_text("{}")
    before = sorted(theirs.rglob("*"))
    image = ["localhost:1/x"] if verb in ("mount", "run") else []
    where = [str(tmp_path / "at")] if verb == "mount" else []
    options = ["--root", str(places["root"]), "--run-dir", str(places["run"])]
    options += ["--address", str(places["run"] / "x.sock")] if verb == "snapshotter" else []
    done = subprocess.run(  # a daemon that fails to refuse would run for ever
        program(*verb.split(), *options, *image, *where),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == (125 if verb == "run" else 5), done
    assert words.format(theirs) in done.stderr
    assert sorted(theirs.rglob("*")) == before


def test_a_sticky_directory_is_accepted(tmp_path: Path) -> None:
    """In a directory like /tmp only the owner of an entry can rename it."""
    (tmp_path / "all").mkdir()
    (tmp_path / "all").chmod(0o1777)
    with Daemon(tmp_path / "all") as daemon:
        assert daemon.client.alive()


FEW_FILES = ["prlimit", "--nofile=1000:1000"]
NO_MORE = ["setpriv", "--bounding-set=-sys_resource"]


@pytest.mark.skipif("CAP_SYS_RESOURCE" not in available(), reason="needs CAP_SYS_RESOURCE")
def test_a_low_limit_of_open_files_is_raised(tmp_path: Path) -> None:
    """The daemon's own descriptors have numbers of 1000 and more."""
    places = ("--root", tmp_path / "root", "--run-dir", tmp_path / "run")
    done = subprocess.run(
        [*FEW_FILES, *program("mount", "oci:/none:x", tmp_path / "at", *places)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cannot read" in done.stderr  # the daemon says so: it runs
    assert firstread("status", "--run-dir", tmp_path / "run").code == 0
    pid = int((tmp_path / "run/daemon.pid").read_text())
    os.kill(pid, signal.SIGTERM)


def test_too_low_a_limit_of_open_files_is_named(tmp_path: Path) -> None:
    places = ("--root", tmp_path / "root", "--run-dir", tmp_path / "run")
    done = subprocess.run(
        [*NO_MORE, *FEW_FILES, *program("daemon", *places)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5
    assert "a process may open 1000 files here, but a daemon needs 1024" in done.stderr
    assert "LimitNOFILE" in done.stderr


def test_a_socket_of_another_user_is_no_daemon(tmp_path: Path) -> None:
    """A command could send its listener a password."""
    (tmp_path / "run").mkdir()
    path = tmp_path / "run/control.sock"
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(0o755)
    os.chown(tmp_path / "run", NOBODY, NOBODY)
    with subprocess.Popen(
        [sys.executable, "-c", _LISTEN, path], stdout=subprocess.PIPE, text=True
    ) as listening:
        assert listening.stdout
        assert listening.stdout.readline() == "listens\n"
        done = firstread("status", "--run-dir", tmp_path / "run")
        listening.kill()
        assert listening.stdout.read() == ""
    assert done.code == 5
    assert "another user listens there" in done.stderr


def test_a_directory_that_others_can_read_is_repaired(tmp_path: Path) -> None:
    for name in ("root", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)
    with Daemon(tmp_path) as daemon:
        for path in (daemon.root, daemon.run_dir):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert len(daemon.log("had mode 0755: it has 0700 now")) == 2


@pytest.mark.parametrize("name", ["control.sock", "start.lock", "daemon.log", "daemon.pid.new"])
@pytest.mark.parametrize("verb", ["daemon", "login"])
def test_nothing_planted_in_the_run_directory_is_followed(
    tmp_path: Path, name: str, verb: str
) -> None:
    victim, run_dir = tmp_path / "victim", tmp_path / "run"
    victim.write_text("untouched")
    run_dir.mkdir()
    run_dir.chmod(0o1777)
    (run_dir / name).symlink_to(victim)
    who = ["localhost:1", "--username", "me", "--password-stdin"] if verb == "login" else []
    done = subprocess.run(
        program(verb, *who, "--root", tmp_path / "root", "--run-dir", run_dir),
        input="secret\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 5
    assert "others can write to" in done.stderr
    assert "chmod 700" in done.stderr
    assert victim.read_text() == "untouched"


@pytest.mark.parametrize("name", ["images", "mounts", "references", "sectors"])
def test_nothing_planted_below_the_root_is_followed(tmp_path: Path, name: str) -> None:
    victim, root = tmp_path / "victim", tmp_path / "root"
    victim.mkdir()
    root.mkdir(mode=0o700)
    (root / name).symlink_to(victim)
    code, said = start(root, tmp_path / "run")
    assert code == 5
    assert f"{root / name} is a symbolic link" in said
    assert not list(victim.iterdir())


def test_names_of_other_mounts_do_not_confuse_a_daemon(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    """The kernel writes them to mountinfo nearly unchanged, and other users can choose them."""
    odd = tmp_path / "a\vb\rc\x1cd\u2028 - erofs e"
    odd.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", odd], check=True)
    try:
        with Daemon(tmp_path) as daemon:
            place = daemon.mount(plain[0])
            daemon.end_all(signal.SIGKILL)
            daemon.start()
            assert daemon.mounted(place)
            assert output(daemon.reading(place / "f0")) == plain[1].summary(0)
            assert daemon.run("umount", place).code == 0
    finally:
        subprocess.run(["umount", "-l", odd], check=True)

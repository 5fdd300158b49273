# SPDX-License-Identifier: Apache-2.0
"""The processes of a daemon give up rights, and everything that they do still works."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from firstread.daemon.confinement import KEPT, REFUSED, confined
from firstread.erofs.tree import directory
from firstread.erofs.writer import write_erofs
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.registry import PASSWORD, USERNAME, DockerRegistry
from firstread.units import KiB

pytestmark = pytest.mark.privileged

SECTOR = 256 * KiB

_CONFINED = """
import ctypes, errno, json, os, subprocess, sys
from firstread.erofs.tree import directory
from firstread.erofs.writer import write_erofs
from firstread.daemon.confinement import REFUSED, confine, confined
assert confine() == []
libc = ctypes.CDLL(None, use_errno=True)
machine = 0 if os.uname().machine == "x86_64" else 1
outcome = {}
for name, numbers in REFUSED.items():
    if numbers[machine] is not None:
        ctypes.set_errno(0)
        result = libc.syscall(numbers[machine], *[ctypes.c_long(-1)] * 6)
        outcome[name] = result == -1 and errno.errorcode.get(ctypes.get_errno())
status = confined()
child = subprocess.run(
    [sys.executable, "-c", "import sys; print(open('/proc/self/status').read())"],
    capture_output=True, text=True, check=True,
)
print(json.dumps([outcome, status.complete, status.capabilities, child.stdout]))
"""

_LANDLOCK = """
import ctypes, os, struct, sys
from pathlib import Path
from firstread.device.erofsmount import mount_erofs, unmount
from firstread.device.syscalls import prctl
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(444, None, 0, 1) < 1:
    print("no landlock"); sys.exit()
WRITE_FILE = 2
ruleset = libc.syscall(444, struct.pack("=Q", WRITE_FILE), 8, 0)
prctl(38, 1)
assert libc.syscall(446, ruleset, 0) == 0
try:
    mount_erofs(Path(sys.argv[1]), [], Path(sys.argv[2]))
except Exception as exc:
    print(type(exc).__name__, exc)
else:
    unmount(Path(sys.argv[2]))
"""


def run(code: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout


def threads_of(pid: int) -> list[dict[str, str]]:
    """Return the kernel's status of each thread of a process; nothing for one that has ended."""
    found = []
    tasks = Path(f"/proc/{pid}/task")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(tasks):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                lines = (tasks / name / "status").read_text().splitlines()
                found.append(dict(line.split(":\t", 1) for line in lines if ":\t" in line))
    return found


def assert_confined(daemon: Daemon, find: Callable[[], int]) -> None:
    """Check the kernel's own status of each thread of the process that `find` names.

    Another process may take its place meanwhile; the check then looks at that one.
    """
    pid = find()
    while not (threads := threads_of(pid)):
        daemon.wait(lambda ended=pid: find() != ended)  # type: ignore[misc]
        pid = find()
    kept = sum(1 << number for number in KEPT.values())
    for thread in threads:
        for field in ("CapPrm", "CapEff", "CapBnd"):
            assert int(thread[field], 16) & ~kept == 0, (thread, field)
        assert int(thread["CapInh"], 16) == int(thread["CapAmb"], 16) == 0
        assert thread["NoNewPrivs"] == "1"
        assert thread["Seccomp"] == "2"


def test_calls_that_are_refused_and_what_a_child_inherits() -> None:
    outcome, complete, capabilities, child = json.loads(run(_CONFINED))
    assert set(outcome.values()) == {"EPERM"}, outcome
    assert len(outcome) >= len(REFUSED) - 3
    assert complete
    assert set(capabilities) <= set(KEPT)
    assert "NoNewPrivs:\t1" in child
    assert "Seccomp:\t2" in child


def test_an_unconfined_process_is_recognized() -> None:
    """The report can fail: this process has not called `confine`."""
    assert not confined().no_new_privs or not set(confined().capabilities) <= set(KEPT)


def test_both_processes_are_confined_and_serve(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    image, content = plain
    assert_confined(daemon, lambda: daemon.supervisor)
    place = daemon.mount(image)
    assert output(daemon.reading(place / "f0", 0, SECTOR)) == content.summary(0, 0, SECTOR)
    assert_confined(daemon, lambda: daemon.fetcher)
    assert not daemon.log("more privileges than needed")


def test_a_fetcher_in_the_supervisors_place_has_all_it_needs(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    """The new supervisor needs no privilege that the fetcher had given up."""
    image, content = plain
    place = daemon.mount(image)
    for number in range(3):
        old, successor = daemon.supervisor, daemon.fetcher
        os.kill(old, signal.SIGKILL)
        daemon.wait_supervisor(successor)
        daemon.wait(lambda successor=successor: daemon.fetcher != successor)  # type: ignore[misc]
        assert_confined(daemon, lambda: daemon.supervisor)
        assert_confined(daemon, lambda: daemon.fetcher)
        reader = daemon.reading(place / f"f{number}", 0, SECTOR)
        assert output(reader) == content.summary(number, 0, SECTOR)
    other = daemon.mount(image, "other")
    assert daemon.run("umount", other).code == 0
    assert daemon.run("umount", place).code == 0


def test_a_credential_helper_works_and_is_confined_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    helper = tmp_path / "bin/docker-credential-test"
    answer = json.dumps({"Username": USERNAME, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\ncat /proc/self/status >> {tmp_path}/seen\necho '{answer}'\n")
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "test"}))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with DockerRegistry(login=True) as registry:
        image = f"{registry.host}/plain:1"
        content = put_plain_image(image, first=0)
        (tmp_path / "seen").unlink()
        with Daemon(tmp_path) as daemon:
            place = daemon.mount(image)
            reader = daemon.reading(place / "f0", 0, SECTOR)
            assert output(reader) == content.summary(0, 0, SECTOR)
    seen = (tmp_path / "seen").read_text()
    assert "NoNewPrivs:\t1" in seen
    assert "NoNewPrivs:\t0" not in seen


def test_landlock_forbids_mounts(tmp_path: Path) -> None:
    """The reason for ADR 19; if this ever changes, reconsider that decision."""
    with (tmp_path / "metadata").open("wb") as out:
        write_erofs(out, directory(), [])
    (tmp_path / "mnt").mkdir()
    said = run(_LANDLOCK, tmp_path / "metadata", tmp_path / "mnt")
    if said.startswith("no landlock"):
        pytest.skip("this kernel has no Landlock")
    assert "Operation not permitted" in said

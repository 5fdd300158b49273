# SPDX-License-Identifier: Apache-2.0
"""The parts of the host that a run prepares: runtimes, control groups, devices, /etc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from firstread.errors import NodeError, NotFoundError, UsageError
from firstread.readable import is_readable
from firstread.run.cgroups import Cgroups, read_cgroups
from firstread.run.devices import find_devices, host_devices
from firstread.run.etc import write_etc
from firstread.run.monitor import run_detached
from firstread.run.overlay import mounts_below
from firstread.run.parse import DeviceFlag
from firstread.run.runtime import CommandError, Runtime, find_runtime, run_exit_code
from firstread.testing.patience import PATIENCE_S

PLAIN = Cgroups(usable=True, controllers=frozenset(), swap=False)


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_no_such_runtime(tmp_path: Path) -> None:
    with pytest.raises(NodeError) as caught:
        find_runtime("nosuch-runtime", tmp_path, PLAIN)
    assert caught.value.message == "OCI runtime 'nosuch-runtime' is not installed"
    assert caught.value.hint == "install Debian's package crun or runc"
    assert run_exit_code(caught.value) == 125


def test_a_runtime_by_path(tmp_path: Path) -> None:
    path = program(tmp_path / "crun", "exit 0")
    hybrid = Cgroups(usable=True, controllers=frozenset(), swap=False, stray=Path("/stray"))
    runtime = find_runtime(str(path), tmp_path, hybrid)
    assert runtime.program == str(path)
    assert runtime.prefix[0] == "unshare"
    assert runtime.prefix[-1] == "/stray"
    other = program(tmp_path / "other", "exit 0")
    assert find_runtime(str(other), tmp_path, hybrid).prefix == ()


@pytest.mark.parametrize(
    ("message", "kind", "code", "words"),
    [
        (
            "executable file `x` not found in $PATH: No such file or directory",
            *(CommandError, 127, 'exec: "x": executable not found in $PATH'),
        ),
        (
            r"exec: \"x\": executable file not found in $PATH",
            *(CommandError, 127, 'exec: "x": executable not found in $PATH'),
        ),
        ("open executable: Permission denied", CommandError, 126, 'exec: "x": permission denied'),
        (r"exec: \"/x\": permission denied", CommandError, 126, 'exec: "x": permission denied'),
        (
            "error mounting: no such file or directory",
            *(NodeError, 125, "fake cannot create the container: error mounting: no such file"),
        ),
        ("", NodeError, 125, "fake cannot create the container: exit status 1"),
    ],
)
def test_what_a_runtime_says(
    tmp_path: Path, message: str, kind: type[NodeError], code: int, words: str
) -> None:
    line = f'{{"level":"error","msg":"{message}"}}'
    log = tmp_path / "runtime.log"
    fake = program(tmp_path / "fake", f"[ \"$6\" = json ] && cat >{log} <<'E'\n{line}\nE\nexit 1")
    null = os.open(os.devnull, os.O_RDWR)
    with pytest.raises(kind) as caught:
        Runtime(str(fake), tmp_path).create("c1", tmp_path, "x", [null] * 3)
    os.close(null)
    assert caught.value.message.startswith(words)
    assert run_exit_code(caught.value) == code


def test_what_crun_says(tmp_path: Path) -> None:
    line = "error mounting `x`: Invalid argument"
    fake = program(tmp_path / "crun", f"echo '{line}' >{tmp_path}/runtime.log; exit 1")
    with pytest.raises(NodeError) as caught:
        Runtime(str(fake), tmp_path).create("c1", tmp_path, "x", [1, 1, 1])
    words = "crun cannot create the container: error mounting `x`: Invalid argument"
    assert caught.value.message == words


def test_the_runtime_gets_no_sockets_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    Runtime(str(program(tmp_path / "fake", f"env >{tmp_path}/env")), tmp_path).delete("c1")
    assert "LISTEN_FDS" not in (tmp_path / "env").read_text()
    assert "NOTIFY_SOCKET" not in (tmp_path / "env").read_text()


def test_unified_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    assert read_cgroups(tmp_path) == Cgroups(True, frozenset({"cpu", "memory", "pids"}), swap=True)


def test_legacy_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    assert read_cgroups(tmp_path) == Cgroups(True, frozenset({"memory"}), swap=False)
    (tmp_path / "memory/memory.memsw.limit_in_bytes").touch()
    assert read_cgroups(tmp_path).swap


def test_hybrid_hierarchy(tmp_path: Path) -> None:
    for name in ("pids", "unified"):
        (tmp_path / name).mkdir()
    (tmp_path / "unified/cgroup.controllers").write_text("")
    assert read_cgroups(tmp_path).prefix == ()
    (tmp_path / "unified/cgroup.controllers").write_text("hugetlb")
    assert read_cgroups(tmp_path).stray == tmp_path / "unified"


def test_no_control_groups(tmp_path: Path) -> None:
    assert read_cgroups(tmp_path).able == frozenset()
    assert not read_cgroups(tmp_path).usable
    assert not read_cgroups(tmp_path / "none").usable


def test_devices_of_the_host() -> None:
    (null,) = find_devices(DeviceFlag("/dev/null", "/dev/zilch", "r"))
    assert (null.path, null.kind, null.major, null.minor) == ("/dev/zilch", "c", 1, 3)
    assert null.rule()["access"] == "r"
    found = {device.path for device in host_devices()}
    assert "/dev/null" in found
    assert not any(path.startswith(("/dev/pts", "/dev/shm")) for path in found)


def test_devices_that_are_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match=str(path)):
            find_devices(DeviceFlag(str(path), "/dev/x", "rwm"))


def test_devices_of_a_directory() -> None:
    found = find_devices(DeviceFlag("/dev/", "/host", "r"))
    (null,) = (device for device in found if device.minor == 3 and device.major == 1)
    assert (null.path, null.access) == ("/host/null", "r")
    assert len(found) == len(list(host_devices()))


def test_etc(tmp_path: Path) -> None:
    host, made = tmp_path / "host", tmp_path / "made"
    for directory in (host, made):
        directory.mkdir()
    (host / "hosts").write_text("10.0.0.1 db")
    (host / "resolv.conf").write_text("nameserver 10.0.0.2\n")
    extra = [("x", "1.2.3.4")]
    mounts = write_etc(made, hostname="h", network="host", extra_hosts=extra, host_etc=host)
    assert [mount.destination for mount in mounts] == [
        *("/etc/hosts", "/etc/hostname", "/etc/resolv.conf"),
    ]
    assert (made / "hosts").read_text() == "10.0.0.1 db\n1.2.3.4\tx\n"
    assert (made / "hostname").read_text() == "h\n"
    assert (made / "resolv.conf").read_text() == "nameserver 10.0.0.2\n"
    write_etc(made, hostname="h", network="none", host_etc=tmp_path / "none")
    assert (made / "hosts").read_text().startswith("127.0.0.1\tlocalhost\n")


def test_mounts_below(tmp_path: Path) -> None:
    assert mounts_below(tmp_path) == []
    assert b"/dev/pts" in mounts_below(Path("/dev"))
    assert b"/dev/pts" not in mounts_below(Path("/dev/pts"))


def test_detached_body_outlives_the_call(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()

    def body(report: object) -> None:
        assert callable(report)
        streams = [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2, write_end)]
        report(f"{os.getppid()} {os.getcwd()} {set(streams)}".encode())
        (tmp_path / "after").write_text("reported")

    assert run_detached(body).endswith(b" / {'/dev/null'}")
    os.close(write_end)
    assert os.read(read_end, 1) == b""  # the monitor holds no copy of the other end
    os.close(read_end)


@pytest.mark.parametrize(
    "error",
    [CommandError("no", exit_code=127), NotFoundError("gone", hint="look"), UsageError("bad")],
)
def test_detached_errors_arrive(error: UsageError) -> None:
    def body(_report: object) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run_detached(body)
    assert (caught.value.message, caught.value.hint) == (error.message, error.hint)
    assert caught.value.exit_code == error.exit_code


def test_a_failure_after_the_report_is_written_nowhere(tmp_path: Path) -> None:
    """Least of all into the file that has the number of the report by then."""

    def body(report: Callable[[bytes], None]) -> None:
        os.open(tmp_path, os.O_RDONLY)  # the number of the other end
        report(b"%d" % os.getpid())
        os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
        raise NodeError("too late")

    monitor = int(run_detached(body))
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(monitor)
        assert is_readable(pidfd, PATIENCE_S)
        os.close(pidfd)
    assert (tmp_path / "file").read_bytes() == b""


def test_detached_death() -> None:
    with pytest.raises(NodeError, match="died before it started"):
        run_detached(lambda _report: os._exit(3))

# SPDX-License-Identifier: Apache-2.0
"""The doctor's verdict on a healthy node, and on sick ones."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from firstread.doctor import running
from firstread.run.runtime import _PATH, KNOWN
from firstread.testing.command import program
from firstread.testing.daemon import Daemon
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage
from firstread.testing.shortage import small_filesystem
from firstread.units import MiB

pytestmark = pytest.mark.privileged


def doctor(daemon: Daemon, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code, and the checks by name."""
    ran = daemon.run("doctor", "--json", *arguments)
    checks = {check["name"]: check for check in ran.json["checks"]}
    assert len(checks) == len(ran.json["checks"])
    return ran.code, checks


def test_a_healthy_node(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    place = daemon.mount(plain[0])
    code, checks = doctor(daemon, plain[0])
    assert code == 0
    assert {check["status"] for check in checks.values()} <= {"ok", "warn"}
    assert "1 mount" in checks["daemon"]["detail"]
    assert checks["daemon's privileges"]["status"] == "ok"
    assert checks["image"]["status"] == checks["range requests"]["status"] == "ok"
    text = daemon.run("doctor").stdout.splitlines()
    assert text[-1].startswith(f"the device fanotify works with {daemon.root}; 0 of ")
    assert all(line[:6] in ("ok    ", "warn  ", "      ") for line in text[:-1])
    assert daemon.run("umount", place).code == 0


def test_a_fetcher_that_dies_and_a_mount_that_fails(daemon: Daemon, tmp_path: Path) -> None:
    first = daemon.fetcher
    os.kill(first, signal.SIGKILL)
    daemon.wait(lambda: daemon.fetcher != first)
    code, checks = doctor(daemon)
    assert code == 0
    assert checks["daemon"]["status"] == "warn"
    assert "restarted 1 times" in checks["daemon"]["detail"]
    assert "log" in checks["daemon"]["fix"]


def test_a_daemon_that_does_not_answer(daemon: Daemon) -> None:
    for path in (daemon.run_dir, daemon.run_dir / "control.sock"):
        path.chmod(0o777)
    code, checks = doctor(daemon)
    assert code == 5
    assert checks["run directory"]["status"] == "fail"
    assert "chmod 700" in checks["run directory"]["fix"]


def test_a_daemon_that_hangs(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "PATIENCE_S", 1.0)
    pids = (daemon.supervisor, daemon.fetcher)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        code, checks = doctor(daemon)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert code == 5
    assert checks["daemon"]["status"] == "fail"
    assert "no answer within" in checks["daemon"]["detail"]
    assert "restart it" in checks["daemon"]["fix"]
    assert {name for name, check in checks.items() if not check["ok"]} == {"daemon"}


def test_a_dead_daemon(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    place = daemon.mount(plain[0])
    daemon.end_all(signal.SIGKILL)
    code, checks = doctor(daemon)
    assert code == 5
    assert "1 mount waits for one" in checks["daemon"]["detail"]
    assert "start it" in checks["daemon"]["fix"]
    daemon.start()
    assert daemon.run("umount", place).code == 0
    daemon.end_all(signal.SIGKILL)
    code, checks = doctor(daemon)
    assert (code, checks["daemon"]["fix"]) == (0, None)
    assert "none runs" in checks["daemon"]["detail"]


def test_without_a_runtime(tmp_path: Path) -> None:
    """Runs in a mount namespace where crun and runc are empty files that nobody can execute."""
    nothing = tmp_path / "nothing"
    nothing.write_bytes(b"")
    programs = {shutil.which(name, path=f"{os.environ['PATH']}:{_PATH}") for name in KNOWN} - {None}
    hide = "".join(f"mount --bind {nothing} {path} && " for path in programs)
    places = ("--root", tmp_path / "root", "--run-dir", tmp_path / "run")
    doctor_ = shlex.join(map(str, program("doctor", "--json", *places)))
    command = ["unshare", "--mount", "sh", "-c", f"{hide}exec {doctor_}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["container runtime"]["status"] == "warn"
    assert "can be mounted, but not run" in checks["container runtime"]["detail"]
    assert "crun or runc" in checks["container runtime"]["fix"]


def test_a_full_disk(tmp_path: Path) -> None:
    with small_filesystem(tmp_path, "-O", "^has_journal", size=16 * MiB) as place:
        (place / "root").mkdir(mode=0o700)
        command = program("doctor", "--json", "--root", place / "root", "--run-dir", place / "run")
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 5, done
    assert checks["space for sectors"]["status"] == "fail"
    assert "free some space" in checks["space for sectors"]["fix"]


def test_few_open_files(tmp_path: Path) -> None:
    places = ("--root", tmp_path / "root", "--run-dir", tmp_path / "run")
    command = ["prlimit", "--nofile=1024:1024", *program("doctor", "--json", *places)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, done
    assert checks["open files of a process"]["status"] == "warn"
    assert "LimitNOFILE" in checks["open files of a process"]["fix"]

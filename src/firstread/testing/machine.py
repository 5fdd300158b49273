# SPDX-License-Identifier: Apache-2.0
"""A machine to run containers on: a root and a run directory of its own, and a daemon for them.

Owns the ``firstread`` command as its users type it, in processes of its own, and the look for what
it leaves behind. Invariant: when the context ends no container, mount or process of the machine is
left, whatever a test did.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from firstread.control.client import Client
from firstread.daemon.anchor import anchors
from firstread.device.syscalls import MNT_DETACH, umount2
from firstread.run.overlay import mounts_below
from firstread.testing.command import program
from firstread.testing.patience import PATIENCE_S

_RUN_FILES = {"control.sock", "daemon.pid", "daemon.log", "start.lock", "images", "supervisor.sock"}


class Machine:
    """A context manager.

    Args:
        directory: for everything of it; on ext4, xfs or btrfs.
    """

    def __init__(self, directory: Path) -> None:
        self.root, self.run_dir = directory / "root", directory / "run"
        self.client = Client(self.run_dir)
        self.env = os.environ | {
            "FIRSTREAD_ROOT": str(self.root),
            "FIRSTREAD_RUN_DIR": str(self.run_dir),
        }
        self._directory = directory

    def __enter__(self) -> Self:
        self._groups = set(_control_groups())
        return self

    def __exit__(self, *_: object) -> None:
        self.remove_all()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for point in mounts_below(self._directory):
            umount2(point, MNT_DETACH)

    # -- the command ---------------------------------------------------------------------------

    def argv(self, *arguments: str) -> list[str]:
        """Return the command line of ``firstread ARGUMENTS``; it takes `env`."""
        return program(*arguments)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start ``firstread ARGUMENTS``; output goes to pipes unless `options` say otherwise."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(program(*arguments), text=True, env=self.env, **options)

    def call(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``firstread ARGUMENTS`` to its end."""
        return subprocess.run(
            program(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            env=self.env,
            timeout=PATIENCE_S,
            check=False,
        )

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``firstread run ARGUMENTS`` to its end."""
        return self.call("run", *arguments, stdin=stdin)

    def output(self, *arguments: str) -> str:
        """Return what ``firstread ARGUMENTS`` prints, which must succeed and not complain."""
        done = self.call(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def containers(self) -> list[str]:
        """Return the ids of all containers."""
        return self.output("ps", "-aq").split()

    def remove_all(self) -> None:
        """Remove all containers; some may go by themselves meanwhile.

        Raises:
            AssertionError: one cannot be removed.
        """
        for _ in range(3):
            found = self.containers() if self.root.exists() else []
            if not found:
                return
            done = self.call("rm", "-f", *found)
        raise AssertionError(done.stderr)

    # -- the daemon ----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return the document of ``firstread status --json``."""
        status: dict[str, Any] = self.client.get("/status")
        return status

    def kill_daemon(self) -> None:
        """Kill supervisor and fetcher at the same time, as nobody could expect it."""
        status = self.status()
        both = (status["supervisor"]["pid"], status["fetcher"]["pid"])
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in both:
                os.kill(pid, number)
        until(lambda: not self.client.alive() and not set(both) & set(self.processes()))

    # -- what is left --------------------------------------------------------------------------

    def mounts(self) -> list[str]:
        """Return the mounts of the machine, below its directory."""
        return [os.fsdecode(os.path.relpath(p, os.fsencode(self._directory))) for p in self._all()]

    def _all(self) -> list[bytes]:
        return mounts_below(self._directory)

    def processes(self) -> list[int]:
        """Return the processes that were started for the machine and still run."""
        mark = f"FIRSTREAD_ROOT={self.root}\0".encode()
        found = []
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdecimal() and mark in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(int(name))
        return found

    def left_over(self) -> dict[str, list[str]]:
        """Return what is left of containers, by kind; empty if nothing is.

        What ends by itself is given some seconds: mounts in use are detached and go a bit later.
        """
        deadline = time.monotonic() + 5
        while (found := self._left_over()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def _left_over(self) -> dict[str, list[str]]:
        daemon: set[int] = set()
        holders: list[str] = []
        if self.client.alive():
            status = self.status()
            daemon = {status["supervisor"]["pid"], status["fetcher"]["pid"]}
            daemon.update(anchors(str(self.root)))
            holders = [holder for mount in status["mounts"] for holder in mount["holders"]]
        state = self.root / "containers"
        found = {
            "mounts": self.mounts(),
            "holders": holders,
            "table": [path.name for path in (self.root / "mounts").glob("*")],
            "processes": [str(pid) for pid in self.processes() if pid not in daemon],
            "containers": [path.name for path in (state / "containers").glob("[!.]*")],
            "runtime": [path.name for path in (state / "runtime").glob("*")],
            "control groups": sorted(set(_control_groups()) - self._groups),
            "run": [p.name for p in self.run_dir.glob("*") if p.name not in _RUN_FILES],
            "shared": [path.name for path in (self.run_dir / "images").glob("*")],
        }
        return {kind: names for kind, names in found.items() if names}


def _control_groups() -> Iterator[str]:
    """Yield the control groups of containers that have no process in them."""
    for pattern in ("firstread/*", "*/firstread/*"):
        for group in Path("/sys/fs/cgroup").glob(pattern):
            with contextlib.suppress(OSError):
                if group.is_dir() and not (group / "cgroup.procs").read_text():
                    yield str(group)


def until(condition: Callable[[], object], seconds: float = 15) -> None:
    """Wait until `condition` is true.

    Raises:
        AssertionError: it is not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)

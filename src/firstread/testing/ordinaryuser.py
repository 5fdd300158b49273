# SPDX-License-Identifier: Apache-2.0
"""An ordinary user of this machine, for one test: its directories, and its ``firstread`` commands.

Owns a user id that nobody else has, and a login: each command runs in a mount namespace of its own
with other user databases, so that the machine's own stay as they are. Invariant: when the context
ends, no process of the user is left.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import firstread
from firstread.testing.command import Ran, program, ran
from firstread.testing.patience import PATIENCE_S

NAME: Final = "reader"
IDS: Final = 65536  # subordinate ones
TOOLS: Final = ("setpriv", "unshare", "newuidmap", "newgidmap")  # util-linux, uidmap
_FIRST: Final = 1_200_000
_FIRST_SUBORDINATE: Final = 300_000_000
_USERS: Final = 20_000  # at a time, by the number of the process that makes them
_BETWEEN: Final = 1009  # users of one process
_numbers = itertools.count()
_DATABASES: Final = ("passwd", "group", "subuid", "subgid")


class OrdinaryUser:
    """A context manager.

    Args:
        scratch: an empty directory that everybody can reach.
        ids: the user has subordinate ids.
        jailed: it is in a chroot(2), where the kernel gives no user namespaces.
    """

    def __init__(self, scratch: Path, *, ids: bool = True, jailed: bool = False) -> None:
        number = (os.getpid() + next(_numbers) * _BETWEEN) % _USERS
        self.uid = _FIRST + number
        self.first = _FIRST_SUBORDINATE + number * IDS
        self.scratch, self._jailed = scratch, jailed
        self.home, self.runtime = scratch / "home", scratch / "runtime"
        self.root = self.home / ".local/share/firstread"
        self.run_dir = self.runtime / "firstread"
        self._ids = ids

    def __enter__(self) -> Self:
        for directory in (self.home, self.runtime):
            self.own_directory(directory)
        databases = self.scratch / "etc"
        databases.mkdir()
        lines = {
            "passwd": f"{NAME}:x:{self.uid}:{self.uid}::{self.home}:/bin/sh\n",
            "group": f"{NAME}:x:{self.uid}:\n",
            "subuid": f"{NAME}:{self.first}:{IDS}\n" if self._ids else "",
            "subgid": f"{NAME}:{self.first}:{IDS}\n" if self._ids else "",
        }
        for name, line in lines.items():
            own = Path("/etc", name)
            (databases / name).write_text((own.read_text() if own.exists() else "") + line)
        return self

    def __exit__(self, *_: object) -> None:
        until = time.monotonic() + PATIENCE_S
        while found := list(self.processes()):
            assert time.monotonic() < until, f"processes {found} do not end"
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def own_directory(self, path: Path) -> Path:
        """Make a directory of the user."""
        path.mkdir(mode=0o700)
        os.chown(path, self.uid, self.uid)
        return path

    def processes(self) -> Iterator[int]:
        """Yield the processes of the user, those of its containers included."""
        theirs = range(self.first, self.first + IDS)
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{name}/status").read_text().splitlines()
                fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
                uid = int(fields["Uid"].split()[0])
                if (uid == self.uid or uid in theirs) and not fields["State"].startswith("Z"):
                    yield int(name)

    # -- commands ------------------------------------------------------------------------------

    def command(self, *words: str | os.PathLike[str]) -> list[str]:
        """Return the command line that runs a program as the user; root executes it."""
        login = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        jail = []
        if self._jailed:
            place = self.scratch / "jail"
            login = ["chroot", str(place), *login]
            jail = [f"mkdir -p {place}; mount --rbind / {place}"]
        environment = {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "PATH": os.environ["PATH"],
        }
        settings = (f"{name}={value}" for name, value in environment.items())
        last = shlex.join(map(str, ("exec", *login, "env", "-i", *settings, *words)))
        script = "\n".join(("set -e", *self._binds(), *jail, last))
        return ["unshare", "--mount", "--propagation=private", "sh", "-c", script]

    def run(self, *arguments: str | os.PathLike[str], stdin: str = "") -> Ran:
        """Run ``firstread ARGUMENTS`` as the user."""
        return self.call(*program(*arguments), stdin=stdin)

    def call(self, *words: str | os.PathLike[str], stdin: str = "") -> Ran:
        """Run a program as the user."""
        return ran(self.command(*words), stdin=stdin, cwd="/")

    def inside(self, *words: str | os.PathLike[str]) -> Ran:
        """Run a program where the user's mounts are seen, quicker than ``firstread enter``."""
        keeper = (self.run_dir / "namespace").read_text().split()[0]
        alive = Path(f"/proc/{keeper}/ns/mnt").exists()
        pid = keeper if alive else (self.run_dir / "daemon.pid").read_text().strip()
        return ran(["nsenter", f"--target={pid}", "--user", "--mount", "--", *words])

    def start(self, *arguments: str | os.PathLike[str], **options: Any) -> subprocess.Popen[str]:
        """Start ``firstread ARGUMENTS`` as the user."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": "/"}
        return subprocess.Popen(self.command(*program(*arguments)), **{**pipes, **options})

    def _binds(self) -> Iterator[str]:
        """Yield what gives the user other databases, /dev/fuse, and a Python that it can reach."""
        devices = f"{self.scratch}/etc/dev"  # as udev would make it; not every machine has udev
        yield f"mkdir -p {devices}; mount -t tmpfs none {devices}"
        yield f"mknod -m 666 {devices}/fuse c 10 229; mount --bind {devices}/fuse /dev/fuse"
        for name in _DATABASES:
            if Path("/etc", name).exists():
                yield f"mount --bind {self.scratch}/etc/{name} /etc/{name}"
        hidden: dict[Path, list[Path]] = {}
        for path in (Path(sys.base_prefix), Path(sys.prefix), Path(firstread.__file__).parents[2]):
            for above in reversed(path.resolve().parents):
                if not above.stat().st_mode & 0o001:
                    hidden.setdefault(above, []).append(path.resolve())
                    break
        for above, paths in hidden.items():
            spots = [f"{self.scratch}/etc/{number}" for number in range(len(paths))]
            for path, spot in zip(paths, spots, strict=True):
                yield f"mkdir -p {spot}; mount --bind {path} {spot}"
            yield f"mount -t tmpfs -o mode=755 none {above}"
            for path, spot in zip(paths, spots, strict=True):
                yield f"mkdir -p {path}; mount --move {spot} {path}"


def missing_tools() -> list[str]:
    """Return the programs of `TOOLS` that are not installed."""
    return [tool for tool in TOOLS if not shutil.which(tool)]

# SPDX-License-Identifier: Apache-2.0
"""A clean Debian system in a directory, with mount and process namespaces of its own.

Owns its making by debootstrap from the host's mirror, which happens once per suite, and its end:
with the first process in the namespaces every other one ends, and every mount goes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benchmarks.images.root import LENT, debian_mirror, lend

from firstread.errors import NodeError

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT_S: Final = 900.0

_ENTER: Final = """
mount --bind "$ROOT" "$ROOT" && cd "$ROOT"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount --bind "$LENT" tmp
mkdir -p run/old run/lock && touch etc/resolv.conf
mount --bind /etc/resolv.conf etc/resolv.conf
pivot_root . run/old
exec chroot . /bin/sh -c 'umount -l /run/old && echo ready && exec sleep infinity'
"""


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code, and what it printed to either stream."""

    code: int
    output: str


class CleanRoot:
    """A system that runs while the context lasts.

    Args:
        suite: of Debian.
        cache: directory that keeps the roots of suites; on a real file system.
    """

    def __init__(self, suite: str, cache: Path) -> None:
        self.suite = suite
        made = _base(suite, cache)
        self._scratch = Path(tempfile.mkdtemp(prefix=".root-", dir=cache))
        self.top = self._scratch / "root"
        subprocess.run(("cp", "-a", "--reflink=auto", made, self.top), check=True)
        lend(self._scratch)
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc"]
        self._first = subprocess.Popen(
            [*command, _ENTER],
            env=os.environ | {"ROOT": str(self.top), "LENT": str(self._scratch / "tmp")},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._first.stdout is not None
        if self._first.stdout.readline() != "ready\n":
            self.close()
            raise NodeError(f"cannot enter a root of {suite}")
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children")
        self._inside = int(children.read_text())

    def run(self, *command: str, env: dict[str, str] | None = None) -> Done:
        """Run a command as root of this system; wait for it."""
        lent = {name: value for name, value in os.environ.items() if LENT.fullmatch(name)}
        own = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "APT_CONFIG": "/tmp/apt.conf"}
        done = subprocess.run(
            self._entered(command),
            env=lent | own | {"DEBIAN_FRONTEND": "noninteractive"} | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
        return Done(done.returncode, done.stdout)

    def close(self) -> None:
        self._first.kill()
        self._first.communicate()
        shutil.rmtree(self._scratch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _entered(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self._inside}", "-m", "-p", "-r", "-w", "--", *command]


def _base(suite: str, cache: Path) -> Path:
    """Return the pristine root of a suite, made by debootstrap if the cache lacks it."""
    place = cache / f"root-{suite}"
    if place.exists():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        top = Path(scratch, "root")
        done = subprocess.run(
            ("debootstrap", "--variant=minbase", suite, top, debian_mirror()),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise NodeError(f"debootstrap of {suite} failed: {done.stdout[-1000:]}")
        for package in top.glob("var/cache/apt/archives/*.deb"):
            package.unlink()
        top.rename(place)
    return place

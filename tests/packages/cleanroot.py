# SPDX-License-Identifier: Apache-2.0
"""A clean system in a directory, with mount and process namespaces of its own.

Owns its end: with the first process in the namespaces every other one ends, and every mount goes.
debootstrap makes a Debian system from the host's mirror, once per suite.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from benchmarks.images.root import LENT, debian_mirror, lend
from tools.release.programs import run

from firstread.errors import NodeError

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT_S: Final = 900.0

_ENTER: Final = """
mount --bind "$ROOT" "$ROOT" && cd "$ROOT"
mount -t proc proc proc
# An emulated system has its own: the registration of qemu lasts as long as a mount of it.
mount --bind /proc/sys/fs/binfmt_misc proc/sys/fs/binfmt_misc
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
    """A copy of a system that runs while the context lasts.

    Args:
        made: its root directory; on a real file system.
        emulated: whether its programs are those of arm64.
    """

    def __init__(self, made: Path, *, emulated: bool = False) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix=".root-", dir=made.parent))
        self.top = self._scratch / "root"
        subprocess.run(("cp", "-a", "--reflink=auto", made, self.top), check=True)
        lend(self._scratch)
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc"]
        if emulated:
            command = [sys.executable, "-m", "tools.release.emulation", *command]
        self._joined = ["-m", "-p", "-r", "-w", *(["-U", "--preserve-credentials"] * emulated)]
        self._first = subprocess.Popen(
            [*command, _ENTER],
            env=os.environ | {"ROOT": str(self.top), "LENT": str(self._scratch / "tmp")},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._first.stdout is not None
        if self._first.stdout.readline() != "ready\n":
            self.close()
            raise NodeError(f"cannot enter a copy of {made}")
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children")
        self._inside = int(children.read_text())

    def run(
        self, *command: str, env: dict[str, str] | None = None, timeout_s: float = TIMEOUT_S
    ) -> Done:
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
            timeout=timeout_s,
            check=False,
        )
        return Done(done.returncode, done.stdout)

    def close(self) -> None:
        self._first.kill()
        self._first.communicate()
        shutil.rmtree(self._scratch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entered(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self._inside}", *self._joined, "--", *command]


def debian(suite: str, cache: Path) -> Path:
    """Return the root directory of a suite, made by debootstrap if the cache lacks it.

    Raises:
        NodeError: debootstrap failed.
    """
    place = cache / f"root-{suite}"
    if place.exists():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        top = Path(scratch, "root")
        run("debootstrap", "--variant=minbase", suite, top, debian_mirror())
        for package in top.glob("var/cache/apt/archives/*.deb"):
            package.unlink()
        top.rename(place)
    return place

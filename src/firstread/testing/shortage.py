# SPDX-License-Identifier: Apache-2.0
"""A machine in trouble: too few descriptors, a file that cannot be read, a disk with few inodes.

Owns errors of a machine that pass, made real: nothing here is a stand-in. Invariant: what a context
took away is there again when it ends.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from firstread.testing.patience import PATIENCE_S
from firstread.units import MiB

_UNREADABLE = "/proc/self/mem"  # its first bytes are EIO, of any process


@contextlib.contextmanager
def few_descriptors(pid: int, spare: int = 0) -> Iterator[None]:
    """Let a process open no more than `spare` further files; others get EMFILE."""
    _, hard = before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    fds = Path(f"/proc/{pid}/fd")
    names = os.listdir(fds)  # of this process, with the one that reads them
    used = {int(name) for name in names if os.path.lexists(fds / name)}
    limit = next(islice((fd for fd in count() if fd not in used), spare, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Have a file answer every read with EIO, as a disk does that has trouble."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    path.symlink_to(_UNREADABLE)
    try:
        yield
    finally:
        aside.replace(path)


@contextlib.contextmanager
def small_filesystem(scratch: Path, *options: str, size: int = 64 * MiB) -> Iterator[Path]:
    """Mount an ext4 file system of its own below `scratch`; give its mount point.

    Args:
        scratch: directory.
        options: more of mkfs.ext4, such as ``-N`` and a number of inodes.
        size: bytes.
    """
    image, place = scratch / "small.img", scratch / "small"
    with image.open("wb") as file:
        file.truncate(size)
    make = ["mkfs.ext4", "-q", "-m", "0", *options]
    subprocess.run([*make, image], check=True, timeout=PATIENCE_S)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True, timeout=PATIENCE_S)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True, timeout=PATIENCE_S)

# SPDX-License-Identifier: Apache-2.0
"""A machine in trouble: few descriptors, no threads, an unreadable file, a disk with few inodes.

Causes real, temporary errors of a machine; nothing here is a stand-in. Invariant: the end of a
context restores what the context took away.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from firstread.testing.patience import PATIENCE_S
from firstread.units import MiB

_NO_STACK = 1 << 47  # bytes: there are no such addresses, so pthread_create(3) gives EAGAIN
_UNREADABLE = "/proc/self/mem"  # reading its first bytes gives EIO in any process


@contextlib.contextmanager
def few_descriptors(pid: int, spare: int = 0) -> Iterator[None]:
    """Let a process open only `spare` more files; then it gets EMFILE."""
    _, hard = before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    fds = Path(f"/proc/{pid}/fd")
    names = os.listdir(fds)  # for this process, including the one that lists them
    used = {int(name) for name in names if os.path.lexists(fds / name)}
    limit = next(islice((fd for fd in count() if fd not in used), spare, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def no_threads() -> Iterator[None]:
    """Let this process start no thread, as at the limit of its control group."""
    before = threading.stack_size(_NO_STACK)
    try:
        yield
    finally:
        threading.stack_size(before)


@contextlib.contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Make a file answer every read with EIO, like a failing disk."""
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

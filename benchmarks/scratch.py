# SPDX-License-Identifier: Apache-2.0
"""Working directories of benchmarks: on a disk, removed afterwards with all mounts in them.

Facts about ext4 without a journal (Linux 6.18, fs/ext4/ialloc.c: recently_deleted):

* It does not use an inode again for one to six minutes, and looks at each of them again for every
  new file near by. Where a node was removed, a file of the next one took 0.5 ms of CPU, not 9 us.
* Below a directory with the attribute T, each new directory lies far from the others.
* Where nothing was removed, nothing is slow: hence `set_aside`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.images.build import default_cache
from firstread.trees import remove_tree


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yield an empty directory beside the images, which are on neither tmpfs nor overlayfs.

    A directory in it that takes the place of one just removed should have another name. Where many
    come one after the other, `set_aside` is for those that are done.
    """
    base = default_cache().parent
    base.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="bench-", dir=base)
    subprocess.run(("chattr", "+T", scratch), stderr=subprocess.DEVNULL, check=False)
    try:
        yield Path(scratch)
    finally:
        for mountpoint in _mounts_below(scratch):
            subprocess.run(("umount", "--lazy", mountpoint), check=False)
        remove_tree(scratch)


def set_aside(directory: Path) -> None:
    """Empty the files of a directory in a scratch directory; they go with that."""
    for place, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(path := os.path.join(place, name))
                if stat.S_ISREG(status.st_mode) and status.st_size:
                    os.truncate(path, 0)


def _mounts_below(directory: str) -> list[str]:
    """Return mount points, the innermost first."""
    command = ("findmnt", "--raw", "--noheadings", "--output", "TARGET")
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [place for place in reversed(listed) if place.startswith(f"{directory}/")]

# SPDX-License-Identifier: Apache-2.0
"""The check between an image from the network and the kernel that mounts it.

Owns the question whether an image has the form that `firstread.erofs.writer` gives it. All its
inodes together answer that quickly; one after the other they say what is wrong.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import platform
import stat
from collections.abc import Callable, Set
from typing import NamedTuple

from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.format import CHUNK_BASED, CHUNK_INDEX_SIZE
from firstread.erofs.indexruns import IndexRuns, pack_run
from firstread.erofs.reader import scan

log = logging.getLogger("image")

FEW = 1_000  # inodes, which take one after the other as long as the columns of all: 4 ms
V2 = frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"})
"""What x86-64-v2 has beside x86-64, as ``/proc/cpuinfo`` calls it (System V ABI, AMD64, 3.1.1)."""


class Checked(NamedTuple):
    """Facts about a whole tree, which its check yields.

    Args:
        has_xattrs: any inode has extended attributes.
        runs: of the chunk indexes.
    """

    has_xattrs: bool
    runs: IndexRuns


def validate(image: ErofsImage) -> Checked:
    """Check the whole tree of `image`, before a mount.

    Raises:
        ImageError: a part of it does not have the form that firstread writes.
    """
    found = None
    if image.superblock.inodes > FEW:
        try:
            vouch = load()
        except (OSError, ImportError) as exc:  # too many files are open, for example
            log.warning("an image is checked one inode after the other: %s", exc)
        else:
            found = vouch(image) if vouch is not None else None
    return walk(image) if found is None else Checked(*found)


@functools.cache
def load() -> Callable[[ErofsImage], tuple[bool, IndexRuns] | None] | None:
    """Return `firstread.erofs.columns.vouch`, which few processes have: 0.07 s, 15 MB.

    None on a processor older than x86-64-v2, such as qemu's default: numpy's wheels end a process
    there with SIGILL (tried with numpy 2.4).

    Raises:
        OSError, ImportError: it cannot be loaded now; a later attempt may succeed.
    """
    if not _cpu_flags() >= V2:
        log.info("images are checked one inode after the other: this CPU is older than x86-64-v2")
        return None
    from firstread.erofs.columns import vouch  # noqa: PLC0415 - as said

    return vouch


def _cpu_flags() -> Set[str]:
    """Return what the kernel says that the first processor can do; `V2` if it is no x86."""
    if platform.machine() != "x86_64":
        return V2
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("flags"):
                return {*line.partition(":")[2].split()}
    return frozenset()


def walk(image: ErofsImage) -> Checked:
    """`validate`, one inode after the other: five times as long, and says what is wrong.

    Raises:
        ImageError: as `validate`.
    """
    has_xattrs, runs = False, list[int]()
    for inode, _ in scan(image):
        if inode.xattr_size:
            image.xattrs(inode)
            has_xattrs = True
        if inode.layout == CHUNK_BASED:
            image.chunks(inode)
            runs.append(pack_run(inode.indexes_offset, inode.stored // CHUNK_INDEX_SIZE))
        elif stat.S_ISLNK(inode.mode):
            image.readlink(inode)
    return Checked(has_xattrs, IndexRuns(sorted(runs)))

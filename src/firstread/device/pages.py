# SPDX-License-Identifier: Apache-2.0
"""The pages of a file in memory, and whether somebody is still at them.

Facts about pages: the page cache drops those that nobody reads or has locked when it is asked to;
what stays is in use. Pages that are not on the disk stay anyway, but a read of them needs no disk.
"""

from __future__ import annotations

import mmap
import os

from firstread.device import syscalls


def is_quiet(fd: int) -> bool:
    """Return whether no read is still at the pages of an open file; True if it cannot be seen.

    Before relying on it, wait for longer than a read takes that needs no disk.

    Source: cachestat(2), Linux >= 6.5; posix_fadvise(2).
    """
    try:
        if syscalls.cachestat(fd)[1]:
            return True
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return syscalls.cachestat(fd)[0] == 0
    except OSError:
        return True


def cached_bytes(fd: int, offset: int = 0, length: int = 0) -> int:
    """Return how many bytes of a range of an open file are in memory, in whole pages.

    Args:
        fd: the file.
        offset: of the range.
        length: of the range; 0 means all behind the offset.

    Raises:
        OSError: the kernel does not say it (Linux before 6.5), or not to this user.
    """
    return syscalls.cachestat(fd, offset, length)[0] * mmap.PAGESIZE

# SPDX-License-Identifier: Apache-2.0
"""Descriptors of another process, as ours; and what can be told of one that we were given.

Owns pidfd_getfd(2), which needs the right to trace that process. The system call filter of a
service may refuse it (it is in systemd's @debug). Invariant: what cannot be had is left out.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
from collections.abc import Iterable

from firstread.device import syscalls

_FUSE = os.makedev(10, 229)  # /dev/fuse, in Documentation/admin-guide/devices.txt


def copies(pid: int, numbers: Iterable[int]) -> dict[int, int]:
    """Return duplicates of descriptors of a process, by their numbers there.

    Args:
        pid: of the process.
        numbers: of its descriptors.
    """
    found: dict[int, int] = {}
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            for number in numbers:
                with contextlib.suppress(OSError):
                    found[number] = syscalls.pidfd_getfd(pidfd, number)
        finally:
            os.close(pidfd)
    return found


def is_connection(fd: int) -> bool:
    """Return whether a descriptor is of /dev/fuse, or may be of a socket of an NBD device.

    Those are stream sockets without a name, whose other end has none either.
    """
    try:
        status = os.fstat(fd)
        if stat.S_ISSOCK(status.st_mode):
            with socket.socket(fileno=os.dup(fd)) as copy:
                is_stream = (copy.family, copy.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
                return is_stream and not copy.getsockname() and not _peer(copy)
    except OSError:
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _FUSE


def _peer(copy: socket.socket) -> object:
    with contextlib.suppress(OSError):  # it has ended
        return copy.getpeername()
    return ""


def is_dead(connection: int) -> bool:
    """Return whether the file system of a FUSE connection has ended (fs/fuse/dev.c: POLLERR).

    That of an NBD device never has, as far as its socket tells: it takes another one.
    """
    poll = select.poll()
    poll.register(connection, 0)
    return any(mask & (select.POLLERR | select.POLLNVAL) for _, mask in poll.poll(0))

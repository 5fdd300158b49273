# SPDX-License-Identifier: Apache-2.0
"""The file system of a FUSE connection: made, and served from then on.

Owns the options that it is mounted with. Invariant: a connection has a file system and a thread, or
it is abandoned.

Facts about FUSE mounts (Linux 5.4 to 6.18):

* Mounting returns before INIT is answered; what reaches the mount waits for it.
* ``fd`` names the descriptor in the process that calls fsconfig(2).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from firstread.device import syscalls
from firstread.device.connection import Connection
from firstread.device.fuseprotocol import MOST_BYTES


@contextlib.contextmanager
def open_fuse(fd: int, metadata: Path, connection: Connection, mode: int) -> Iterator[int]:
    """Make the file system of a connection, and serve it; give the descriptor of its mount.

    If the block fails before anything else uses the mount, the file system ends, and the
    connection with it.

    Args:
        fd: of the connection.
        metadata: what the list of mounts is to say.
        connection: serves it.
        mode: type of its root.

    Raises:
        OSError: the kernel refuses.
        BusyError: this process can have no more threads.
    """
    context = -1
    try:
        try:
            context = syscalls.fsopen("fuse")
            for key, value in (
                ("source", os.fsencode(metadata.absolute())),
                ("fd", b"%d" % fd),
                ("rootmode", b"%o" % mode),
                ("user_id", b"0"),
                ("group_id", b"0"),
                ("max_read", b"%d" % MOST_BYTES),
            ):
                syscalls.fsconfig_string(context, key, value)
            for flag in ("ro", "allow_other", "default_permissions"):
                syscalls.fsconfig_flag(context, flag)
            syscalls.fsconfig_create(context)
            connection.start()
        except BaseException:
            connection.abandon()
            raise
        attributes = (
            syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
        )
        mount = syscalls.fsmount(context, attributes)
    finally:
        if context >= 0:
            os.close(context)
    try:
        yield mount
    finally:
        os.close(mount)

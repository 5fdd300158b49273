# SPDX-License-Identifier: Apache-2.0
"""Directories and sockets that are ours alone, so that nobody else can plant or ask anything.

Owns the checks and the repair. Invariant: neither the path to a directory that passed, nor a name
below it, is under another user's control, so a path there can be opened without fear of a symbolic
link, now and later.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from firstread.errors import NodeError, from_os_error

log = logging.getLogger("private")

MODE = 0o700
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_ACL = "system.posix_acl_access"
_MAX_LINKS = 40  # as the kernel follows in a path, path_resolution(7)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_directory(path: Path) -> None:
    """Make `path` if it is missing; see to it that nobody else can use it.

    One that others could only read is repaired, and that is logged. One that others could write
    to is repaired only if it is empty: what lies in it may not be ours.

    Args:
        path: of the directory itself.

    Raises:
        NodeError: it is a symbolic link or no directory, belongs to another user, or others could
            write to it or replace it.
    """
    check_way(path)
    try:
        path.mkdir(mode=MODE, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        if path.is_symlink():
            raise NodeError(
                f"{path} is a symbolic link", hint="remove it, or name what it leads to"
            ) from exc
        raise from_os_error(exc, "cannot make the directory") from exc
    try:
        check_way(path)  # what was missing just now may have been made by somebody else
        _secure(path, fd)
    except OSError as exc:
        raise from_os_error(exc, f"cannot secure the directory {path}") from exc
    finally:
        os.close(fd)


def check_way(path: Path, *, whole: bool = False) -> None:
    """See to it that nobody else can replace `path` or a directory above it, as sshd does.

    Whoever owns a directory, or may write to it, can rename what is in it, whoever owns that. Where
    it is sticky only its owner can, and owners of what is in it: links of others, which are on the
    way, too. Missing directories are passed over.

    Args:
        path: of what is made, or is there.
        whole: look at `path` itself, too.

    Raises:
        NodeError: somebody can.
    """
    for place in _way(path / "_" if whole else path):
        try:
            status = place.lstat()
            acl = not stat.S_ISLNK(status.st_mode) and _ACL in os.listxattr(place)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise from_os_error(exc, "cannot look at the directory") from exc
        hint = "choose another place, such as below /var/lib or /run"
        if status.st_uid not in (0, os.geteuid()):
            raise NodeError(
                f"user {status.st_uid}, to whom {place} belongs, could replace {path}", hint=hint
            )
        if not stat.S_ISLNK(status.st_mode) and is_open(status, acl=acl):
            mode = stat.S_IMODE(status.st_mode)
            raise NodeError(
                f"others can write to {place} (mode {mode:04o}), and replace {path}",
                hint=f"chmod go-w {place}, or {hint}",
            )


def _way(path: Path) -> Iterator[Path]:
    """Yield each directory and symbolic link above `path` that the kernel goes by, in its order."""
    place, links = Path("/"), 0
    yield place
    todo = list(reversed(path.absolute().parent.parts[1:]))
    while todo:
        name = todo.pop()
        if name == "..":
            place = place.parent
            continue
        place /= name
        yield place
        try:
            target = os.readlink(place)
        except OSError:
            continue  # it is none, or not there
        links += 1
        if links > _MAX_LINKS:
            raise NodeError(f"there are too many symbolic links on the way to {path}")
        todo += [part for part in reversed(target.split("/")) if part not in ("", ".")]
        place = Path("/") if target.startswith("/") else place.parent


def is_open(directory: os.stat_result, *, acl: bool = False) -> bool:
    """Return whether others than its owner and root's group can rename what is in a directory.

    Args:
        directory: its status.
        acl: it has an access control list; the bits of its group are those of all on it then.
    """
    others = stat.S_IWOTH if directory.st_gid == 0 and not acl else _OTHERS_WRITE
    return bool(directory.st_mode & others) and not directory.st_mode & stat.S_ISVTX


def bind_private(listener: socket.socket, path: Path) -> None:
    """Bind a Unix socket to a path that only its owner can connect to, from the first moment.

    Changes the umask of the process for that moment.

    Raises:
        OSError: the path cannot be had.
    """
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)


def is_ours(connection: socket.socket) -> bool:
    """Return whether root or this user is at the other end, whatever the mode of the socket is.

    Of a socket that was connected to, that is who listens.
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    return int(uid) in (0, os.geteuid())


def peer_pid(connection: socket.socket) -> int:
    """Return the process that listens, of a socket that was connected to; 0 if we cannot see it."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[0])


def _secure(path: Path, fd: int) -> None:
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        raise NodeError(
            f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}",
            hint="choose another directory, or remove this one",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS_WRITE and os.listdir(fd):
        raise NodeError(
            f"others can write to {path} (mode {mode:04o}), so what is in it may not be ours",
            hint=f"look at what is in it, then: chmod 700 {path}",
        )
    if mode & ~MODE & 0o777:
        os.fchmod(fd, MODE)
        log.warning("%s had mode %04o: it has %04o now", path, mode, MODE)

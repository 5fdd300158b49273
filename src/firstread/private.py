# SPDX-License-Identifier: Apache-2.0
"""Private directories and sockets, so that nobody else can plant or ask anything.

Owns the checks and the repair. Invariant: no other user controls the path to a directory that
passed, or a name below it, so we can open a path there without fear of a symbolic link, now and
later.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from firstread.errors import NodeError, from_os_error
from firstread.idmaps import OVERFLOW, owner

log = logging.getLogger("private")

MODE = 0o700
_OURS = {"format.json", "control.sock", "start.lock"}  # in a store, in a run directory
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_ACL = "system.posix_acl_access"
_MAX_LINKS = 40  # that the kernel follows in a path, path_resolution(7)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_directory(path: Path) -> None:
    """Create `path` if it is missing; make sure that nobody else can use it.

    Missing parents become private, too: one may be the store, with its run directory below it.

    It repairs, and logs, a directory that others could use, if it is empty. With content, it
    repairs one that others could only read, and only one of ours: it would take ``/srv`` away from
    everybody else, or ``/``.

    Args:
        path: of the directory itself.

    Raises:
        NodeError: it is a symbolic link or no directory, belongs to another user, others could
            write to it or replace it, or it has another purpose.
    """
    check_way(path)
    try:
        for place in (*reversed(path.parents), path):
            place.mkdir(mode=MODE, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        if path.is_symlink():
            raise NodeError(
                f"{path} is a symbolic link", hint="remove it, or name its target"
            ) from exc
        raise from_os_error(exc, "cannot make the directory") from exc
    try:
        check_way(path)  # somebody else may have created it a moment ago
        _secure(path, fd)
    except OSError as exc:
        raise from_os_error(exc, f"cannot secure the directory {path}") from exc
    finally:
        os.close(fd)


def _has_acl(place: Path) -> bool:
    try:
        return _ACL in os.listxattr(place)
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:  # the file system has no attributes
            return False
        raise


def check_way(path: Path, *, whole: bool = False) -> None:
    """Check, as sshd does, that nobody else can replace `path` or a directory above it.

    The owner of a directory, and everybody who may write to it, can rename its entries, even those
    of others. In a sticky directory only its owner can, and the owners of entries: so links of
    others on the way count, too. It skips missing directories. In an ordinary user's namespace all
    other owners look alike, and pass for root: commands check before they join it.

    Args:
        path: of an existing or future file.
        whole: check `path` itself, too.

    Raises:
        NodeError: somebody can.
    """
    trusted = {0, os.geteuid()}
    if not os.geteuid() and owner():
        trusted.add(OVERFLOW)
    for place in _way(path / "_" if whole else path):
        try:
            status = place.lstat()
            acl = not stat.S_ISLNK(status.st_mode) and _has_acl(place)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise from_os_error(exc, "cannot look at the directory") from exc
        hint = "choose another directory, such as below /var/lib or /run"
        if status.st_uid not in trusted:
            raise NodeError(
                f"user {status.st_uid}, the owner of {place}, could replace {path}", hint=hint
            )
        if not stat.S_ISLNK(status.st_mode) and is_open(status, acl=acl):
            mode = stat.S_IMODE(status.st_mode)
            raise NodeError(
                f"others can write to {place} (mode {mode:04o}), and replace {path}",
                hint=f"chmod go-w {place}, or {hint}",
            )


def _way(path: Path) -> Iterator[Path]:
    """Yield each directory and symbolic link above `path` that the kernel passes, in its order."""
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
            continue  # no symbolic link, or missing
        links += 1
        if links > _MAX_LINKS:
            raise NodeError(f"there are too many symbolic links on the way to {path}")
        todo += [part for part in reversed(target.split("/")) if part not in ("", ".")]
        place = Path("/") if target.startswith("/") else place.parent


def is_open(directory: os.stat_result, *, acl: bool = False) -> bool:
    """Return whether others than its owner and root's group can rename entries of a directory.

    Args:
        directory: its status.
        acl: it has an access control list; its group bits then stand for everybody on the list.
    """
    others = stat.S_IWOTH if directory.st_gid == 0 and not acl else _OTHERS_WRITE
    return bool(directory.st_mode & others) and not directory.st_mode & stat.S_ISVTX


def bind_private(listener: socket.socket, path: Path) -> None:
    """Bind a Unix socket so that only its owner can connect, from the first moment.

    Changes the umask of the process for that moment.

    Raises:
        OSError: the path is unavailable.
    """
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)


def is_ours(connection: socket.socket) -> bool:
    """Return whether root or this user is at the other end, whatever the socket's mode.

    For a connected client socket, the other end is the listener.
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    return int(uid) in (0, os.geteuid())


def peer_pid(connection: socket.socket) -> int:
    """Return the listening process of a connected client socket; 0 if we cannot see it."""
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
    if not mode & ~MODE & 0o777:
        return
    names = set(os.listdir(fd)) - {"lost+found"}
    if names and mode & _OTHERS_WRITE:
        raise NodeError(
            f"others can write to {path} (mode {mode:04o}), so its content may not be ours",
            hint=f"check its content, then: chmod 700 {path}",
        )
    if names and not names & _OURS:
        raise NodeError(
            f"others can read {path} (mode {mode:04o}), and its content is not firstread's",
            hint=f"name a directory for firstread alone, or: chmod 700 {path}",
        )
    os.fchmod(fd, MODE)
    log.warning("%s had mode %04o: it has %04o now", path, mode, MODE)

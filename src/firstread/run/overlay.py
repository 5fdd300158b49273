# SPDX-License-Identifier: Apache-2.0
r"""The writable root of a container: overlayfs over a read-only tree.

Owns the mount call, its options and the unmounting. Invariant: the lower tree is never written to,
and `unmount_below` leaves no mount behind, so that a container's directory can then be deleted.

Facts about overlayfs:

* ``:`` and ``\`` are special in its options, and fsconfig(2) takes 255 bytes; any other path goes
  in as ``/proc/self/fd/N``, which the kernel resolves at once.
* ``redirect_dir``, ``metacopy`` and ``index`` follow trusted.overlay.* attributes, which an image
  could carry. This module sets them, so that no distribution's module parameter turns them on.
* In a user namespace, from Linux 5.11 on, overlayfs has to keep its own attributes as
  user.overlay.* (``userxattr``). It then turns those features off itself, and refuses to hear of
  them.
* ``volatile`` makes fsync(2) on the upper directory free and, after a crash of the host, the upper
  directory unusable. So it suits containers that are removed on exit; others may need their upper
  directory later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from firstread.device import syscalls
from firstread.errors import NodeError, from_os_error
from firstread.idmaps import owner
from firstread.mountinfo import read_mountinfo

_FIXED = {"redirect_dir": "nofollow", "metacopy": "off", "index": "off"}
_FIXED_IN_NAMESPACE = {"index": "off"}
_ELSEWHERE = "choose a --root on a local file system, and not on another overlay"
_PLAIN_PATH = re.compile(rb"[^:,\\]{1,255}")


def mount_overlay(lower: Path, writable: Path, mountpoint: Path, *, volatile: bool = False) -> None:
    """Mount `lower` at `mountpoint`, with changes going to `writable`.

    Args:
        lower: the read-only tree.
        writable: an existing directory; gets ``upper`` and ``work``, on one file system.
        mountpoint: an existing directory.
        volatile: never sync; the upper directory is then lost with the host's next crash.

    Raises:
        NodeError: the kernel refuses, in its own words.
    """
    upper, work = writable / "upper", writable / "work"
    try:
        work.mkdir()
        _copy_attributes(lower, upper)
        with contextlib.ExitStack() as stack:
            paths = {"lowerdir": lower, "upperdir": upper, "workdir": work}
            named = {key: stack.enter_context(_named(path)) for key, path in paths.items()}
            _mount(named, mountpoint, volatile=volatile)
    except OSError as exc:
        raise from_os_error(exc, f"cannot mount an overlay over {lower}") from exc


def _copy_attributes(source: Path, directory: Path) -> None:
    """Make `directory` like `source`: overlayfs shows owner and mode of the upper root."""
    status = source.stat()
    directory.mkdir()
    os.chown(directory, status.st_uid, status.st_gid)
    directory.chmod(status.st_mode & 0o7777)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[bytes]:
    """Yield a name for `path` that fits into a mount option."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = os.fsencode(path)
        yield name if _PLAIN_PATH.fullmatch(name) else b"/proc/self/fd/%d" % descriptor
    finally:
        os.close(descriptor)


def _mount(paths: dict[str, bytes], mountpoint: Path, *, volatile: bool) -> None:
    context = syscalls.fsopen("overlay")
    try:
        syscalls.fsconfig_string(context, "source", b"overlay")
        fixed, flags = (_FIXED_IN_NAMESPACE, ["userxattr"]) if owner() else (_FIXED, [])
        options = {**paths, **{key: value.encode() for key, value in fixed.items()}}
        for key, value in options.items():
            syscalls.fsconfig_string(context, key, value)
        for flag in [*flags, *(["volatile"] if volatile else [])]:
            syscalls.fsconfig_flag(context, flag)
        syscalls.fsconfig_create(context)
        mount = syscalls.fsmount(context, 0)
    except OSError as exc:
        words = "; ".join(syscalls.fscontext_messages(context)) or exc.strerror
        hint = _ELSEWHERE if "as upperdir" in (words or "") else None
        raise NodeError(f"cannot mount an overlay: {words}", hint=hint) from exc
    finally:
        os.close(context)
    try:
        syscalls.move_mount(mount, os.fsencode(mountpoint))
    finally:
        os.close(mount)


def mounts_below(directory: Path) -> list[bytes]:
    """Return the mount points in `directory`, latest first."""
    prefix = os.fsencode(directory.resolve()) + b"/"
    points = [mount.place for mount in read_mountinfo()]
    return [point for point in reversed(points) if point.startswith(prefix)]


def unmount_below(directory: Path) -> None:
    """Unmount everything in `directory`; a busy mount disappears when its user is done.

    Raises:
        NodeError: the kernel refuses.
    """
    for point in mounts_below(directory):
        try:
            syscalls.umount2(point, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as exc:
            if exc.errno not in {errno.EINVAL, errno.ENOENT}:  # someone else was faster
                exc.filename = os.fsdecode(point)
                raise from_os_error(exc, "cannot unmount") from exc

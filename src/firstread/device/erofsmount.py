# SPDX-License-Identifier: Apache-2.0
"""Mounting EROFS metadata over sector files, and unmounting it.

Owns the mount system calls. Does not make or mark sector files, and keeps no table of mounts.
Invariant: `mount_erofs` has attached a complete file system, or nothing is left of it.

Facts about EROFS mounts (Linux 6.18; tests/privileged/test_device_mount.py shows them):

* A regular file as ``source`` is mounted file-backed (>= 6.12). util-linux's mount(8) makes a
  loop device instead, whose reads raise no fanotify events: hence fsopen(2).
* ``device`` once per device slot, in slot order; too few or too many are refused. None at all
  takes the extra devices from the flat address space behind the metadata.
* The kernel opens the sector files in FSCONFIG_CMD_CREATE. They count against fs.file-max, not
  against RLIMIT_NOFILE. The superblock has room for 65,535 devices. Of 10,000 the kernel takes
  20 ms to mount and 10 ms to unmount, of 60,000 it takes 140 ms and 60 ms.
* Metadata is read through the page cache of ``source`` and raises no event: a stat(2) of the
  mount never waits. It must be complete before the mount; sector files may be empty.
* A read behind the end of a device file is EIO. This is what makes an absent sector fail closed,
  and not every kernel does it: 6.12 and later filled with zeros what was missing of a read, up to
  "erofs: set fileio bio failed in short read case" (7.0, and 6.18.44 has it). `probe` tries it.
  For the same reason a sector file must be whole 4 KiB blocks long.
* EROFS puts unknown options into the log of the file system context, but what is wrong with a
  superblock into the kernel log only. An error here carries both.
* ``MS_NOSUID`` and ``MS_NODEV`` of a lower layer do not reach through overlayfs: a container on
  top has its setuid programs and device nodes, whoever reaches the bare mount does not.
* Unmounting it under an overlayfs succeeds at once, but the overlay keeps the file system and
  its sector files alive: they may still be read, and raise events.
* Each mount of the same metadata is a file system of its own, with its own page cache.
* O_DIRECT opens are refused with EINVAL.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from firstread.device import syscalls
from firstread.device.holders import holders
from firstread.errors import NodeError, from_os_error

_LOG_RECORD_BYTES = 8192
_SEVERITY_MASK = 7  # of a syslog priority; the rest is the facility
_WARNING = 4
_HINTS = {
    errno.EPERM: "run as root",
    errno.ENODEV: "load the module erofs, or use a kernel with CONFIG_EROFS_FS",
    errno.ENOTBLK: "use Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE",
    errno.ENFILE: "raise fs.file-max: each sector of a mounted image is an open file",
}


def mount_erofs(
    metadata: Path,
    devices: Sequence[Path],
    mountpoint: Path,
    *,
    options: Sequence[str] = (),
) -> None:
    """Mount the file system in `metadata` read-only at `mountpoint`.

    Args:
        metadata: the EROFS image without file data; or, with no `devices`, one flat image (or a
            block device) that has the sectors behind it.
        devices: the sector file of each device slot, in slot order. The caller has marked them.
        mountpoint: an existing directory.
        options: names of flags, such as ``directio``.

    Raises:
        NodeError: with what the kernel said. Nothing is mounted then.
    """
    doing, paths = f"cannot mount {metadata} at {mountpoint}", [metadata, *devices, mountpoint]
    mount = open_erofs(metadata, devices, doing, options=options)
    try:
        syscalls.move_mount(mount, os.fsencode(mountpoint))
    except OSError as exc:
        raise _error(exc, doing, _missing(paths, exc)) from exc
    finally:
        os.close(mount)


def open_erofs(
    source: Path, devices: Sequence[Path], doing: str, *, options: Sequence[str] = ()
) -> int:
    """Make a file system, and return the descriptor of its detached mount.

    Args:
        source: as `metadata` of `mount_erofs`.
        devices: as there.
        doing: what an error says.
        options: as there.

    Raises:
        NodeError: with what the kernel said; its cause is the OSError.
    """
    with _kernel_log() as logged:
        context = -1
        try:
            context = syscalls.fsopen("erofs")
            return _make(context, source, devices, options)
        except OSError as exc:
            words = syscalls.fscontext_messages(context) if context >= 0 else []
            words += logged() + _missing([source, *devices], exc)
            raise _error(exc, doing, words) from exc
        finally:
            if context >= 0:
                os.close(context)


def _make(context: int, source: Path, devices: Sequence[Path], options: Sequence[str]) -> int:
    syscalls.fsconfig_string(context, "source", _value(source))
    for option in options:
        syscalls.fsconfig_flag(context, option)
    for device in devices:
        syscalls.fsconfig_string(context, "device", _value(device))
    syscalls.fsconfig_create(context)
    attributes = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    return syscalls.fsmount(context, attributes)


def _error(exc: OSError, doing: str, words: Sequence[str]) -> NodeError:
    error = from_os_error(exc, doing)
    if words:
        error.message += f" ({'; '.join(words)})"
    error.hint = _HINTS.get(exc.errno or 0, error.hint)
    return error


def _value(path: Path) -> bytes:
    """Return `path` as fsconfig(2) takes it.

    Raises:
        NodeError: it is too long.
    """
    value = os.fsencode(path if path.is_absolute() else path.absolute())
    if len(value) > syscalls.FSCONFIG_STRING_BYTES:
        raise NodeError(
            f"a mount option can have {syscalls.FSCONFIG_STRING_BYTES} bytes, which the path "
            f"{path} exceeds",
            hint="choose a shorter --root",
        )
    return value


def _missing(paths: Sequence[Path], exc: OSError) -> list[str]:
    """Say which of `paths` is not there, if that is the error: the kernel does not."""
    if exc.errno != errno.ENOENT:
        return []
    return [f"{path} is missing" for path in paths if not path.exists()][:1]


@contextlib.contextmanager
def _kernel_log() -> Iterator[Callable[[], list[str]]]:
    """Give a function that returns what EROFS has complained of since; [] if we may not read it.

    Source: Documentation/ABI/testing/dev-kmsg.
    """
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield list
        return
    try:
        os.lseek(log, 0, os.SEEK_END)
        yield lambda: list(_complaints(log))
    finally:
        os.close(log)


def _complaints(log: int) -> Iterator[str]:
    """Yield the texts of warnings and errors of EROFS; one read(2) gives one record."""
    while True:
        try:
            record = os.read(log, _LOG_RECORD_BYTES).decode(errors="replace")
        except BrokenPipeError:
            continue  # the ring has gone round: the oldest record that is left comes next
        except OSError:
            return
        head, _, text = record.partition(";")
        severity = int(head.partition(",")[0]) & _SEVERITY_MASK
        if severity <= _WARNING and text.startswith("erofs"):
            yield text.partition("\n")[0]


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount what is mounted at `mountpoint`.

    Args:
        mountpoint: its path; a symbolic link is not followed.
        lazy: detach a busy mount too; it goes when its last user does.

    Raises:
        NodeError: nothing is mounted there, or it is busy; then the message says who holds it.
    """
    flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
    doing = f"cannot unmount {mountpoint}"
    try:
        syscalls.umount2(os.fsencode(mountpoint), flags)
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            raise NodeError(f"{doing}: nothing is mounted there") from exc
        if exc.errno != errno.EBUSY:
            raise from_os_error(exc, doing) from exc
        users = ", ".join(map(str, holders(mountpoint))) or "a mount below it"
        raise NodeError(
            f"{doing}: it is in use by {users}",
            hint="stop these processes, or detach it all the same: firstread umount --lazy",
        ) from exc

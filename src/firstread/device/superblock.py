# SPDX-License-Identifier: Apache-2.0
"""Whether a file system lives on when it is not mounted any more.

Facts about superblocks: unmounted, one lives until the last process, mount namespace or overlayfs
that uses it is gone; no list has it meanwhile, and its device number is given away again after it.
EROFS keeps a directory for it below /sys/fs just as long, with a number that no other gets before
the next boot. Which one it is, an ioctl says since Linux 6.10 (FS_IOC_GETFSSYSFSPATH, fs/ioctl.c).
FUSE has a backing device information just as long, below /sys/class/bdi by the device number; the
inode of that directory has a number that is not given away again (fs/kernfs: idr_alloc_cyclic).
EROFS on a block device has the name of that device below /sys/fs/erofs (since Linux 5.17), which
the next one there gets, too: it is told by the inode, likewise.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from firstread.device.holders import is_used
from firstread.errors import from_os_error

_SYSFS_PATH_BYTES = 129  # struct fs_sysfs_path: a length, and so many bytes of name
_GETFSSYSFSPATH = 2 << 30 | _SYSFS_PATH_BYTES << 16 | 0x15 << 8 | 1  # _IOR(0x15, 1, ...)
_UNNAMED = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
"""Answers of kernels that do not know the call; 5.10 passes the ENOSYS of a FUSE server on."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """One file system, from its mount to its end.

    Args:
        boot_id: of the kernel that has it.
        device: its number; another may get it afterwards.
        name: below /sys/fs, on a block device with ``#`` and an inode number behind it; or ``bdi/``
            and an inode number; "" if the kernel does not tell.
    """

    boot_id: str
    device: int
    name: str

    @classmethod
    def at(cls, directory: Path) -> Self:
        """Return the one that is mounted at `directory`.

        Raises:
            NodeError: `directory` cannot be opened.
        """
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                device = os.fstat(fd).st_dev
                if os.major(device):
                    name = _block_name(device) or _name(fd)
                else:
                    name = _name(fd) or _bdi_name(device)
                return cls(_boot_id(), device, name)
            finally:
                os.close(fd)
        except OSError as exc:
            raise from_os_error(exc, "cannot look at the mount point") from exc

    @property
    def kind(self) -> str:
        """Type of file system, of those that we mount, as far as its name tells."""
        return {"erofs": "erofs", "bdi": "fuse"}.get(self.name.partition("/")[0], "")

    def lives(self, *, unmounted: bool) -> bool:
        """Return whether anyone uses it. An unknown file system counts as used.

        Args:
            unmounted: whether it is known to be gone from its place. Only then processes are
                looked at where the kernel gives no name: what they use may be another one that
                has got its number.
        """
        try:
            if self.boot_id != _boot_id():
                return False
            if self.kind == "fuse":
                return _bdi_name(self.device) == self.name
            if "#" in self.name:
                return _block_name(self.device) == self.name
            if self.name:
                return _exists(f"/sys/fs/{self.name}")
            return unmounted and is_used(self.device)
        except OSError:
            return True  # such as too many open files: it is looked at again


def _name(fd: int) -> str:
    answer = bytearray(_SYSFS_PATH_BYTES)
    try:
        fcntl.ioctl(fd, _GETFSSYSFSPATH, answer)
    except OSError as exc:
        if exc.errno in _UNNAMED:
            return ""
        raise
    name = answer[1 : 1 + answer[0]].decode()
    return name if _exists(f"/sys/fs/{name}") else ""


def _block_name(device: int) -> str:
    """Return the name of EROFS on a block device; "" if there is none."""
    try:
        disk = os.path.basename(os.readlink(f"/sys/dev/block/{_colons(device)}"))
        return f"erofs/{disk}#{os.stat(f'/sys/fs/erofs/{disk}').st_ino}"
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _bdi_name(device: int) -> str:
    try:
        found = os.stat(f"/sys/class/bdi/{_colons(device)}")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return f"bdi/{found.st_ino}"


def _colons(device: int) -> str:
    """Return a device number as sysfs names it."""
    return f"{os.major(device)}:{os.minor(device)}"


def _exists(path: str) -> bool:
    """Return whether there is such a directory; what cannot be looked at now may be there."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

# SPDX-License-Identifier: Apache-2.0
"""The sector store: a directory of sector files, named by sector id, shared by all images.

Owns creation, sizes and durability of sector files; `firstread.sectors.storelayout` has their
layout. Does not fetch, verify, mark or choose what to evict. Invariants:

* A file is a verified prefix of its sector: empty, it is absent; with all bytes, present. It only
  grows by verified frames, or is emptied.
* A file without the owner's write permission is flushed: its bytes are on the disk. Other
  files are trusted only while the kernel that wrote them is running, because after a power loss a
  file can have its full size and zeros inside. So `claim` after a reboot makes such files
  unverified, by their mode. Before an unverified file's sector is mounted it is set aside, and an
  empty file takes its name; its bytes go back there if they turn out to be the sector's.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from firstread.errors import NodeError, from_os_error, is_disk_full
from firstread.sectors import storelock
from firstread.sectors.storelayout import (
    FLUSHED,
    UNFLUSHED,
    UNVERIFIED,
    doing,
    file_name,
    lay_out,
    overwrite,
    parse_name,
    read_or_none,
    require_filesystem,
    write_durably,
)
from firstread.sectors.unverified import UnverifiedFiles

PRE_CONTENT_FILESYSTEMS = frozenset({"ext4", "xfs", "btrfs"})
"""File systems that raise fanotify pre-content events (FS_ALLOW_HSM in Linux 6.14 … 6.18)."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SectorStore:
    """The sector files below one root. Safe to use from several threads.

    Args:
        root: directory of the store; made if it is missing.
        filesystems: kinds that are accepted; None accepts all, for devices without marks.

    Attributes:
        made: sector files that were made, less those that were removed.
        unverified: files that lie aside.

    Raises:
        NodeError: no permission, a file system without pre-content events, or another layout.
    """

    def __init__(
        self, root: Path, *, filesystems: frozenset[str] | None = PRE_CONTENT_FILESYSTEMS
    ) -> None:
        self.root = root
        self.directory = root / "sectors"
        self.made = 0
        self._lock_fd = self._open_fd = -1
        with doing("cannot open the sector store"):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if filesystems is not None:
                require_filesystem(root, filesystems)
            lay_out(root)
            self.unverified = UnverifiedFiles(root)
            self._dirfd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor of ``sectors/``, which `names` are relative to."""
        return self._dirfd

    def open_below(self, fd: int) -> None:
        """Open sector files by way of another descriptor of ``sectors/``, which is ours now.

        It may be of another mount; so files are renamed by way of the one that we have.
        """
        self._open_fd = fd

    def close(self) -> None:
        """Close the store; the last process that does so after `claim` gives up the lock."""
        for fd in (self._dirfd, self._lock_fd, self._open_fd):
            if fd >= 0:
                os.close(fd)
        self._dirfd = self._lock_fd = self._open_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- one daemon, and reboots ---------------------------------------------------------------

    def claim(self) -> None:
        """Become the one daemon of this store, and trust nothing that a reboot left unflushed.

        Raises:
            NodeError: another process has it; the message names it.
        """
        with doing("cannot lock the sector store"):
            self._lock_fd = storelock.lock(self.root)
            storelock.sign(self._lock_fd)
            self._recover()

    def detach_lock(self) -> int:
        """Return the descriptor that holds the lock; from now on the caller's to keep open."""
        fd, self._lock_fd = self._lock_fd, -1
        return fd

    def _recover(self) -> None:
        """Make unflushed sectors unverified if another kernel wrote them; none is mounted yet."""
        record = self.root / "boot"
        boot_id = _BOOT_ID.read_text()
        if read_or_none(record) == boot_id:
            return
        for sector_id, status in self._files():
            if status.st_size and status.st_mode & stat.S_IWUSR:
                os.chmod(file_name(sector_id), UNVERIFIED, dir_fd=self._dirfd)
        try:
            write_durably(record, boot_id)
        except OSError as exc:
            if not is_disk_full(exc):
                raise
            # Sectors may fill the disk, and without a daemon nothing removes them.
            overwrite(record, boot_id)

    # -- unverified files ----------------------------------------------------------------------

    def set_aside(self, ids: Iterable[bytes]) -> list[bytes]:
        """Move the unverified ones of `ids` away, and return them: no mount may use them yet."""
        moved = []
        for sector_id in ids:
            if self._is_unverified(sector_id) and self.size(sector_id):
                self.unverified.take(sector_id, self._dirfd)
                moved.append(sector_id)
            elif self._is_unverified(sector_id):
                self.empty(sector_id)  # a process has died while it did so
        return moved

    def _is_unverified(self, sector_id: bytes) -> bool:
        status = self.look(sector_id)
        return status is not None and is_unverified(status)

    # -- sector files --------------------------------------------------------------------------

    def path(self, sector_id: bytes) -> Path:
        """Return the path of a sector's file, whether it exists or not."""
        return self.directory / file_name(sector_id)

    def names(self, ids: Iterable[bytes]) -> list[bytes]:
        """Return the names of sector files below `fileno`."""
        return [file_name(sector_id).encode() for sector_id in ids]

    def id_of(self, fd: int) -> bytes:
        """Return the sector id of an open sector file, such as an event's descriptor.

        Raises:
            NodeError: it is not a file of a sector store.
        """
        with doing("cannot name an open file"):
            name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        sector_id = parse_name(name.removesuffix(" (deleted)"))
        if sector_id is None:
            raise NodeError(f"{name!r} is not a sector file")
        return sector_id

    def look(self, sector_id: bytes) -> os.stat_result | None:
        """Return what the file system says of a sector's file; None if there is none. 1.5 us."""
        try:
            return os.stat(file_name(sector_id), dir_fd=self._dirfd)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise from_os_error(exc, "cannot look at a sector file") from exc

    def size(self, sector_id: bytes) -> int:
        """Return the bytes that a sector's file has; 0 if there is no file."""
        status = self.look(sector_id)
        return status.st_size if status else 0

    def is_flushed(self, sector_id: bytes) -> bool:
        """Return whether a sector was whole, and written to the disk as such."""
        status = self.look(sector_id)
        return status is not None and stat.S_IMODE(status.st_mode) == FLUSHED

    def written_ns(self, sector_id: bytes) -> int:
        """Return when anybody wrote to a sector's file last; 0 if there is none."""
        status = self.look(sector_id)
        return status.st_mtime_ns if status else 0

    def ensure(self, ids: Iterable[bytes]) -> list[int]:
        """Make the files that are missing, empty, and return the size of each in bytes.

        9 us for a file that is made and 1.5 us for one that is there.
        """
        sizes = []
        for sector_id in ids:
            status = self.look(sector_id)
            if status is None:
                self._make(sector_id)
            sizes.append(status.st_size if status else 0)
        return sizes

    def _make(self, sector_id: bytes) -> None:
        with doing("cannot make a sector file"), contextlib.suppress(FileExistsError):
            os.mknod(file_name(sector_id), stat.S_IFREG | UNFLUSHED, dir_fd=self._dirfd)
            self.made += 1

    def missing(self, ids: Iterable[bytes]) -> int:
        """Return how many files `ensure` would make."""
        return sum(self.look(sector_id) is None for sector_id in ids)

    def open(self, sector_id: bytes, flags: int = os.O_RDONLY) -> int:
        """Return a descriptor of a sector's file.

        On a marked file, reading and writing through it raise events, unless `open_below` was told
        a way by which they do not.
        """
        with doing("cannot open the sector file"):
            below = self._open_fd if self._open_fd >= 0 else self._dirfd
            return os.open(file_name(sector_id), flags | os.O_CLOEXEC, dir_fd=below)

    def flush(self, sector_id: bytes) -> None:
        """Write a present sector to the disk, unless it is there, so that it survives a power loss.

        Waits for the disk. The caller keeps `flush` and `empty` of one sector apart.
        """
        with doing("cannot write a sector to the disk"):
            fd = os.open(file_name(sector_id), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._dirfd)
            try:
                if os.fstat(fd).st_mode & (stat.S_IWUSR | stat.S_IXUSR) == stat.S_IWUSR:
                    os.fdatasync(fd)
                    os.fchmod(fd, FLUSHED)
            finally:
                os.close(fd)

    def empty(self, sector_id: bytes) -> None:
        """Make a sector absent.

        By truncate(2), which opens nothing: another process can hold up an open. On a marked file
        it raises an event of our own pid, and waits until somebody lets that through. A process
        that dies between the two steps leaves neither a flushed file that is not whole nor bytes
        that look verified.
        """
        with doing("cannot empty a sector file"):
            name = file_name(sector_id)
            mode = os.stat(name, dir_fd=self._dirfd).st_mode
            if not mode & stat.S_IXUSR:
                os.chmod(name, UNFLUSHED, dir_fd=self._dirfd)
            os.truncate(self.path(sector_id), 0)
            if mode & stat.S_IXUSR:
                os.chmod(name, UNFLUSHED, dir_fd=self._dirfd)

    def remove(self, ids: Iterable[bytes]) -> None:
        """Delete sector files that no mount uses: a mount would keep the nameless file."""
        with doing("cannot remove a sector file"):
            for sector_id in ids:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file_name(sector_id), dir_fd=self._dirfd)
                    self.made -= 1

    def sizes(self) -> Iterator[tuple[bytes, int]]:
        """Yield (sector id, size in bytes) of every file in the store, empty ones too."""
        for sector_id, status in self._files():
            yield sector_id, status.st_size

    def _files(self) -> Iterator[tuple[bytes, os.stat_result]]:
        with doing("cannot read the sector store"):
            for shard in range(256):
                with os.scandir(self.directory / f"{shard:02x}") as entries:
                    for entry in entries:
                        sector_id = parse_name(entry.name)
                        if sector_id is not None:
                            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                                yield sector_id, entry.stat(follow_symlinks=False)

    # -- the file system -----------------------------------------------------------------------

    def free_bytes(self) -> int:
        """Return what the file system has free for us: 1 us."""
        with doing("cannot look at the file system of the sector store"):
            found = os.fstatvfs(self._dirfd)
            return found.f_bavail * found.f_frsize

    def free_files(self) -> int | None:
        """Return how many files the file system can still make for us; None: it has no bound."""
        with doing("cannot look at the file system of the sector store"):
            found = os.fstatvfs(self._dirfd)
            return found.f_favail if found.f_files else None


def is_unverified(status: os.stat_result) -> bool:
    """Return whether a file's mode says that a reboot has left its bytes."""
    return bool(status.st_mode & stat.S_IXUSR)

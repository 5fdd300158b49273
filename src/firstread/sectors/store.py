# SPDX-License-Identifier: Apache-2.0
"""The sector store: a directory of sector files, named by sector id, shared by all images.

Owns the layout, creation, sizes and durability of sector files. Does not fetch, verify, mark or
choose what to evict. Invariants:

* A file's size says what it holds: 0 is absent, less than the whole sector is a verified prefix,
  the whole sector is present. It only ever grows by verified frames, or is emptied.
* A file without the owner's write permission is settled: its bytes are on the disk. What is not
  settled is trusted only while the kernel that wrote it is running, because after a power loss a
  file can have its full size and zeros inside. So `claim` after a reboot gives such files the
  owner's execute permission: they are doubtful. Before one is mounted it is set aside, and an empty
  file takes its name; its bytes go back there if they turn out to be the sector's.

Layout, version 1 (changing it breaks every existing store)::

    ROOT/format.json     {"format": "firstread sector store", "version": 1}
    ROOT/lock            locked with flock(2) by the daemon; holds its process number
    ROOT/boot            boot id of the kernel under which sectors were last written
    ROOT/aside/          doubtful files whose sector is mounted, by the sector id
    ROOT/sectors/ab/     256 directories, by the first byte of the sector id
        ab01…            one file per sector, named with all 64 hexadecimal digits
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from firstread.errors import NodeError, from_os_error, is_disk_full
from firstread.mountinfo import read_mountinfo
from firstread.readable import is_readable

PRE_CONTENT_FILESYSTEMS = frozenset({"ext4", "xfs", "btrfs"})
"""File systems that raise fanotify pre-content events (FS_ALLOW_HSM in Linux 6.14 … 6.18)."""

_FORMAT = {"format": "firstread sector store", "version": 1}
_SECTOR_NAME = re.compile("[0-9a-f]{64}")
_LOCK_S = 5.0
_LOCK_TICK_S = 0.01
_UNSETTLED = 0o600
_SETTLED = 0o400
_DOUBTFUL = 0o700
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class State(enum.Enum):
    """What a sector file holds, by its size."""

    ABSENT = "absent"
    FILLING = "filling"
    PRESENT = "present"


def state_of(size: int, whole: int) -> State:
    """Return the state of a sector file of `size` bytes whose sector has `whole` bytes.

    Raises:
        NodeError: the file is longer than its sector.
    """
    if size > whole:
        raise NodeError(
            f"a sector file has {size} bytes where its sector has {whole}",
            hint="something else writes to the sector store: empty it",
        )
    if size == whole:
        return State.PRESENT
    return State.FILLING if size else State.ABSENT


@dataclass(frozen=True, slots=True)
class Usage:
    """What a store holds: `sectors` that are not empty, of `bytes` together."""

    sectors: int
    bytes: int


class SectorStore:
    """The sector files below one root. Safe to use from several threads.

    Args:
        root: directory of the store; made if it is missing.
        filesystems: kinds that are accepted; None accepts all, for devices without marks.

    Raises:
        NodeError: no permission, a file system without pre-content events, or another layout.
    """

    def __init__(
        self, root: Path, *, filesystems: frozenset[str] | None = PRE_CONTENT_FILESYSTEMS
    ) -> None:
        self.root = root
        self.directory = root / "sectors"
        self._aside = root / "aside"
        self._lock_fd = -1
        self.made = 0  # sector files that were made, less those that were removed
        with _doing("cannot open the sector store"):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if filesystems is not None:
                _require_filesystem(root, filesystems)
            if not _is_formatted(root):
                _format(root)
            self._aside.mkdir(mode=0o700, exist_ok=True)
            self._dirfd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor of ``sectors/``, which `names` are relative to."""
        return self._dirfd

    def close(self) -> None:
        """Close the store; the last process that does so after `claim` gives up the lock."""
        for fd in (self._dirfd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._dirfd = self._lock_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def claim(self) -> None:
        """Become the one daemon of this store, and doubt what a reboot has left unsettled.

        The lock belongs to the open file: a forked child holds it too.

        Raises:
            NodeError: another process has it; the message names it.
        """
        with _doing("cannot lock the sector store"):
            fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _lock(fd)
            except BlockingIOError as exc:
                holder = _holder(fd) or "unknown"
                os.close(fd)
                raise NodeError(
                    f"the sector store {self.root} is in use by process {holder}",
                    hint="stop that daemon, or choose another --root",
                ) from exc
            self._lock_fd = fd
            owner = b"%d\n" % os.getpid()
            os.pwrite(fd, owner, 0)  # first: a full disk need not give back what it has
            os.ftruncate(fd, len(owner))
            self._recover()

    def detach_lock(self) -> int:
        """Return the descriptor that holds the lock; from now on the caller's to keep open."""
        fd, self._lock_fd = self._lock_fd, -1
        return fd

    def _recover(self) -> None:
        """Doubt unsettled sectors if another kernel wrote them; none is mounted yet."""
        record = self.root / "boot"
        boot_id = _BOOT_ID.read_text()
        if _read_or_none(record) == boot_id:
            return
        for entry in self._files():
            status = entry.stat(follow_symlinks=False)
            if status.st_size and status.st_mode & stat.S_IWUSR:
                os.chmod(entry.path, _DOUBTFUL)
        try:
            _write_durably(record, boot_id)
        except OSError as exc:
            if not is_disk_full(exc):
                raise
            # Sectors may be what fills the disk, and who would remove them cannot start without.
            _overwrite(record, boot_id)

    # -- doubtful sectors ----------------------------------------------------------------------

    def set_aside(self, ids: Iterable[bytes]) -> list[bytes]:
        """Move the doubtful ones of `ids` away, and return which: no mount may use them yet."""
        moved = []
        with _doing("cannot set a sector file aside"):
            for sector_id in ids:
                if self._is_doubtful(sector_id):
                    os.replace(
                        _name(sector_id), self._aside_path(sector_id), src_dir_fd=self._dirfd
                    )
                    moved.append(sector_id)
        return moved

    def empty_doubtful(self, ids: Iterable[bytes]) -> None:
        """Make the doubtful ones of `ids` absent, where they are: for mounts that stand already."""
        for sector_id in ids:
            if self._is_doubtful(sector_id):
                self.empty(sector_id)

    def _is_doubtful(self, sector_id: bytes) -> bool:
        try:
            return bool(os.stat(_name(sector_id), dir_fd=self._dirfd).st_mode & stat.S_IXUSR)
        except FileNotFoundError:
            return False

    def aside(self) -> set[bytes]:
        """Return the sectors of which a doubtful file lies aside."""
        return set(self.aside_sizes())

    def aside_sizes(self) -> dict[bytes, int]:
        """Return the bytes of each file that lies aside."""
        found = {}
        with _doing("cannot read the sector store"), os.scandir(self._aside) as entries:
            for entry in entries:
                sector_id = _parse_name(entry.name)
                if sector_id is not None:
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        found[sector_id] = entry.stat(follow_symlinks=False).st_size
        return found

    def aside_size(self, sector_id: bytes) -> int:
        """Return the bytes of the doubtful file of a sector that lies aside."""
        with _doing("cannot look at a sector file that was set aside"):
            return self._aside_path(sector_id).stat().st_size

    def open_aside(self, sector_id: bytes) -> int:
        """Return a descriptor, to read, of the doubtful file of a sector.

        Raises:
            NodeError: there is none.
        """
        with _doing("cannot open a sector file that was set aside"):
            return os.open(self._aside_path(sector_id), os.O_RDONLY | os.O_CLOEXEC)

    def remove_aside(self, sector_id: bytes) -> int:
        """Delete the doubtful file of a sector, if there is one; return the bytes it had."""
        path = self._aside_path(sector_id)
        with _doing("cannot remove a sector file that was set aside"):
            try:
                size = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                return 0
            return size

    def _aside_path(self, sector_id: bytes) -> Path:
        return self._aside / sector_id.hex()

    # -- sector files --------------------------------------------------------------------------

    def path(self, sector_id: bytes) -> Path:
        """Return the path of a sector's file, whether it exists or not."""
        return self.directory / _name(sector_id)

    def names(self, ids: Iterable[bytes]) -> list[bytes]:
        """Return the names of sector files below `fileno`."""
        return [_name(sector_id).encode() for sector_id in ids]

    def id_of(self, fd: int) -> bytes:
        """Return the sector id of an open sector file, such as an event's descriptor.

        Raises:
            NodeError: it is not a file of a sector store.
        """
        with _doing("cannot name an open file"):
            name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        sector_id = _parse_name(name.removesuffix(" (deleted)"))
        if sector_id is None:
            raise NodeError(f"{name!r} is not a sector file")
        return sector_id

    def ensure(self, ids: Iterable[bytes]) -> list[int]:
        """Make the files that are missing, empty, and return the size of each in bytes.

        9 us for a file that is made and 1.5 us for one that is there.
        """
        sizes = []
        with _doing("cannot make a sector file"):
            for sector_id in ids:
                name = _name(sector_id)
                try:
                    sizes.append(os.stat(name, dir_fd=self._dirfd).st_size)
                except FileNotFoundError:
                    with contextlib.suppress(FileExistsError):
                        os.mknod(name, stat.S_IFREG | _UNSETTLED, dir_fd=self._dirfd)
                        self.made += 1
                    sizes.append(0)
        return sizes

    def missing(self, ids: Iterable[bytes]) -> int:
        """Return how many files `ensure` would make."""
        with _doing("cannot look at a sector file"):
            return sum(not self._exists(sector_id) for sector_id in ids)

    def _exists(self, sector_id: bytes) -> bool:
        try:
            os.stat(_name(sector_id), dir_fd=self._dirfd)
        except FileNotFoundError:
            return False
        return True

    def size(self, sector_id: bytes) -> int:
        """Return the bytes that a sector's file has; 0 if there is no file."""
        with _doing("cannot look at a sector file"):
            try:
                return os.stat(_name(sector_id), dir_fd=self._dirfd).st_size
            except FileNotFoundError:
                return 0

    def is_settled(self, sector_id: bytes) -> bool:
        """Return whether a sector was whole, and written to the disk as such."""
        with _doing("cannot look at a sector file"):
            try:
                return stat.S_IMODE(os.stat(_name(sector_id), dir_fd=self._dirfd).st_mode) == (
                    _SETTLED
                )
            except FileNotFoundError:
                return False

    def written_ns(self, sector_id: bytes) -> int:
        """Return when a sector's file was written to last, by whomever; 0 if there is none."""
        with _doing("cannot look at a sector file"):
            try:
                return os.stat(_name(sector_id), dir_fd=self._dirfd).st_mtime_ns
            except FileNotFoundError:
                return 0

    def present(self, wanted: Mapping[bytes, int]) -> set[bytes]:
        """Return those of `wanted` (sector id to whole size in bytes) that are present."""
        return {
            sector_id
            for sector_id, whole in wanted.items()
            if state_of(self.size(sector_id), whole) is State.PRESENT
        }

    def open(self, sector_id: bytes, flags: int = os.O_RDONLY) -> int:
        """Return a descriptor of a sector's file.

        On a marked file, reading and writing through it raise events.
        """
        with _doing("cannot open the sector file"):
            return os.open(_name(sector_id), flags | os.O_CLOEXEC, dir_fd=self._dirfd)

    def settle(self, sector_id: bytes) -> None:
        """Write a present sector to the disk, unless it is there, so that it survives a power loss.

        Waits for the disk. The caller keeps `settle` and `empty` of one sector apart.
        """
        with _doing("cannot write a sector to the disk"):
            fd = os.open(_name(sector_id), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._dirfd)
            try:
                if os.fstat(fd).st_mode & (stat.S_IWUSR | stat.S_IXUSR) == stat.S_IWUSR:
                    os.fdatasync(fd)
                    os.fchmod(fd, _SETTLED)
            finally:
                os.close(fd)

    def empty(self, sector_id: bytes) -> None:
        """Make a sector absent.

        By truncate(2), which opens nothing: another process can hold up an open. On a marked file
        it raises an event of our own pid, and waits until somebody lets that through.
        """
        with _doing("cannot empty a sector file"):
            os.chmod(_name(sector_id), _UNSETTLED, dir_fd=self._dirfd)
            os.truncate(self.path(sector_id), 0)

    def remove(self, ids: Iterable[bytes]) -> None:
        """Delete sector files that no mount uses: a mount would keep the nameless file."""
        with _doing("cannot remove a sector file"):
            for sector_id in ids:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(_name(sector_id), dir_fd=self._dirfd)
                    self.made -= 1

    def sizes(self) -> Iterator[tuple[bytes, int]]:
        """Yield (sector id, size in bytes) of every file in the store, empty ones too."""
        with _doing("cannot read the sector store"):
            for entry in self._files():
                sector_id = _parse_name(entry.name)
                if sector_id is None:
                    continue
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    yield sector_id, entry.stat(follow_symlinks=False).st_size

    def free_bytes(self) -> int:
        """Return what the file system has free for us: 1 us."""
        with _doing("cannot look at the file system of the sector store"):
            found = os.fstatvfs(self._dirfd)
            return found.f_bavail * found.f_frsize

    def free_files(self) -> int | None:
        """Return how many files the file system can still make for us; None: it has no bound."""
        with _doing("cannot look at the file system of the sector store"):
            found = os.fstatvfs(self._dirfd)
            return found.f_favail if found.f_files else None

    def usage(self) -> Usage:
        """Return what the store holds; 3 us for each file."""
        held = [size for _, size in self.sizes() if size]
        return Usage(len(held), sum(held))

    def _files(self) -> Iterator[os.DirEntry[str]]:
        for shard in range(256):
            with os.scandir(self.directory / f"{shard:02x}") as entries:
                yield from entries


def _name(sector_id: bytes) -> str:
    digits = sector_id.hex()
    return f"{digits[:2]}/{digits}"


def _parse_name(name: str) -> bytes | None:
    """Return the sector id that a file name spells, or None."""
    return bytes.fromhex(name) if _SECTOR_NAME.fullmatch(name) else None


@contextlib.contextmanager
def _doing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise from_os_error(exc, what) from exc


def _lock(fd: int) -> None:
    """Lock the open lock file; wait a moment if the process that it names is dead.

    What a dead daemon held, its anchor lets go in a moment.

    Raises:
        BlockingIOError: a process that lives has it.
    """
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _lives(_holder(fd)) or time.monotonic() > deadline:
                raise
            time.sleep(_LOCK_TICK_S)
        else:
            return


def _holder(fd: int) -> str:
    return os.pread(fd, 32, 0).decode(errors="replace").strip()


def _lives(pid: str) -> bool:
    """Return whether a process may be alive, or its number is not known."""
    try:
        pidfd = os.pidfd_open(int(pid))
    except (ValueError, OSError) as exc:
        return not isinstance(exc, ProcessLookupError)
    try:
        return not is_readable(pidfd)
    finally:
        os.close(pidfd)


def _is_formatted(root: Path) -> bool:
    """Return whether `root` is a store of our layout already.

    Raises:
        NodeError: it is a store of another layout.
    """
    try:
        found = json.loads((root / "format.json").read_text())
    except FileNotFoundError:
        return False
    except ValueError:
        found = None
    if found != _FORMAT:
        raise NodeError(
            f"{root} is not a sector store of layout version {_FORMAT['version']}",
            hint="choose another --root, or remove this one",
        )
    return True


def _format(root: Path) -> None:
    """Lay out a new store. The format file comes last: what has it is complete."""
    directory = root / "sectors"
    for shard in range(256):
        (directory / f"{shard:02x}").mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)  # made as a parent, it has the default mode
    _sync(directory)
    _write_durably(root / "format.json", json.dumps(_FORMAT))


def _read_or_none(path: Path) -> str | None:
    """Return the text of a file; None if there is none, or it was torn by a power loss."""
    try:
        return path.read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _write_durably(path: Path, text: str) -> None:
    """Replace the contents of `path`: after a crash it has the old or the new text."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text)
        _sync(scratch)
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _overwrite(path: Path, text: str) -> None:
    """Put `text` in the place of as many bytes, with no new space; a power loss can tear it."""
    with path.open("r+") as file:
        file.write(text)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _require_filesystem(root: Path, accepted: frozenset[str]) -> None:
    """Raise NodeError unless `root` lies on one of the `accepted` kinds of file system."""
    kind = filesystem_of(root)
    if kind not in accepted:
        raise NodeError(
            f"the sector store {root} is on {kind}, which cannot say when a file is read",
            hint="choose a --root on ext4, xfs or btrfs",
        )


def filesystem_of(path: Path) -> str:
    """Return the type of the file system that holds `path`, such as ``ext4``.

    By the mount that the kernel names for the open path: device numbers do not tell on btrfs and
    overlayfs, and the longest prefix of mountinfo can be hidden by another mount.

    Source: proc_pid_fdinfo(5), proc_pid_mountinfo(5).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    mount_id = next(line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:"))
    for mount in read_mountinfo():
        if mount.number == int(mount_id):
            return mount.kind.decode()
    return "an unknown file system"

# SPDX-License-Identifier: Apache-2.0
"""A fanotify group: marks on sector files, events before their bytes are read, answers.

Owns the group's descriptor and the layout of events. Does not know what a sector is, and decides
nothing: the fetcher says what is marked and how an event is answered.
Invariant: parsing is pure; a method does one thing to the kernel and never waits for an event.

Facts about such events (Linux 6.18; tests/privileged/test_device_events.py has a test for each):

*Kinds*
  * FAN_PRE_ACCESS (Linux >= 6.14, EINVAL before) says which range is read; files on ext4, xfs and
    btrfs only, EOPNOTSUPP elsewhere.
  * FAN_ACCESS_PERM (6.12 and 6.13; file-backed EROFS begins with 6.12) says no range: the sector
    has to be whole before the answer. Writes and truncates raise none. All else below holds, too;
    marks of either kind need CAP_SYS_ADMIN.
*Marks*
  * A file raises events only if a mark was on it when it was opened, by EROFS in our case. So
    every sector is marked before the mount and the present ones are unmarked after it; a mark
    that is added again later works.
  * A mark costs 2 us and the memory of its inode, 100,000 are no problem (FAN_UNLIMITED_MARKS).
  * Unmarking does not let go a read that waits, and a read that comes after it finds what the
    file has: unmark when it is whole, then answer.
*Events*
  * Every read of the sector file: read(2), page faults (mmap, exec), sendfile of the EROFS file.
    The range is the read that EROFS does: whole 4 KiB pages, 128 KiB at most, more than what was
    asked for by readahead and less where EROFS splits it. It never reads beyond the range, so a
    verified prefix that covers ``offset + count`` is enough.
  * One process reads a page, others wait for the page and raise no event. If that process is
    killed, the next one raises an event of its own.
  * A reader that waits is killable. Its event leaves the queue; if it was read, it stays ours,
    with its descriptor, until we answer, and nothing says that nobody waits for that.
  * Our own reads, writes and truncates of a marked file raise events too and wait for an answer,
    but not through an event's descriptor, nor through one opened before the first mark or by way
    of a mount that the group ignores. Opening with O_TRUNC, chmod, fdatasync, stat and unlink
    raise none. So: write through an event's descriptor or by way of such a mount, answer an event
    of our own pid at once (truncate(2) by a path), and never hold what the loop needs.
  * A page fault holds the GIL, and subprocess.Popen waits for the exec of its child: the process
    that serves must do neither on its own mount, in no thread.
  * Reading an event opens its file. With no descriptor left, that event is denied: what is not
    read waits.
*Answers*
  * Are matched by the *number* of the descriptor. A descriptor that was sent to another process
    fills the file as well as ours, and who holds the group can answer for who has read the event.
    Two events can have the same number only if two processes read from the group: a new reader
    answers those of the dead one first, or one process reads and others fill.
  * An event that a process has read before it died is not delivered again.
  * FAN_DENY gives EIO through EROFS whatever errno goes with it, SIGBUS for a page fault. When it
    hits readahead, the page that is needed is asked for once more, and twice for a page fault.
    Nothing is remembered: the next read asks again.
*The group*
  * Lives until its last descriptor is closed, in whatever process: by fork, SCM_RIGHTS or
    pidfd_getfd(2). Then what waits is let through and fails with EIO, see erofsmount.py, and a
    new group on the same files serves the same mounts on.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from firstread.device import syscalls
from firstread.device.base import WHOLE_SECTOR
from firstread.errors import NodeError, from_os_error

FAN_PRE_ACCESS = 0x00100000
FAN_ACCESS_PERM = 0x00020000
FAN_Q_OVERFLOW = 0x00004000
NO_FD = -1

_FAN_CLOEXEC = 0x01
_FAN_NONBLOCK = 0x02
_FAN_CLASS_PRE_CONTENT = 0x08
_FAN_UNLIMITED_QUEUE = 0x10
_FAN_UNLIMITED_MARKS = 0x20
_FAN_MARK_IGNORE_SURV = 0x400 | 0x40
_FAN_ALLOW = 0x01
_FAN_DENY = 0x02

_METADATA_VERSION = 3
_INFO_TYPE_RANGE = 6
_METADATA = struct.Struct("=IBBHQii")  # event_len, vers, reserved, metadata_len, mask, fd, pid
_INFO = struct.Struct("=BBH")  # info_type, pad, len
_RANGE = struct.Struct("=BBHIQQ")  # info header, pad, offset, count
_RESPONSE = struct.Struct("=iI")  # fd, response

WHOLE_SECTORS = "FIRSTREAD_WHOLE_SECTORS"  # in the environment: ask as a kernel without ranges

EVENT_BYTES = _METADATA.size + _RANGE.size
"""What one event with a range takes in the buffer on Linux 6.18."""


@dataclass(slots=True)
class Event:
    """One read that waits.

    Args:
        fd: our descriptor of the sector file, open for writing; writing through it raises no
            event. Its number is what the answer names. `NO_FD` for a queue overflow.
        pid: the process that reads; our own for a truncate or a write of ours.
        mask: `FAN_PRE_ACCESS`, `FAN_ACCESS_PERM` or `FAN_Q_OVERFLOW`.
        offset: first byte that is wanted.
        count: bytes that are wanted; 0 for a truncate, `WHOLE_SECTOR` if the kernel does not say.
    """

    fd: int
    pid: int
    mask: int
    offset: int
    count: int


def parse_events(buffer: memoryview | bytes) -> list[Event]:
    """Return the events in what read(2) of a group gave, oldest first.

    Unknown information records are skipped. Ends at the end of `buffer` or at a zero length, so
    that a zeroed buffer can be parsed again without knowing how much was read into it.

    Raises:
        NodeError: the kernel speaks another version of the protocol, or a length is impossible.

    Source: include/uapi/linux/fanotify.h.
    """
    events = []
    position, end = 0, len(buffer)
    while end - position >= _METADATA.size:
        length, version, _, head, mask, fd, pid = _METADATA.unpack_from(buffer, position)
        if length == 0:
            break
        if version != _METADATA_VERSION:
            raise NodeError(f"the kernel sends fanotify events of version {version}, not 3")
        if not _METADATA.size <= head <= length <= end - position:
            raise NodeError(f"the kernel sent a fanotify event of impossible length {length}")
        if mask & FAN_ACCESS_PERM:
            offset, count = 0, WHOLE_SECTOR
        else:
            offset, count = _range(buffer, position + head, position + length)
        events.append(Event(fd, pid, mask, offset, count))
        position += length
    return events


def _range(buffer: memoryview | bytes, position: int, end: int) -> tuple[int, int]:
    """Return (offset, count) of the range record between `position` and `end`, or (0, 0)."""
    while end - position >= _INFO.size:
        kind, _, length = _INFO.unpack_from(buffer, position)
        if kind == _INFO_TYPE_RANGE and _RANGE.size <= length <= end - position:
            *_, offset, count = _RANGE.unpack_from(buffer, position)
            return offset, count
        position += max(length, _INFO.size)
    return 0, 0


def is_group(fd: int) -> bool:
    """Return whether a descriptor is one of a group."""
    return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[fanotify]"


class Group:
    """A notification group.

    Closing its last descriptor, in whatever process, lets every waiting read go on.

    Args:
        fd: descriptor of the group, as `open` made or as inherited; owned from now on.
        whole: its events say no range; if None, as the kernel has it.
    """

    def __init__(self, fd: int, *, whole: bool | None = None) -> None:
        self._fd, self._whole = fd, whole

    @classmethod
    def open(cls, *, whole: bool | None = None) -> Self:
        """Make a new group.

        Args:
            whole: its events are to say no range.

        Raises:
            NodeError: not root, or the kernel has no such events.
        """
        flags = _FAN_CLASS_PRE_CONTENT | _FAN_CLOEXEC | _FAN_NONBLOCK
        flags |= _FAN_UNLIMITED_QUEUE | _FAN_UNLIMITED_MARKS
        try:
            return cls(syscalls.fanotify_init(flags, os.O_RDWR | os.O_CLOEXEC), whole=whole)
        except OSError as exc:
            raise _explained(exc, "cannot make a fanotify group") from exc

    @classmethod
    def adopt(cls, pid: int, fd: int) -> Self:
        """Duplicate the group that process `pid` holds as its descriptor `fd`.

        Raises:
            NodeError: the process has ended, or we may not.
        """
        try:
            pidfd = os.pidfd_open(pid)
            try:
                return cls(syscalls.pidfd_getfd(pidfd, fd))
            finally:
                os.close(pidfd)
        except OSError as exc:
            raise from_os_error(exc, f"cannot take the fanotify group of process {pid}") from exc

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def asks_for_sectors(self) -> bool:
        """Whether events say no range, so that a sector has to be whole before the answer."""
        if self._whole is None:
            self._whole = WHOLE_SECTORS in os.environ or not self._knows_ranges()
        return self._whole

    def _knows_ranges(self) -> bool:
        """Return whether the kernel knows `FAN_PRE_ACCESS`.

        Source: fs/notify/fanotify/fanotify_user.c: unknown bits of a mask are EINVAL before
        anything else is looked at; a mark that does not exist is ENOENT.
        """
        try:
            syscalls.fanotify_mark(
                self._fd, syscalls.FAN_MARK_REMOVE, FAN_PRE_ACCESS, syscalls.AT_FDCWD, b"/"
            )
        except OSError as exc:
            return exc.errno != errno.EINVAL
        return True

    @property
    def _mask(self) -> int:
        return FAN_ACCESS_PERM if self.asks_for_sectors else FAN_PRE_ACCESS

    def mark(self, fd: int) -> None:
        """Ask for events of the open file `fd`. Marking again changes nothing.

        Raises:
            NodeError: its file system cannot give such events.
        """
        self._add(fd, None)

    def mark_names(self, dirfd: int, names: Iterable[bytes]) -> None:
        """`mark` for each of `names` below the directory `dirfd`: 2 us each, 60,000 in 0.12 s.

        Raises:
            NodeError: as `mark`, or a file is missing.
        """
        for name in names:
            self._add(dirfd, name)

    def mark_mount(self, directory: Path, *, ignore: bool = False) -> int:
        """Mount a directory anew, and ask for events of all files that are opened by way of that.

        A file that is open by way of another mount raises none.

        Args:
            directory: which.
            ignore: ask for none of them instead, though the files have marks: what one mark of a
                group ignores, its others do not see (fs/notify/fanotify/fanotify.c,
                fanotify_group_event_mask).

        Returns:
            a descriptor of the directory in the new mount, which has no other place.

        Raises:
            NodeError: as `mark`, or it cannot be mounted.
        """
        flags = syscalls.FAN_MARK_ADD | syscalls.FAN_MARK_MOUNT | _FAN_MARK_IGNORE_SURV * ignore
        try:
            fd = syscalls.clone_mount(os.fsencode(directory))
        except OSError as exc:
            raise from_os_error(exc, f"cannot mount {directory}") from exc
        try:
            # By name: a descriptor of a detached mount is O_PATH, which the call does not take.
            syscalls.fanotify_mark(self._fd, flags, self._mask, fd, b".")
        except OSError as exc:
            os.close(fd)
            raise _explained(exc, "cannot watch the sector files") from exc
        return fd

    def unmark(self, fd: int) -> None:
        """Ask for no more events of the open file `fd`. A mark that is not there is no error.

        Reads that wait already go on waiting for their answer.
        """
        self._remove(fd, None)

    def unmark_names(self, dirfd: int, names: Iterable[bytes]) -> None:
        """`unmark` for each of `names` below the directory `dirfd`."""
        for name in names:
            self._remove(dirfd, name)

    def _add(self, dirfd: int, name: bytes | None) -> None:
        try:
            syscalls.fanotify_mark(self._fd, syscalls.FAN_MARK_ADD, self._mask, dirfd, name)
        except OSError as exc:
            exc.filename = name
            raise _explained(exc, "cannot watch the sector file") from exc

    def _remove(self, dirfd: int, name: bytes | None) -> None:
        try:
            syscalls.fanotify_mark(self._fd, syscalls.FAN_MARK_REMOVE, self._mask, dirfd, name)
        except FileNotFoundError:
            pass  # no such mark, or no such file: either way there are no events
        except OSError as exc:
            exc.filename = name
            raise _explained(exc, "cannot stop watching the sector file") from exc

    def read(self, buffer: memoryview) -> list[Event]:
        """Return the events that wait, as many as fit into `buffer`; [] if none does.

        Each carries a descriptor that the caller now owns.

        Args:
            buffer: at least 256 bytes; what was read stays in it.

        Raises:
            NodeError: as `parse_events`, or too many descriptors are open (that reader gets EIO).
        """
        try:
            size = os.readv(self._fd, [buffer])
        except BlockingIOError:
            return []
        except OSError as exc:
            raise _explained(exc, "cannot read fanotify events") from exc
        return parse_events(buffer[:size])

    def read_one(self, buffer: memoryview) -> list[Event]:
        """Return the oldest event that waits; [] if none does. Otherwise as `read`.

        More than one only on a kernel whose events are longer than those of Linux 6.18.
        """
        least = _METADATA.size if self.asks_for_sectors else EVENT_BYTES
        try:
            return self.read(buffer[: 2 * least - 1])
        except NodeError as exc:
            if getattr(exc.__cause__, "errno", 0) != errno.EINVAL:
                raise
            return self.read(buffer)

    def has_marks(self) -> bool:
        """Return whether any file is marked: not so in a group that is new.

        Source: proc_pid_fdinfo(5); the lines of marks follow three of the descriptor and the group.
        """
        with open(f"/proc/self/fdinfo/{self._fd}", "rb") as info:
            return b"\nfanotify ino:" in info.read(4096)

    def answer(self, number: int, *, allow: bool = True) -> bool:
        """Let the read behind descriptor `number` go on, or fail with EIO.

        The kernel looks for the number only: whoever holds the group can answer an event that
        another process has read, and the descriptor must not be closed before.

        Returns:
            False if no event with that number waits for an answer.
        """
        try:
            os.write(self._fd, _RESPONSE.pack(number, _FAN_ALLOW if allow else _FAN_DENY))
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise from_os_error(exc, "cannot answer a fanotify event") from exc
        return True

    def finish(self, fds: Sequence[int], *, allow: bool = True) -> None:
        """`answer` each event of ours and close its descriptor: in this order."""
        for fd in fds:
            try:
                self.answer(fd, allow=allow)
            finally:
                os.close(fd)


def _explained(exc: OSError, doing: str) -> NodeError:
    """Map what fanotify(7) says to an error with the remedy."""
    hint = {
        errno.EPERM: "run as root",
        errno.ENOSYS: "use a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS",
        errno.EINVAL: "use Linux 6.12 or later with CONFIG_FANOTIFY_ACCESS_PERMISSIONS",
        errno.EOPNOTSUPP: "put the sector store on ext4, xfs or btrfs",
        errno.EMFILE: "raise the limit of open files, or fs.fanotify.max_user_groups",
    }.get(exc.errno or 0)
    error = from_os_error(exc, doing)
    error.hint = hint or error.hint
    return error

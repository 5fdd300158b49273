# SPDX-License-Identifier: Apache-2.0
"""The system calls that Python's os module does not have, as typed functions.

Owns numbers, argument types and the turning of errno into OSError. Knows nothing of sectors or
images. Invariant: a function here returns a value that worked, or raises OSError.

Facts about these system calls:

* glibc has wrappers for fsopen(2) and its family from 2.36 on, musl none: they go through
  syscall(2). Their numbers are the same on every architecture but alpha.
* fsconfig(2) takes string values of at most 255 bytes; a longer one is EINVAL.
* fanotify_mark(2) has a 64-bit mask: without argument types ctypes would pass 32 bits.
* A call through ctypes costs about 0.5 us and releases the GIL.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from typing import Any

AT_FDCWD = -100

FAN_MARK_ADD = 0x01
FAN_MARK_REMOVE = 0x02
FAN_MARK_MOUNT = 0x10

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04

MNT_FORCE = 0x01
MNT_DETACH = 0x02
UMOUNT_NOFOLLOW = 0x08

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000

FSCONFIG_STRING_BYTES = 255
"""Longest value that fsconfig(2) takes."""

_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_IDLE = 3 << 13  # class, in include/uapi/linux/ioprio.h
_CLONE_FILES = 0x400
_CLOEXEC = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_OPEN_TREE_CLONE = 1
_MESSAGE_BYTES = 1024
_BPF_INSTRUCTION_BYTES = 8

_libc = ctypes.CDLL(None, use_errno=True)
_INT, _UINT, _LONG, _STR = ctypes.c_int, ctypes.c_uint, ctypes.c_long, ctypes.c_char_p


def oserror(path: bytes | str | None = None) -> OSError:
    """Return the errno of the last call in this thread as an OSError about `path`."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def _check(result: Any, _function: object, _arguments: object) -> Any:
    if result < 0:
        raise oserror()
    return result


def _function(symbol: str, result: Any, *arguments: Any) -> Any:
    """Return the C library's `symbol` with these types; it raises OSError when it fails."""
    function = ctypes.CFUNCTYPE(result, *arguments, use_errno=True)((symbol, _libc))
    function.errcheck = _check
    return function


_fanotify_init = _function("fanotify_init", _INT, _UINT, _UINT)
_fanotify_mark = _function("fanotify_mark", _INT, _INT, _UINT, ctypes.c_uint64, _INT, _STR)
_umount2 = _function("umount2", _INT, _STR, _INT)
_move_mount = _function("syscall", _LONG, _LONG, _INT, _STR, _INT, _STR, _UINT)
_open_tree = _function("syscall", _LONG, _LONG, _INT, _STR, _UINT)
_fsopen = _function("syscall", _LONG, _LONG, _STR, _UINT)
_fsconfig = _function("syscall", _LONG, _LONG, _INT, _UINT, _STR, _STR, _INT)
_fsmount = _function("syscall", _LONG, _LONG, _INT, _UINT, _UINT)
_cachestat = _function("syscall", _LONG, _LONG, _INT, ctypes.c_void_p, ctypes.c_void_p, _UINT)
_pidfd_getfd = _function("syscall", _LONG, _LONG, _INT, _INT, _UINT)
_unshare = _function("unshare", _INT, _INT)
_setns = _function("setns", _INT, _INT, _INT)
_prctl = _function("prctl", _INT, _INT, *[ctypes.c_ulong] * 4)
_capset = _function("capset", _INT, _STR, _STR)
_clone = _function("syscall", _LONG, _LONG, *[ctypes.c_ulong] * 5)
_seccomp = _function("syscall", _LONG, _LONG, _UINT, _UINT, _STR)
_ioprio_set = _function("syscall", _LONG, _LONG, _INT, _INT, _INT)

# The calls whose number depends on the architecture: all that are older than pidfd_send_signal.
NUMBERS = {
    "x86_64": {"clone": 56, "ioprio_set": 251, "seccomp": 317},
    "aarch64": {"clone": 220, "ioprio_set": 30, "seccomp": 277},
}
_OURS = NUMBERS.get(os.uname().machine, NUMBERS["x86_64"])
_SYS_CLONE = _OURS["clone"]
_SYS_IOPRIO_SET = _OURS["ioprio_set"]
_SYS_SECCOMP = _OURS["seccomp"]
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_PIDFD_GETFD = 438
_SYS_CACHESTAT = 451  # Linux >= 6.5


def fanotify_init(flags: int, event_flags: int) -> int:
    """Return the descriptor of a new notification group."""
    return int(_fanotify_init(flags, event_flags))


def fanotify_mark(group: int, flags: int, mask: int, dirfd: int, path: bytes | None) -> None:
    """Add or remove a mark on `path` below `dirfd`, or on `dirfd` itself if `path` is None."""
    _fanotify_mark(group, flags, mask, dirfd, path)


def fsopen(filesystem: str) -> int:
    """Return the descriptor of a new, empty file system context."""
    return int(_fsopen(_SYS_FSOPEN, filesystem.encode(), _CLOEXEC))


def fsconfig_string(context: int, key: str, value: bytes) -> None:
    """Set an option of the context; one that may be given several times is added to."""
    _fsconfig(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, key.encode(), value, 0)


def fsconfig_flag(context: int, key: str) -> None:
    """Set an option that has no value."""
    _fsconfig(_SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, key.encode(), None, 0)


def fsconfig_create(context: int) -> None:
    """Make the superblock: the kernel opens and reads the sources now."""
    _fsconfig(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)


def fscontext_messages(context: int) -> list[str]:
    """Return and use up what the context has to say, oldest first: one message per read(2)."""
    messages: list[str] = []
    while True:
        try:
            line = os.read(context, _MESSAGE_BYTES)
        except OSError as exc:
            if exc.errno == errno.ENODATA:
                return messages
            raise
        # "e erofs: …": severity (e, w, i), then the text.
        messages.append(line.decode(errors="replace").strip().partition(" ")[2])


def fsmount(context: int, attributes: int) -> int:
    """Return the descriptor of a detached mount; closing it unmounts what was not moved."""
    return int(_fsmount(_SYS_FSMOUNT, context, _CLOEXEC, attributes))


def move_mount(mount: int, mountpoint: bytes) -> None:
    """Attach a detached mount to the tree."""
    _move_mount(_SYS_MOVE_MOUNT, mount, b"", AT_FDCWD, mountpoint, _MOVE_MOUNT_F_EMPTY_PATH)


def clone_mount(directory: bytes) -> int:
    """Return the descriptor of a detached mount of a directory, as ``mount --bind`` would make."""
    return int(_open_tree(_SYS_OPEN_TREE, AT_FDCWD, directory, _OPEN_TREE_CLONE | os.O_CLOEXEC))


def umount2(mountpoint: bytes, flags: int) -> None:
    """Detach the topmost mount at `mountpoint`."""
    _umount2(mountpoint, flags)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """Return a duplicate of descriptor `fd` of another process."""
    return int(_pidfd_getfd(_SYS_PIDFD_GETFD, pidfd, fd, 0))


def fork_sharing_files() -> int:
    """Do fork(2), but share the table of descriptors; call it in a process with one thread."""
    return int(_clone(_SYS_CLONE, _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0))


def unshare(kinds: int) -> None:
    """Give this process new namespaces of these kinds."""
    _unshare(kinds)


def setns(fd: int, kind: int) -> None:
    """Join the namespace of this kind that a descriptor names."""
    _setns(fd, kind)


def prctl(option: int, argument: int) -> int:
    """Ask or tell something of this thread."""
    return int(_prctl(option, argument, 0, 0, 0))


def capset(header: bytes, data: bytes) -> None:
    """Set the capabilities of this thread."""
    _capset(header, data)


def seccomp(operation: int, flags: int, program: bytes) -> None:
    """Install a filter of system calls, classic BPF, for this thread and what it starts."""
    code = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _BPF_INSTRUCTION_BYTES
    _seccomp(_SYS_SECCOMP, operation, flags, struct.pack("@HP", count, ctypes.addressof(code)))


def cachestat(fd: int, offset: int = 0, length: int = 0) -> tuple[int, int]:
    """Return (pages, dirty pages) that the page cache holds of a range of an open file.

    Those on their way to the disk count as dirty. A length of 0 means all behind the offset.
    """
    part = (ctypes.c_uint64 * 2)(offset, length)  # struct cachestat_range
    found = (ctypes.c_uint64 * 5)()  # struct cachestat
    _cachestat(_SYS_CACHESTAT, fd, ctypes.byref(part), ctypes.byref(found), 0)
    cached, dirty, writeback, *_ = found
    return cached, dirty + writeback


def set_io_priority(*, idle: bool) -> None:
    """Have the disk serve this thread when nobody else needs it, or as usual again."""
    _ioprio_set(_SYS_IOPRIO_SET, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE if idle else 0)

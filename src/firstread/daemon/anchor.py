# SPDX-License-Identifier: Apache-2.0
"""The anchor: holds the fanotify group, and every event that was read, while no daemon lives.

Owns a process that only waits for its supervisor to end, and how the next daemon takes over its
descriptors. Thanks to it, the death of supervisor and fetcher at once fails no read: reads wait for
the next daemon. If none comes for a configured time, the anchor denies the waiting reads and ends.

A supervisor makes its anchor after it has loaded everything, and before it reads the first event:
so they share nearly all of their memory, except pages that the supervisor writes to later. A
systemd service has no anchor: systemd keeps the group.

Facts about a shared descriptor table (clone(2), CLONE_FILES; Linux 6.18):

* A descriptor that one process opens is open in the other at once, under the same number, even the
  file of an event that was read(2) a moment before SIGKILL. So no event is lost, recorded or not.
* execve(2) gives a process its own copy of the table: after it a supervisor makes a new anchor.
* Descriptors that only the dead process needed stay open, too. The anchor closes them: otherwise
  the lock of the store stays held, and the other end of a channel never hears of the death.
* The working directory is not shared (no CLONE_FS). It tells whose anchor a process is, without a
  record that could be missing or stale.

Facts about control groups (cgroups(7), version 2): ``cgroup.kill`` ends every process of a group;
container runtimes end a pod that way. The anchor moves to the root of the hierarchy, if it may. In
a cgroup namespace it may not where the hierarchy is mounted with nsdelegate.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from firstread.daemon.protocol import BUFFER_FD, GROUP_FD, LOCK_FD, SECRETS_FD
from firstread.device import syscalls
from firstread.device.descriptors import copies, is_connection
from firstread.device.fanotify import NO_FD, Group
from firstread.errors import NodeError
from firstread.mountinfo import parse_mountinfo
from firstread.readable import is_readable

NAME = "firstread-hold"  # at most 15 bytes (TASK_COMM_LEN)
KEPT = {"group": GROUP_FD, "events": BUFFER_FD, "secrets": SECRETS_FD}
READY_S = 10.0  # for a new anchor to say that it holds
END_S = 10.0  # for one that is killed to be gone

_BUFFER_BYTES = 4096
_FAILED = b"-"


# -- the anchor's own process ----------------------------------------------------------------------


def cast(root: str, seconds: float) -> int:
    """Leave a process that holds what this one holds, from now on and after its death.

    Call it in a process with one thread. Returns in the caller only.

    Args:
        root: of the store.
        seconds: that the anchor waits for another daemon once this process has ended.

    Returns:
        its process number.

    Raises:
        OSError, ValueError: it cannot be made.
    """
    server = os.getpid()
    gc.freeze()  # no collection of ours is to write to what we share with it
    source, sink = os.pipe()
    try:
        between = syscalls.fork_sharing_files()
        if between == 0:
            _become_anchor(server, root, seconds, sink)
        os.waitpid(between, 0)  # the anchor is nobody's child: it outlives who made it
        is_readable(source, READY_S)
        os.set_blocking(source, False)
        answer = os.read(source, 16)
        if answer == _FAILED:
            raise OSError(errno.EAGAIN, "it cannot be made now")
        return int(answer)
    finally:
        os.close(source)
        os.close(sink)


def _become_anchor(server: int, root: str, seconds: float, sink: int) -> NoReturn:
    """Hold in a grandchild; never returns to what the caller of `cast` was doing."""
    answer = _FAILED  # the caller has the other end, too: it would wait for nothing
    try:
        try:
            if syscalls.fork_sharing_files():
                os._exit(0)
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            os.setsid()
            os.chdir(root)
            for name, text in (("comm", NAME), ("oom_score_adj", "-1000")):
                _tell_kernel(f"/proc/self/{name}", text)
            _leave_control_group()
            answer = b"%d" % os.getpid()
        finally:
            os.write(sink, answer)
        _hold(server, seconds)
    finally:
        os._exit(0)


def _hold(server: int, seconds: float) -> None:
    """Wait for the end of the supervisor, and then for our own."""
    with contextlib.suppress(ProcessLookupError):
        is_readable(os.pidfd_open(server), None)
    for number in _open_numbers():
        if not _is_kept(number):
            os.close(number)
    time.sleep(seconds)
    _deny_all()


def _is_kept(number: int) -> bool:
    """Return whether a descriptor may be one that the next daemon needs."""
    if number in KEPT.values():
        return True
    try:
        regular = stat.S_ISREG(os.fstat(number).st_mode)
    except OSError:
        return True  # it was of the listing itself
    return (regular or is_connection(number)) and number > 2 and number != LOCK_FD


def _deny_all() -> None:
    """Let all reads that wait fail: those that were read as events, and those that were not."""
    group = Group(GROUP_FD)
    for number in _open_numbers():
        with contextlib.suppress(NodeError):  # it is no event
            group.answer(number, allow=False)
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    while events := group.read(buffer):
        group.finish([event.fd for event in events if event.fd != NO_FD], allow=False)


def _open_numbers(pid: int | str = "self") -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{pid}/fd")]


def _tell_kernel(path: str, text: str) -> None:
    with contextlib.suppress(OSError):  # not allowed: the anchor is worth less, not worthless
        Path(path).write_text(text)


def _leave_control_group() -> None:
    """Go to the root of the hierarchy of version 2: the highest that we see, or process 1 does.

    Source: cgroups(7); proc_pid_mountinfo(5).
    """
    for process, root in (("self", ""), ("1", "/proc/1/root")):
        with contextlib.suppress(OSError), open(f"/proc/{process}/mountinfo", "rb") as mounts:
            for mount in parse_mountinfo(mounts.read()):
                if mount.kind == b"cgroup2":
                    path = f"{root}{os.fsdecode(mount.place)}/cgroup.procs"
                    _tell_kernel(path, str(os.getpid()))


# -- those who find it -----------------------------------------------------------------------------


def anchors(root: str) -> Iterator[int]:
    """Yield the process numbers of the anchors of a store.

    They are more than one for a moment, while one takes the place of another.

    Args:
        root: of the store.
    """
    for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
        with contextlib.suppress(OSError):
            if is_anchor(pid) and os.path.samefile(f"/proc/{pid}/cwd", root):
                yield pid


def is_anchor(pid: int) -> bool:
    """Return whether a process is an anchor, of whatever store."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            return comm.read().strip() == NAME.encode()
    except OSError:
        return False


def descriptors(pids: Iterable[int]) -> dict[str, int]:
    """Return, as ours, what these `anchors` hold of `KEPT`; they go on holding it, too.

    An anchor that we may not look into, or that has just ended, has left nothing. Move these where
    they belong before `files` can come to lie there.
    """
    found: dict[str, int] = {}
    for pid in pids:
        wanted = {KEPT[name]: name for name in KEPT.keys() - found.keys()}
        found |= {wanted[number]: fd for number, fd in copies(pid, wanted).items()}
    return found


def highest(pids: Iterable[int]) -> int:
    """Return the highest number of a descriptor that these `anchors` hold; 0 for none."""
    most = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            most = max(most, *_open_numbers(pid))
    return most


def files(root: str, pids: Iterable[int], known: Iterable[int] = ()) -> dict[int, int]:
    """Return the sector files of events that `anchors` hold, as descriptors of ours.

    Args:
        root: of the store.
        pids: of its anchors.
        known: numbers of events whose files are not needed.

    Returns:
        the files, by the number of the event.
    """
    sectors = os.path.join(os.path.realpath(root), "sectors", "")
    found: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            others = set(_open_numbers(pid)) - {*known, *found, *KEPT.values()}
            found |= copies(pid, [n for n in others if _leads_to(pid, n, sectors)])
    return found


def _leads_to(pid: int, number: int, directory: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/{number}").startswith(directory)
    except OSError:
        return False


def retire(root: str, *, but: int = 0) -> None:
    """End the anchors of a store, because somebody else holds what they did, or nobody shall.

    Args:
        root: of the store.
        but: process number of one that stays.
    """
    for pid in anchors(root):
        if pid != but:
            end(pid)


def end(pid: int) -> None:
    """End an anchor; return when it is gone."""
    with contextlib.suppress(OSError):  # it is gone already
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            is_readable(pidfd, END_S)
        finally:
            os.close(pidfd)

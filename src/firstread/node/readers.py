# SPDX-License-Identifier: Apache-2.0
"""Which waiting reads have lost their reader.

Owns what /proc says of the processes that read. Invariant: a read is called gone only if it can be
proved; in doubt its reader lives.

Facts about readers that wait (Linux 6.18):

* The wait is killable, and nothing tells us that it ended: an event that was read stays in the
  kernel, with our descriptor, until it is answered, and the answer succeeds as any other.
* An event has the number of the process, not of the thread. A thread that waits ends only by a
  signal that ends the whole process, or by an execve(2) of another thread, which ends all threads
  but its own. So of one process no more reads can wait than it has threads, and those that an
  execve has ended are the oldest.
* The number is 0 if the process is in a PID namespace that we cannot see into.

Source: fs/notify/fanotify/fanotify.c (fanotify_get_response), fs/exec.c (de_thread).
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from firstread.node.filling import Waiter

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Reader(NamedTuple):
    """A process that reads.

    Args:
        threads: of it that live.
        started: monotonic seconds; earlier by up to a tick.
    """

    threads: int
    started: float


def look_at(pid: int) -> Reader | None:
    """Return what a process is; None if there is none.

    Source: proc_pid_stat(5).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name comes second, and can hold anything.
            fields = file.read(4096).rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, threads, ticks = fields[0], int(fields[17]), int(fields[19])
    suspended = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    # The first thread of a process stays, dead, until the others have ended and somebody waits.
    return Reader(threads - (state in b"ZX"), ticks * _TICK_S - suspended)


def may_have_read(pid: int, before: float) -> bool:
    """Return whether a process was there already at a time (monotonic seconds); False in doubt."""
    try:
        reader = look_at(pid) if pid > 0 else None
    except OSError:
        return False
    return reader is not None and reader.started <= before


def gone(waiters: Iterable[Waiter]) -> set[Waiter]:
    """Return those of `waiters` whose reader is gone: 15 us for each process.

    All waiters of a process should be among them.
    """
    by_pid: defaultdict[int, list[Waiter]] = defaultdict(list)
    for waiter in waiters:
        by_pid[waiter[0].pid].append(waiter)
    by_pid.pop(0, None)
    lost: set[Waiter] = set()
    for pid, its in by_pid.items():
        try:
            reader = look_at(pid)
        except OSError:
            continue
        if reader is None:
            lost.update(its)
            continue
        # Another process may have the number by now.
        own = [w for w in its if w[1] + 2 * _TICK_S >= reader.started]
        lost.update(w for w in its if w not in own)
        own.sort(key=lambda waiter: waiter[1])
        lost.update(own[: max(0, len(own) - reader.threads)])
    return lost


def sees_processes() -> bool:
    """Return whether /proc is of the PID namespace that events are numbered in."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False

# SPDX-License-Identifier: Apache-2.0
"""Pending reads whose reader is gone.

Owns what /proc says of processes that read. Invariant: a read is gone only if /proc proves it; in
doubt its reader lives.

Facts about readers that wait (Linux 6.18):

* The wait is killable, and nothing tells us that it ended: the kernel keeps an event that was read,
  with our descriptor, until we answer it, and takes that answer as any other.
* An event names the process, not the thread. A waiting thread ends only by a signal that ends the
  whole process, or by an execve(2) of another thread, which ends all threads but its own. So one
  process has no more waiting reads than threads, and an execve ends the oldest.
* The number is 0 if the process is in a PID namespace that we cannot see into.

Source: fs/notify/fanotify/fanotify.c (fanotify_get_response), fs/exec.c (de_thread).
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from firstread.cache.pending import PendingRead

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
    """Return whether a process had started by a time (monotonic seconds); False in doubt."""
    try:
        reader = look_at(pid) if pid > 0 else None
    except OSError:
        return False
    return reader is not None and reader.started + _TICK_S <= before


def gone(reads: Iterable[PendingRead]) -> set[PendingRead]:
    """Return those of `reads` whose reader is gone: 15 us for each process.

    All pending reads of a process should be among them.
    """
    by_pid: defaultdict[int, list[PendingRead]] = defaultdict(list)
    for read in reads:
        by_pid[read.pid].append(read)
    by_pid.pop(0, None)
    lost: set[PendingRead] = set()
    for pid, its in by_pid.items():
        try:
            reader = look_at(pid)
        except OSError:
            continue
        if reader is None:
            lost.update(its)
            continue
        # Another process may have the number by now.
        own = [read for read in its if read.came + 2 * _TICK_S >= reader.started]
        lost.update(set(its).difference(own))
        own.sort(key=lambda read: read.came)
        lost.update(own[: max(0, len(own) - reader.threads)])
    return lost


def sees_processes() -> bool:
    """Return whether /proc shows the PID namespace that numbers the readers of events."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False

# SPDX-License-Identifier: Apache-2.0
"""Tells whether a recorded process still runs.

Owns the identity of a process across restarts of its observer and of the host. Invariant: a reused
pid never passes for the process that had it before.

Source: proc_pid_stat(5), fields 3 and 22; random(4), ``boot_id``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec


class ProcessIdentity(msgspec.Struct, frozen=True):
    """A process, unique for all time.

    Args:
        pid: in our process namespace.
        start_ticks: start of the process, in clock ticks since boot.
        boot_id: of the running kernel.
    """

    pid: int
    start_ticks: int
    boot_id: str


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of a running process; None if it is missing, or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, can contain anything.
            fields = file.read().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if not fields or fields[0] in {b"Z", b"X"}:
        return None
    return ProcessIdentity(pid, int(fields[19]), _boot_id())


def is_alive(identity: ProcessIdentity) -> bool:
    """Return whether this very process still runs."""
    return identify(identity.pid) == identity


def open_process(identity: ProcessIdentity) -> int | None:
    """Return a pidfd of the process; None if it is gone."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if is_alive(identity):
        return descriptor
    os.close(descriptor)
    return None


def host_command_lines() -> Iterator[list[str]]:
    """Yield the arguments of every process in our own process namespace."""
    namespace = os.readlink("/proc/self/ns/pid")
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended
            if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    yield os.fsdecode(file.read()).split("\0")[:-1]


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()

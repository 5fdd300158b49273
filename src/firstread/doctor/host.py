# SPDX-License-Identifier: Apache-2.0
"""What the kernel and the machine give a node: limits, a clock, no virus scanners."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from firstread.daemon.handover import WANTED_FDS
from firstread.device.readahead import BDI, START_KIB, STEADY_KIB
from firstread.device.scanners import scanners
from firstread.doctor.finding import Finding, failed, passed, warned
from firstread.idmaps import owner

OPEN_FILES = WANTED_FDS  # reads that wait at a time, a descriptor each
FILE_MAX = 1_000_000  # sectors of all mounted images, a file each that the kernel holds
CROWDED = 0.8
CLOCK_FIX = "set the clock: timedatectl set-ntp true, or chronyc makestep"
_SINCE = 1_735_689_600  # 2025: a clock before that has not been set
_SYS = Path("/proc/sys/fs")


def check_clock() -> Finding:
    """Say whether the clock was ever set."""
    now = time.time()
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    return failed("clock", f"it says {text}", CLOCK_FIX) if now < _SINCE else passed("clock", text)


def check_read_ahead(directory: Path = BDI) -> Finding:
    """Say whether a node can set how far the kernel reads ahead in what it mounts."""
    name, fix = "read-ahead of mounts", "give the daemon a writable /sys: starts read less then"
    if owner():
        return warned(name, "it stays as the kernel has it: root alone may set it", "run as root")
    try:
        if os.statvfs(directory).f_flag & os.ST_RDONLY:
            return warned(name, f"{directory} is read-only: it stays as the kernel has it", fix)
    except OSError as exc:
        return warned(name, f"it stays as the kernel has it: {directory}: {exc.strerror}", fix)
    return passed(name, f"{START_KIB} KiB until a workload is ready, then {STEADY_KIB} KiB")


def check_limits() -> Iterator[Finding]:
    """Yield how many files, groups and mounts there may be, and are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield _at_least(
        "open files of a process",
        hard if hard != resource.RLIM_INFINITY else 1 << 30,
        OPEN_FILES,
        "each read that waits is one: raise the hard limit (ulimit -Hn, LimitNOFILE=)",
    )
    yield _at_least(
        "open files of the machine",
        _number(_SYS / "file-max"),
        FILE_MAX,
        "each sector of a mounted image is one: raise sysctl fs.file-max",
    )
    yield _room(
        "open files in use",
        _number(_SYS / "file-nr"),
        _number(_SYS / "file-max"),
        "raise sysctl fs.file-max",
    )
    yield _at_least(
        "fanotify groups",
        _number(_SYS / "fanotify/max_user_groups"),
        8,
        "a daemon needs one: raise sysctl fs.fanotify.max_user_groups",
    )
    mounts = len(Path("/proc/self/mountinfo").read_bytes().splitlines())
    yield _room("mounts", mounts, _number(_SYS / "mount-max"), "raise sysctl fs.mount-max")


def check_scanners() -> Finding:
    """Warn of processes that make others wait when they open a file."""
    name, found = "virus scanners", scanners()
    if not found:
        return passed(name, "none has permission events")
    some = ", ".join(f"{command} (pid {pid})" for pid, command in found[:3])
    if len(found) > 3:
        some += f" and {len(found) - 3} more"
    fix = "exclude --root, --run-dir and what firstread mounts from scanning (docs/node.md)"
    return warned(name, f"{some}: opens wait for it", fix)


def _number(path: Path) -> int:
    """Return the first number in a file of /proc; 0 if this kernel has no such file."""
    try:
        return int(path.read_text().split()[0])
    except OSError:
        return 0


def _at_least(name: str, value: int, enough: int, fix: str) -> Finding:
    if 0 < value < enough:
        return warned(name, f"{value:,}; {enough:,} are enough for a busy node", fix)
    return passed(name, f"{value:,}" if value else "no limit")


def _room(name: str, used: int, limit: int, fix: str) -> Finding:
    detail = f"{used:,} of {limit:,}"
    if not limit or used <= CROWDED * limit:
        return passed(name, detail)
    return warned(name, detail, fix) if used < limit else failed(name, detail, fix)

# SPDX-License-Identifier: Apache-2.0
"""Whether this machine has what a node needs beside the device: store, limits, a healthy daemon.

Owns what ``firstread doctor`` looks at and what it advises; changes nothing. Invariant: a check
gives its result as a `Check` whatever it finds; what is not there is a finding, no exception.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from firstread.config import DEFAULT_PATH, RegistryTable, load_config
from firstread.device.probe import Check
from firstread.device.scanners import scanners
from firstread.errors import FirstreadError, NodeError
from firstread.node.client import Client, socket_path
from firstread.node.confine import confined
from firstread.node.handover import WANTED_FDS
from firstread.node.mounts import mounted_erofs
from firstread.node.namespace import mount_namespace
from firstread.private import check_way
from firstread.units import GiB, MiB, counted, format_size

SCARCE_BYTES = 1 * GiB
LEAST_BYTES = 64 * MiB
OPEN_FILES = WANTED_FDS  # reads that wait at a time, a descriptor each
FILE_MAX = 1_000_000  # sectors of all mounted images, a file each that the kernel holds
CROWDED = 0.8
PATIENCE_S = 10.0  # for a daemon to answer: it looks at thousands of mounts in less

_SYS = Path("/proc/sys/fs")


Status = dict[str, Any] | FirstreadError | None
"""What a daemon says of itself, or why it does not; None if there is none."""


def daemon_status(run_dir: Path) -> Status:
    """Ask the daemon of a run directory."""
    client = Client(run_dir, PATIENCE_S)
    if not client.alive() and not client.closed_to_us():
        return None
    try:
        status: dict[str, Any] = client.get("/status")
    except FirstreadError as exc:
        return exc
    return status


def check_node(root: Path, run_dir: Path, status: Status) -> Iterator[Check]:
    """Yield what there is to say of a node.

    Args:
        root: of the store.
        run_dir: of the control socket.
        status: of its daemon.
    """
    yield _private("store directory", root)
    yield _private("run directory", run_dir)
    yield _space(root)
    yield from _limits()
    yield _scanners()
    yield from _daemon(root, run_dir, status)


def check_configuration(path: Path | None, status: Status) -> tuple[RegistryTable, Check]:
    """Return how registries are reached here, and which configuration says so.

    Args:
        path: of a configuration; None for that of the daemon, or that which one would take.
        status: of the daemon.
    """
    name = "configuration"
    running = status.get("configuration") if isinstance(status, dict) and not path else None
    try:
        if running is not None:
            settings = msgspec.convert(running["registry"], RegistryTable)
            file = running["file"] or "no file"
            detail = f"of the daemon that runs: {file}, and its command line"
            return settings, Check(name, ok=True, detail=detail)
        settings = load_config(path).registry
    except (FirstreadError, msgspec.ValidationError) as exc:
        fix = "correct it (docs/node.md): no daemon starts with it"
        return RegistryTable(), Check(name, ok=False, detail=str(exc), fix=fix)
    there = path or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    detail = str(there) if there else f"there is no {DEFAULT_PATH}: all is as by default"
    return settings, Check(name, ok=True, detail=detail)


def _existing(path: Path) -> Path:
    """Return the lowest of `path` and its parents that is there, as far as we may look."""
    return next(place for place in (path, *path.absolute().parents) if os.path.exists(place))


def _private(name: str, path: Path) -> Check:
    """Say what `firstread.private.private_directory` will say."""
    place = _existing(path)
    try:
        check_way(path)
    except NodeError as exc:
        return Check(name, ok=False, detail=exc.message, fix=exc.hint or "choose another place")
    if place != path:
        return Check(name, ok=True, detail=f"{path} is made when it is needed")
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        fix = "choose another, or remove it"
        return Check(name, ok=False, detail=f"{path} is no directory", fix=fix)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid():
        owner = f"{path} belongs to user {status.st_uid}"
        return Check(name, ok=False, detail=owner, fix="choose another, or remove it")
    if mode & 0o022:
        return Check(
            name,
            ok=False,
            detail=f"{path} has mode {mode:04o}: others can write to it",
            fix=f"look at what is in it, then: chmod 700 {path}",
        )
    if mode & 0o077:
        return Check(
            name,
            ok=True,
            detail=f"{path} has mode {mode:04o}: others can read it",
            fix=f"chmod 700 {path}",
            warning=True,
        )
    return Check(name, ok=True, detail=f"{path}, of this user alone")


def _space(root: Path) -> Check:
    found = os.statvfs(_existing(root))
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    detail = f"{format_size(free)} of {format_size(total)} are free"
    fix = "free some space, unmount images, or set max_bytes of the cache (docs/node.md)"
    if free < LEAST_BYTES:
        return Check("space for sectors", ok=False, detail=detail, fix=fix)
    if free < SCARCE_BYTES:
        return Check("space for sectors", ok=True, detail=detail, fix=fix, warning=True)
    if found.f_files and not found.f_favail:
        fix = "remove files, or make a file system with more inodes"
        return Check("space for sectors", ok=False, detail="no inodes are free", fix=fix)
    return Check("space for sectors", ok=True, detail=detail)


def _limits() -> Iterator[Check]:
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


def _number(path: Path) -> int:
    """Return the first number in a file of /proc; 0 if this kernel has no such file."""
    try:
        return int(path.read_text().split()[0])
    except OSError:
        return 0


def _at_least(name: str, value: int, enough: int, fix: str) -> Check:
    if 0 < value < enough:
        detail = f"{value:,}; {enough:,} are enough for a busy node"
        return Check(name, ok=True, detail=detail, fix=fix, warning=True)
    return Check(name, ok=True, detail=f"{value:,}" if value else "no limit")


def _room(name: str, used: int, limit: int, fix: str) -> Check:
    detail = f"{used:,} of {limit:,}"
    if limit and used > CROWDED * limit:
        return Check(name, ok=used < limit, detail=detail, fix=fix, warning=used < limit)
    return Check(name, ok=True, detail=detail)


def _daemon(root: Path, run_dir: Path, status: Status) -> Iterator[Check]:
    if status is None:
        yield _absent(root, run_dir)
        return
    if isinstance(status, FirstreadError):
        yield Check("daemon", ok=False, detail=status.message, fix=status.hint)
        return
    yield _health(status, run_dir)
    yield _namespace(status)
    pids = [status["supervisor"]["pid"], status["fetcher"]["pid"]]
    yield _privileges(pids)
    yield from _mounts(status["mounts"])


def _scanners() -> Check:
    """Warn of processes that others have to wait for when they open a file."""
    name, found = "virus scanners", scanners()
    if not found:
        return Check(name, ok=True, detail="none has permission events")
    some = ", ".join(f"{command} (pid {pid})" for pid, command in found[:3])
    if len(found) > 3:
        some += f" and {len(found) - 3} more"
    fix = "exclude --root, --run-dir and what firstread mounts from scanning (docs/node.md)"
    return Check(name, ok=True, detail=f"{some}: opens wait for it", fix=fix, warning=True)


def _absent(root: Path, run_dir: Path) -> Check:
    """Say what it means that no daemon runs: nothing, or that the mounts of one are left alone."""
    detail = f"none runs at {socket_path(run_dir)}"
    left = sum(Path(source).is_relative_to(root) for source in mounted_erofs().values())
    if left:
        verb = "waits" if left == 1 else "wait"
        detail += f", and {counted(left, 'mount')} {verb} for one: reads of what is not here fail"
        fix = "start it: systemctl start firstread, or firstread daemon; see why it ended"
        return Check("daemon", ok=False, detail=detail, fix=fix)
    return Check("daemon", ok=True, detail=f"{detail}: the first command that needs one starts it")


def _health(status: dict[str, Any], run_dir: Path) -> Check:
    fetcher, restarts = status["fetcher"], status["fetcher"]["restarts"]
    detail = f"process {status['supervisor']['pid']}, {counted(len(status['mounts']), 'mount')}"
    if not fetcher["healthy"]:
        detail += ": its fetcher gives no answer"
        return Check("daemon", ok=False, detail=detail, fix="see its log; restart it")
    if restarts:
        detail += f"; its fetcher was restarted {restarts} times"
        fix = f"see its log: journalctl -u firstread, or {run_dir}/daemon.log"
        return Check("daemon", ok=True, detail=detail, fix=fix, warning=True)
    return Check("daemon", ok=True, detail=detail)


def _namespace(status: dict[str, Any]) -> Check:
    name, theirs, ours = "mount namespace", status.get("namespace", ""), mount_namespace()
    if theirs == ours:
        return Check(name, ok=True, detail=f"{ours}, of the daemon and of this command")
    pid = status["fetcher"]["pid"]
    return Check(
        name,
        ok=True,
        detail=f"the daemon is in {theirs or 'one that it does not tell'}, this command in {ours}",
        fix="what it mounts is seen here only where mounts propagate (docs/kubernetes.md); start it"
        f" where its mounts are used, or go there: nsenter --target {pid} --mount",
        warning=True,
    )


def _privileges(pids: list[int]) -> Check:
    name = "daemon's privileges"
    try:
        found = [confined(pid) for pid in pids]
    except OSError as exc:
        return Check(name, ok=True, detail=f"cannot tell: {exc.strerror}", warning=True)
    if all(process.complete for process in found):
        count = len(found[0].capabilities)
        detail = f"{count} capabilities, no new ones, system calls filtered"
        return Check(name, ok=True, detail=detail)
    lacking = {
        "capabilities": any(len(process.capabilities) > len(found) * 2 for process in found),
        "no_new_privs": not all(process.no_new_privs for process in found),
        "a filter of system calls": not all(process.filtered for process in found),
    }
    detail = "not confined: " + ", ".join(what for what, missing in lacking.items() if missing)
    fix = "its log says why; a kernel needs CONFIG_SECCOMP_FILTER"
    return Check(name, ok=True, detail=detail, fix=fix, warning=True)


def _mounts(mounts: list[dict[str, Any]]) -> Iterator[Check]:
    for mount in mounts:
        if mount["failed_reads"] or mount["last_error"]:
            failed = mount["failed_reads"]
            yield Check(
                f"mount {mount['mountpoint']}",
                ok=True,
                detail=f"{failed} reads failed; last error: {mount['last_error']}",
                fix=f"see its source: firstread doctor {mount['image']}",
                warning=True,
            )

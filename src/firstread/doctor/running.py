# SPDX-License-Identifier: Apache-2.0
"""The daemon that runs, or the mounts that wait for one: configuration, health, privileges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from firstread.config import RegistryTable, load_config
from firstread.control.client import Client, socket_path
from firstread.control.namespace import mount_namespace, way_to
from firstread.daemon.confinement import confined
from firstread.doctor.finding import Finding, failed, passed, warned
from firstread.errors import FirstreadError
from firstread.mounts.table import mounted_erofs
from firstread.units import counted
from firstread.userdirs import configuration

PATIENCE_S = 10.0  # for a daemon to answer: it looks at thousands of mounts in less

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


def check_configuration(path: Path | None, status: Status) -> tuple[RegistryTable, Finding]:
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
            return settings, passed(name, detail)
        settings = load_config(path).registry
    except (FirstreadError, msgspec.ValidationError) as exc:
        fix = "correct it (docs/node.md): no daemon starts with it"
        return RegistryTable(), failed(name, str(exc), fix)
    place = path or configuration()
    detail = str(place) if path or place.exists() else f"there is no {place}: all is as by default"
    return settings, passed(name, detail)


def wanted_device(path: Path | None, status: Status) -> str:
    """Return the device that the configuration names, or ``auto``; arguments as above."""
    if isinstance(status, dict) and not path and "device" in status:
        return str(status["device"]["wanted"])
    try:
        return load_config(path).node.device
    except FirstreadError:
        return "auto"  # `check_configuration` says what is wrong


def check_daemon(root: Path, run_dir: Path, status: Status) -> Iterator[Finding]:
    """Yield what there is to say of a daemon and its mounts.

    Args:
        root: of the store.
        run_dir: of the control socket.
        status: of its daemon.
    """
    if status is None:
        yield _absent(root, run_dir)
        return
    if isinstance(status, FirstreadError):
        yield failed("daemon", status.message, status.hint)
        return
    yield _health(status, run_dir)
    if "device" in status:
        yield _device(status["device"])
    yield _namespace(status)
    pids = [status["supervisor"]["pid"], status["fetcher"]["pid"]]
    yield _privileges(pids)
    yield from _mounts(status["mounts"])
    if status.get("namespace") == mount_namespace():  # else its mounts may have other paths here
        yield from _unserved(root, status["mounts"])


def _absent(root: Path, run_dir: Path) -> Finding:
    """Say what it means that no daemon runs: nothing, or that the mounts of one are left alone."""
    detail = f"none runs at {socket_path(run_dir)}"
    left = sum(Path(source).is_relative_to(root) for source in mounted_erofs().values())
    if left:
        verb = "waits" if left == 1 else "wait"
        detail += f", and {counted(left, 'mount')} {verb} for one: reads of what is not here fail"
        fix = "start it: systemctl start firstread, or firstread daemon; see why it ended"
        return failed("daemon", detail, fix)
    return passed("daemon", f"{detail}: the first command that needs one starts it")


def _health(status: dict[str, Any], run_dir: Path) -> Finding:
    fetcher, restarts = status["fetcher"], status["fetcher"]["restarts"]
    detail = f"process {status['supervisor']['pid']}, {counted(len(status['mounts']), 'mount')}"
    if not fetcher["healthy"]:
        detail += ": its fetcher gives no answer"
        return failed("daemon", detail, "see its log; restart it")
    if restarts:
        detail += f"; its fetcher was restarted {restarts} times"
        fix = f"see its log: journalctl -u firstread, or {run_dir}/daemon.log"
        return warned("daemon", detail, fix)
    return passed("daemon", detail)


def _device(device: dict[str, Any]) -> Finding:
    name, has, wanted = "daemon's device", device["name"], device["wanted"]
    if wanted not in ("auto", has):
        fix = "firstread daemon --stop, and start it; make its mounts again"
        return warned(name, f"{has}, though the configuration asks for {wanted} by now", fix)
    worse = [f"not {each['device']}: {each['reason']}" for each in device["passed_over"]]
    return passed(name, "; ".join([has, *worse]))


def _namespace(status: dict[str, Any]) -> Finding:
    name, theirs, ours = "mount namespace", status.get("namespace", ""), mount_namespace()
    if theirs == ours:
        return passed(name, f"{ours}, of the daemon and of this command")
    pid = status["fetcher"]["pid"]
    return warned(
        name,
        f"the daemon is in {theirs or 'one that it does not tell'}, this command in {ours}",
        f"what it mounts is seen here only where mounts propagate; {way_to(pid)}",
    )


def _privileges(pids: list[int]) -> Finding:
    name = "daemon's privileges"
    try:
        found = [confined(pid) for pid in pids]
    except OSError as exc:
        return warned(name, f"cannot tell: {exc.strerror}")
    if all(process.complete for process in found):
        count = len(found[0].capabilities)
        detail = f"{count} capabilities, no new ones, system calls filtered"
        return passed(name, detail)
    lacking = {
        "capabilities": any(len(process.capabilities) > len(found) * 2 for process in found),
        "no_new_privs": not all(process.no_new_privs for process in found),
        "a filter of system calls": not all(process.filtered for process in found),
    }
    detail = "not confined: " + ", ".join(what for what, missing in lacking.items() if missing)
    fix = "its log says why; a kernel needs CONFIG_SECCOMP_FILTER"
    return warned(name, detail, fix)


def _unserved(root: Path, mounts: list[dict[str, Any]]) -> Iterator[Finding]:
    """Yield the mounts of a store that its daemon does not serve, such as those of fanotify."""
    served = {mount["mountpoint"] for mount in mounts}
    for place, source in mounted_erofs().items():
        if place not in served and Path(source).is_relative_to(root):
            detail = "the daemon does not serve it: reads of what is absent fail"
            yield warned(f"mount {place}", detail, "see its log: it says why, and what to do")


def _mounts(mounts: list[dict[str, Any]]) -> Iterator[Finding]:
    for mount in mounts:
        if mount["failed_reads"] or mount["last_error"]:
            yield warned(
                f"mount {mount['mountpoint']}",
                f"{mount['failed_reads']} reads failed; last error: {mount['last_error']}",
                f"see its source: firstread doctor {mount['image']}",
            )

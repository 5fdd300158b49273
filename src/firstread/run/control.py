# SPDX-License-Identifier: Apache-2.0
"""Stops and removes containers from outside, and reads their logs.

Owns the wait for a container's attendant, and the cleanup after an attendant that died. Invariant:
`remove_container` leaves no process, mount, control group or file of the container.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from firstread.errors import NodeError, UsageError, from_os_error
from firstread.run.cgroups import read_cgroups
from firstread.run.containerlog import LogEntry, log_time, read_log
from firstread.run.containers import ContainerStore, Record, Status, status_of
from firstread.run.lifecycle import LOG_NAME, RUNTIME_STATE
from firstread.run.overlay import unmount_below
from firstread.run.processes import (
    ProcessIdentity,
    host_command_lines,
    is_alive,
    open_process,
)
from firstread.run.runtime import find_runtime

STOP_SECONDS = 10.0
_KILL_SECONDS = 10.0
_SETTLE_SECONDS = 20.0
_POLL_SECONDS = 0.02


def stop_container(
    store: ContainerStore, record: Record, timeout_seconds: float = STOP_SECONDS
) -> None:
    """Send the stop signal, then SIGKILL; return after the container's cleanup.

    A container that does not run, or not yet, stays as it is.

    Raises:
        NodeError: the container cannot be killed.
    """
    if record.process:
        _end(record.process, record.stop_signal, timeout_seconds)
        _wait_settled(store, record)


def remove_container(
    store: ContainerStore,
    record: Record,
    *,
    force: bool = False,
    on_unused: Callable[[Record], None] = lambda _: None,
) -> None:
    """Remove a container; kill a running one first, with `force`.

    Args:
        store: of the container.
        record: from this store.
        force: kill the container, or stop its creation.
        on_unused: called before the record goes, if nobody has released the image's tree yet.

    Raises:
        UsageError: the container runs, without `force`.
        NodeError: a part of it cannot be removed.
    """
    runs = is_alive(record.process) if record.process else status_of(record) is Status.CREATED
    if runs and not force:
        raise UsageError(
            f"cannot remove a running container {record.short_id}",
            hint="stop it first, or remove it with --force",
        )
    if runs and record.attendant and not record.process:
        # The attendant undoes its work; or the container has just started, and is killed below.
        _signal(record.attendant, signal.SIGTERM)
    _wait_settled(store, record, kill=True)
    # The attendant has done all this, unless it died.
    left = store.reload(record)
    if left:
        runtime_state = store.state_dir / RUNTIME_STATE
        _wait_runtime(runtime_state, left.id)
        if (runtime_state / left.id).exists():
            find_runtime(left.runtime or None, runtime_state, read_cgroups()).delete(left.id)
        unmount_below(store.directory(left))
        if left.lower or left.exit_code is None:
            on_unused(left)
        store.delete(left)


def read_container_log(
    store: ContainerStore,
    record: Record,
    *,
    follow: bool = False,
    tail: int | None = None,
    since: float = 0.0,
) -> Iterator[LogEntry]:
    """Yield the output of a detached container.

    Args:
        store: of the container.
        record: from this store.
        follow: continue until the container ends.
        tail: so many lines of the past output; None for all.
        since: skip older output; in seconds since 1970.

    Raises:
        UsageError: the container was not detached, and has no log.
        NodeError: the log cannot be read.
    """
    if not record.detached:
        raise UsageError(
            f"container {record.short_id} was not detached: its output went to its terminal"
        )

    def is_running() -> bool:
        # The current record: during creation the command hands the container to its monitor.
        current = store.reload(record)
        return bool(current and current.attendant and is_alive(current.attendant))

    earliest = log_time(since)
    path: Path = store.directory(record) / LOG_NAME
    try:
        for entry in read_log(path, tail=tail, follow=follow, is_running=is_running):
            if entry.time >= earliest:
                yield entry
    except OSError as exc:
        raise from_os_error(exc, "cannot read the log") from exc


def _end(process: ProcessIdentity, number: int, timeout_seconds: float) -> None:
    """Send a signal, and SIGKILL if the process outlives the time."""
    pidfd = open_process(process)
    if pidfd is None:
        return
    try:
        for sent, seconds in ((number, timeout_seconds), (signal.SIGKILL, _KILL_SECONDS)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, sent)
            if select.select([pidfd], [], [], seconds)[0]:
                return
    except PermissionError as exc:
        raise from_os_error(exc, "cannot stop the container") from exc
    finally:
        os.close(pidfd)
    raise NodeError(f"process {process.pid} of the container does not end, not even by SIGKILL")


def _wait_runtime(state: Path, container_id: str) -> None:
    """Wait until no runtime works on a container whose attendant died."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline and any(
        str(state) in arguments and arguments[-1] == container_id
        for arguments in host_command_lines()
    ):
        time.sleep(_POLL_SECONDS)


def _signal(process: ProcessIdentity, number: int) -> None:
    """Send a signal, if the process exists."""
    pidfd = open_process(process)
    if pidfd is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
    except PermissionError as exc:
        raise from_os_error(exc, "cannot stop the container") from exc
    finally:
        os.close(pidfd)


def _wait_settled(store: ContainerStore, record: Record, *, kill: bool = False) -> None:
    """Wait for the cleanup of a living attendant; with `kill`, kill its container."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline:
        current = store.reload(record)
        if current is None or current.exit_code is not None:
            return
        if kill and current.process:
            _end(current.process, signal.SIGKILL, 0)
        if current.attendant is None or not is_alive(current.attendant):
            return
        time.sleep(_POLL_SECONDS)
    raise NodeError(
        f"container {record.short_id} is not cleared up by process "
        f"{record.attendant.pid if record.attendant else 0}"
    )

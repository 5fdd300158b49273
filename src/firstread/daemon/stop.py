# SPDX-License-Identifier: Apache-2.0
"""Stops a daemon from outside, in order.

Owns finding it and waiting for its end; the supervisor knows how to end. The kernel says which
process listens on the private socket of the run directory, so that a stale number in a file can
never mean another process.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from firstread.daemon.succession import connect
from firstread.errors import NodeError, from_os_error
from firstread.idmaps import owner
from firstread.private import peer_pid
from firstread.readable import is_readable

STOP_S = 60.0  # more than a supervisor gives to reads that wait, and to its fetcher


def stop_daemon(run_dir: Path, timeout_s: float = STOP_S) -> int:
    """Have the daemon of a run directory end; return its process number when it has.

    Raises:
        NodeError: none runs, it is a service that would be started again, it is suspended,
            or it does not end.
    """
    connection = connect(str(run_dir))
    if connection is None:
        raise NodeError(f"no daemon runs in {run_dir}", hint="if it is another: --run-dir DIR")
    with connection, contextlib.ExitStack() as stack:
        pid = peer_pid(connection)
        try:
            pidfd = os.pidfd_open(pid)
            stack.callback(os.close, pidfd)
            _refuse_service(pid)
            _refuse_suspended(pid)
            if not is_readable(connection):  # else it has hung up, and its number may be another's
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        except (ProcessLookupError, FileNotFoundError):
            return pid
        except OSError as exc:  # with number 0 it is in a process namespace that we do not see
            raise from_os_error(exc, f"cannot end the daemon of {run_dir}") from exc
        if not is_readable(pidfd, timeout_s):
            raise NodeError(
                f"the daemon (process {pid}) has not ended within {timeout_s:g} s",
                hint="its log says what it waits for; it ends when that does",
            )
    return pid


def _refuse_service(pid: int) -> None:
    """Refuse to end what systemd would start again at once."""
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    if any(setting.startswith(b"NOTIFY_SOCKET=") for setting in environment):
        raise NodeError(
            f"systemd runs the daemon (process {pid}), and would start it again",
            hint=f"systemctl {'--user ' if owner() else ''}stop firstread",
        )


def _refuse_suspended(pid: int) -> None:
    """Refuse to wait for what cannot even see the signal."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    if state in ("T", "t"):
        raise NodeError(
            f"the daemon (process {pid}) is suspended, and cannot end",
            hint=f"let it go on: kill -CONT {pid}",
        )

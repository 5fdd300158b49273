# SPDX-License-Identifier: Apache-2.0
"""Starts a daemon for a command that needs one.

Owns its environment and log, and what to tell the user if it does not start.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from firstread.control.daemonlog import LOG_BYTES, daemon_log, turn_over
from firstread.errors import NodeError

START_S = 30.0  # for a daemon to answer after it was started
_PATHS = {"DOCKER_CONFIG", "FIRSTREAD_CONFIG", "FIRSTREAD_CREDENTIALS_DIR", "REGISTRY_AUTH_FILE"}
_PATH_LIST = "FIRSTREAD_HOSTS_DIR"


def start(root: Path, run_dir: Path, alive: Callable[[], bool]) -> None:
    """Start a daemon; return when it answers.

    Args:
        root: of its store.
        run_dir: of its socket.
        alive: whether it answers.

    Raises:
        NodeError: it does not start, with the last lines of its log.
        OSError: nothing can be started.
    """
    log_path = daemon_log(run_dir)
    with contextlib.suppress(FileNotFoundError):
        if log_path.stat().st_size >= LOG_BYTES:
            turn_over(log_path)  # now: what follows is looked at if it does not start
    with open(log_path, "ab") as log:
        begin = log.tell()
        daemon = subprocess.Popen(
            [sys.executable, "-m", "firstread", "daemon", "--root", root, "--run-dir", run_dir],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env=_environment(),
        )
    deadline = time.monotonic() + START_S
    while not alive():
        if daemon.poll() is not None or time.monotonic() > deadline:
            with open(log_path, "rb") as log:
                log.seek(begin)
                said = log.read().decode(errors="replace")
            raise _not_started(said, log_path)
        time.sleep(0.01)


def _environment() -> dict[str, str]:
    """Return the environment of a daemon: what is relative in it counts from here, not from /."""
    environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
    for name in _PATHS & environment.keys():
        if path := environment[name]:
            environment[name] = os.path.abspath(path)
    if paths := environment.get(_PATH_LIST):
        absolute = (path and os.path.abspath(path) for path in paths.split(os.pathsep))
        environment[_PATH_LIST] = os.pathsep.join(absolute)
    return environment


def _not_started(said: str, log_path: Path) -> NodeError:
    """Return the error of a daemon that does not start: what it said itself, and what helps."""
    hint = f"see {log_path}, or run 'firstread daemon' in the foreground"
    lines = [line.strip() for line in said.strip().splitlines()]
    own = [n for n, line in enumerate(lines) if line.startswith("firstread: ")]
    if own:
        message, *more = lines[own[-1] :]
        why, hint = message.removeprefix("firstread: "), "; ".join(more) or hint
    else:
        why = " / ".join(lines[-3:]) or "it says nothing"
    return NodeError(f"the daemon does not start: {why}", hint=hint)

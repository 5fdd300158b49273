# SPDX-License-Identifier: Apache-2.0
"""Stopping a daemon: the process behind the private socket, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstread.daemon.stop import stop_daemon
from firstread.errors import NodeError

LISTEN = """
import signal, sys, time
from firstread.daemon.succession import listen
listener = listen(sys.argv[1])
if len(sys.argv) > 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


@contextmanager
def listening(run_dir: Path, *options: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the place of a supervisor."""
    argv = [sys.executable, "-c", LISTEN, str(run_dir), *options]
    clean = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=clean | env) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_it_has_ended_when_that_is_said(tmp_path: Path) -> None:
    with listening(tmp_path) as process:
        assert stop_daemon(tmp_path) == process.pid
        assert process.wait(10) == -15


def test_none_runs(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="no daemon runs in"):
        stop_daemon(tmp_path)
    with listening(tmp_path):
        pass
    assert (tmp_path / "supervisor.sock").exists()
    with pytest.raises(NodeError, match="no daemon runs in"):
        stop_daemon(tmp_path)


def test_one_that_does_not_end(tmp_path: Path) -> None:
    with listening(tmp_path, "ignore"), pytest.raises(NodeError, match=r"not ended within 0\.1 s"):
        stop_daemon(tmp_path, timeout_s=0.1)


def test_a_service_is_left_alone(tmp_path: Path) -> None:
    with listening(tmp_path, NOTIFY_SOCKET="/run/x") as process:
        with pytest.raises(NodeError, match="systemd runs the daemon") as caught:
            stop_daemon(tmp_path)
        assert process.poll() is None
    assert caught.value.hint == "systemctl stop firstread"


def test_one_that_is_suspended_is_not_waited_for(tmp_path: Path) -> None:
    with listening(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        with pytest.raises(NodeError, match="is suspended") as caught:
            stop_daemon(tmp_path)
        assert caught.value.hint == f"let it go on: kill -CONT {process.pid}"
        process.send_signal(signal.SIGCONT)
        assert stop_daemon(tmp_path) == process.pid

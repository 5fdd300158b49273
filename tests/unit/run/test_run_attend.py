# SPDX-License-Identifier: Apache-2.0
"""No signal for a container is lost while its parent waits for it."""

from __future__ import annotations

import subprocess
import sys

from firstread.testing.patience import PATIENCE_S

_PARENT = """
import os, signal, subprocess, sys, threading
from firstread.run.attend import forwarding_signals, wait_exit_code

script = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.02; done"
child = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
child.stdout.readline()
pidfd = os.pidfd_open(child.pid)
main = f"/proc/self/task/{os.getpid()}"

def interrupt():
    # Its wait is not ended by a signal that another thread gets.
    while "futex" in open(f"{main}/wchan").read() or open(f"{main}/stat").read().split()[2] != "S":
        pass
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

with forwarding_signals(pidfd, lambda: None, lambda: None):
    threading.Thread(target=interrupt).start()
    sys.exit(wait_exit_code(pidfd))
"""


def test_a_signal_that_does_not_end_the_wait_is_forwarded() -> None:
    command = [sys.executable, "-c", _PARENT]
    assert subprocess.run(command, timeout=PATIENCE_S, check=False).returncode == 9


def test_another_thread_can_wait_too() -> None:
    code = (
        "import os, subprocess, threading\n"
        "from firstread.run.attend import wait_exit_code\n"
        "child = subprocess.Popen(['sh', '-c', 'kill -9 $$'])\n"
        "pidfd = os.pidfd_open(child.pid)\n"
        "thread = threading.Thread(target=lambda: print(wait_exit_code(pidfd)))\n"
        "thread.start(); thread.join()\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, timeout=PATIENCE_S, check=True, capture_output=True, text=True)
    assert done.stdout == "137\n"

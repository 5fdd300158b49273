# SPDX-License-Identifier: Apache-2.0
"""A fetcher as its supervisor sees it: a process, by whomever it was started, and a channel to it.

Invariant: a signal reaches the process that was meant, never one that has its number later.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time


class Process:
    """A running process.

    Args:
        pid: its number.
        popen: it, if we have started it: kept until it has ended.
    """

    def __init__(self, pid: int, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.code: int | None = None  # exit status of a child that has ended
        self._popen = popen
        self._pidfd = os.pidfd_open(pid)

    def ended(self) -> bool:
        """Return whether it has ended; a child is buried then."""
        if self._pidfd < 0:
            return True
        if not self._wait(0):
            return False
        if self._popen is not None:
            self.code = self._popen.wait()
        else:
            with contextlib.suppress(ChildProcessError):
                self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._pidfd)
        self._pidfd = -1
        return True

    def signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def end(self, timeout_s: float) -> None:
        """Ask it to end, and end it after a while."""
        for number, patience in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, None)):
            self.signal(number)
            if self.ended() or (self._wait(patience) and self.ended()):
                return

    def _wait(self, timeout_s: float | None) -> bool:
        poll = select.poll()  # select(2) knows no descriptor above 1023
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


class FetcherProcess:
    """A fetcher, and our end of the channel to it.

    Args:
        process: it.
        channel: a SOCK_SEQPACKET socket; see `firstread.node.wire`.
        ready: it serves already.
    """

    def __init__(self, process: Process, channel: socket.socket, *, ready: bool = False) -> None:
        self.process = process
        self.channel: socket.socket | None = channel  # None once it has hung up
        self.ready = ready  # it has said something
        self.started = self.beat = time.monotonic()
        channel.setblocking(False)

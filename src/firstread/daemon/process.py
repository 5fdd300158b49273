# SPDX-License-Identifier: Apache-2.0
"""A process as its supervisor sees it, by whomever it was started.

Invariant: a signal reaches the process that was meant, never one that has its number later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn, Self

from firstread.readable import is_readable

log = logging.getLogger("supervisor")

_OURS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)  # a supervisor handles them
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them


class Process:
    """A running process.

    Args:
        pid: its number.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None  # exit status of a child that has ended
        self._pidfd = os.pidfd_open(pid)

    @classmethod
    def start(cls, command: list[str], *, fds: Sequence[int] = (), stderr: int = 2) -> Self:
        """Start a child, and do not wait until it executes.

        Executing opens the program by its name, which another process can hold up: a scanner that
        waits for a read of ours (`firstread.opener`). If it fails, the child ends with 127.
        A signal ends the child from its first moment on, however its parent handles it.
        To be called by a process with one thread that matters.

        Args:
            command: absolute path of the program, and its arguments.
            fds: descriptors that it gets under the same numbers.
            stderr: descriptor that becomes its standard error.

        Raises:
            OSError: there are too many processes or open files; no child is left then.
        """
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
        try:
            pid = os.fork()
            if not pid:
                _execute(command, fds, stderr, held)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        try:
            return cls(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # nobody has waited for it: the number is still its own
            os.waitpid(pid, 0)
            raise

    def ended(self) -> bool:
        """Return whether it has ended; a child is buried then."""
        if self._pidfd < 0:
            return True
        if not is_readable(self._pidfd):
            return False
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
            if self.ended() or (is_readable(self._pidfd, patience) and self.ended()):
                return


def _execute(command: list[str], fds: Sequence[int], stderr: int, mask: Iterable[int]) -> NoReturn:
    """Become `command`, as `Process.start` says, with this mask of signals."""
    try:
        for number in (*_OURS, *_IGNORED):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for fd in fds:
            os.set_inheritable(fd, True)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stderr, 2)
        os.execv(command[0], command)
    except OSError as exc:
        if stderr == 2:
            log.critical("cannot execute %s: %s", command[0], exc.strerror)
        else:
            os.write(2, f"{command[0]}: {exc.strerror}\n".encode())
    finally:  # nothing of the parent may go on here
        os._exit(127)


def why_broken(module: str) -> str:
    """Return why a new process cannot import a module of firstread; "" if it can."""
    check = [sys.executable, "-c", f"import {module}"]
    try:
        done = subprocess.run(check, stdin=subprocess.DEVNULL, check=False)
    except OSError as exc:  # there can be no more processes now
        return str(exc)
    return "the installation of firstread is broken" if done.returncode else ""

# SPDX-License-Identifier: Apache-2.0
"""The parent of a container: waits for its exit status, and forwards signals to it.

Invariant: while this process attends a container, its signals are the container's, as with
``docker run``.

Source: docker's run reference, ``--sig-proxy`` and "Exit status"; prctl(2), pidfd_open(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from firstread.device.syscalls import oserror
from firstread.errors import from_os_error
from firstread.signals import Handler, handling, woken

_log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)

_FORWARDED = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCONT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM),
)

_WAKES = 4096  # bytes, one for each signal
_PATIENCE = 3
"""A container that ignores so many SIGINT or SIGTERM is killed: its first process has no default
action for any signal, and the user of a terminal no other way out."""


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Adopt the processes of runtimes that exit.

    Raises:
        NodeError: the kernel refuses.
    """
    _set_subreaper(1)
    try:
        yield
    finally:
        _set_subreaper(0)


def _set_subreaper(value: int) -> None:
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(value), 0, 0, 0):
        raise from_os_error(oserror(), "cannot adopt the container's process")


@contextlib.contextmanager
def forwarding_signals(
    pidfd: int,
    resize: Callable[[], None],
    on_ended: Callable[[], None],
    on_signal: Callable[[int], None] = lambda _: None,
) -> Iterator[None]:
    """Forward signals to the process behind `pidfd`; call `resize` for SIGWINCH.

    `on_signal` gets the number of each signal that is forwarded. If the process has ended, a signal
    that ends programs calls `on_ended`. Python has handlers in
    the main thread only; elsewhere nothing is forwarded.
    """
    asked = 0

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        on_signal(number)
        asked += number in {signal.SIGINT, signal.SIGTERM}
        if asked >= _PATIENCE:
            _log.warning("got %d SIGTERM/SIGINTs, killing the container", asked)
            number = signal.SIGKILL
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            if number != signal.SIGCONT:
                on_ended()

    handlers: dict[int, Handler] = {}
    handlers.update(dict.fromkeys(_FORWARDED, forward))
    handlers[signal.SIGWINCH] = lambda *_: resize()
    with handling(handlers):
        yield


def wait_exit_code(pidfd: int) -> int:
    """Wait for a child; return its exit code as a shell does: 128 + n for signal n.

    In the main thread, handlers of signals run meanwhile: each signal interrupts the wait.
    """
    with woken() as wakes:
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        waiting.register(wakes, select.POLLIN)
        while pidfd not in (ready := dict(waiting.poll())):
            if wakes in ready:
                os.read(wakes, _WAKES)
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    if result is None:  # only with WNOHANG
        raise AssertionError
    return result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status

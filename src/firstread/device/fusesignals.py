# SPDX-License-Identifier: Apache-2.0
"""Readers of a FUSE mount that have heard a signal while their READ waits.

Owns which READs those are, and the look whether a reader is being killed. Answers nothing. Safe to
use from several threads.

Facts about signals and FUSE (Linux 6.18; tests/privileged/test_device_fuse.py shows them):

* A killed reader waits for the answer to what it reads by itself, deaf to SIGKILL; only INTERRUPT
  tells. For read-ahead it does not wait. INTERRUPT comes for any signal, but a read of a file must
  not fail with EINTR, so only a reader that is being killed gets that answer.
* INTERRUPT comes once for a request. After it, the state of the reader has to be looked at now and
  then, because a later SIGKILL raises no other.
"""

from __future__ import annotations

import itertools
import threading

LOOKS = 1024  # readers that are looked at in one turn, 30 us each
_SIGKILL_BIT = 1 << 8


class Signalled:
    """READs whose readers have heard a signal."""

    def __init__(self) -> None:
        self._threads: dict[int, int] = {}  # by unique; whose turn is next comes first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._threads)

    def add(self, unique: int, pid: int) -> None:
        """Have the reader of a READ looked at from now on."""
        with self._lock:
            self._threads[unique] = pid

    def discard(self, unique: int) -> None:
        """Forget a READ: it is answered."""
        if self._threads:
            with self._lock:
                self._threads.pop(unique, None)

    def killed(self) -> list[int]:
        """Return the READs whose readers are being killed, of those whose turn it is."""
        with self._lock:
            turn = dict(itertools.islice(self._threads.items(), LOOKS))
            for unique, pid in turn.items():
                del self._threads[unique]
                self._threads[unique] = pid
        return [unique for unique, pid in turn.items() if is_being_killed(pid)]


def is_being_killed(pid: int) -> bool:
    """Return whether SIGKILL is on its way to a thread. Source: proc_pid_status(5)."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:  # a name can be of any bytes
            masks = [line.split()[1] for line in status if line.startswith((b"SigPnd", b"ShdPnd"))]
    except OSError:
        return False
    return any(int(mask, 16) & _SIGKILL_BIT for mask in masks)

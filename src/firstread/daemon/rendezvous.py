# SPDX-License-Identifier: Apache-2.0
"""The rendezvous of a supervisor: its number in the lock and the run directory, and its socket.

Owns these files; `firstread.daemon.upgrades` decides about connections. No read depends on them:
while a file system is full the supervisor works without, and tries again.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path

from firstread.daemon.protocol import LOCK_FD
from firstread.daemon.succession import listen
from firstread.wholefile import replace_file

log = logging.getLogger("supervisor")

RETRY_S = 5.0


class Rendezvous:
    """The rendezvous of a new supervisor.

    Args:
        run_dir: the run directory.
        door: descriptor of the socket on which the version before listened in this process, or -1.
    """

    def __init__(self, run_dir: str, door: int = -1) -> None:
        self._run_dir = run_dir
        self._listener = socket.socket(fileno=door) if door >= 0 else None
        self._is_told = self._is_complete = False
        self._due = 0.0  # when it is tried again

    @property
    def door(self) -> int:
        """The descriptor of the listening socket; -1 if there is none yet."""
        return self._listener.fileno() if self._listener is not None else -1

    def complete(self) -> socket.socket | None:
        """Make what is missing still; return the listening socket once, as soon as it is there."""
        now = time.monotonic()
        if self._is_complete or now < self._due:
            return None
        try:
            self._listener = self._listener or listen(self._run_dir)
            self._sign()
        except OSError as exc:
            log.warning("cannot be found in %s until there is room: %s", self._run_dir, exc)
            self._due = now + RETRY_S
        else:
            self._is_complete = True
        if self._is_told:
            return None
        self._is_told = self._listener is not None
        return self._listener

    def _sign(self) -> None:
        text = b"%d\n" % os.getpid()
        os.pwrite(LOCK_FD, text, 0)
        os.ftruncate(LOCK_FD, len(text))
        replace_file(Path(self._run_dir, "daemon.pid"), text)

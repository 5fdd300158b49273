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
    """

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._listens = self._is_complete = False
        self._due = 0.0  # when it is tried again

    def complete(self) -> socket.socket | None:
        """Make what is missing still; return the listening socket when it was just made."""
        now = time.monotonic()
        if self._is_complete or now < self._due:
            return None
        listener = None
        try:
            if not self._listens:
                listener = listen(self._run_dir)
                self._listens = True
            self._sign()
        except OSError as exc:
            log.warning("cannot be found in %s until there is room: %s", self._run_dir, exc)
            self._due = now + RETRY_S
        else:
            self._is_complete = True
        return listener

    def _sign(self) -> None:
        text = b"%d\n" % os.getpid()
        os.pwrite(LOCK_FD, text, 0)
        os.ftruncate(LOCK_FD, len(text))
        replace_file(Path(self._run_dir, "daemon.pid"), text)

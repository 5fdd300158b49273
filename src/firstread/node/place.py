# SPDX-License-Identifier: Apache-2.0
"""Where a supervisor is found: its number in the lock and in the run directory, and its door.

Owns these, and who comes through the door is the supervisor's business. No read depends on any of
them: while a file system is full the supervisor works without, and tries again.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path

from firstread.node.succession import open_door
from firstread.node.wire import LOCK_FD

log = logging.getLogger("supervisor")

RETRY_S = 5.0


class Place:
    """The place of a supervisor that begins.

    Args:
        run_dir: the run directory.
    """

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._has_door = self._is_taken = False
        self._due = 0.0  # when it is tried again

    def take(self) -> socket.socket | None:
        """Have what is missing still; return the door when it has just been opened."""
        now = time.monotonic()
        if self._is_taken or now < self._due:
            return None
        door = None
        try:
            if not self._has_door:
                door = open_door(self._run_dir)
                self._has_door = True
            self._sign()
        except OSError as exc:
            log.warning("cannot be found in %s until there is room: %s", self._run_dir, exc)
            self._due = now + RETRY_S
        else:
            self._is_taken = True
        return door

    def _sign(self) -> None:
        text = b"%d\n" % os.getpid()
        os.pwrite(LOCK_FD, text, 0)
        os.ftruncate(LOCK_FD, len(text))
        scratch = Path(self._run_dir, "daemon.pid.new")
        scratch.write_bytes(text)
        scratch.replace(scratch.with_suffix(""))

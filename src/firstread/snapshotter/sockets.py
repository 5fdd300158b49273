# SPDX-License-Identifier: Apache-2.0
"""The sockets between a snapshotter and containerd: where they are, and whether somebody listens.

Imports nothing that costs a command line its start. Invariant: to look is to connect and to hang
up, which neither side answers.
"""

from __future__ import annotations

import logging
import socket
from pathlib import Path

ADDRESS = Path("/run/firstread/snapshotter.sock")
CONTAINERD = Path("/run/containerd/containerd.sock")
PATIENCE_S = 5.0  # containerd is started behind its snapshotters

log = logging.getLogger("snapshotter")


def listens(path: Path) -> bool:
    """Return whether somebody takes connections at a socket, as far as this user may know."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except BlockingIOError:  # more wait than it has taken
            return True
        except OSError:
            return False
    return True


class Awaited:
    """Says in the log that containerd is missing, and that it has come: once each.

    Args:
        path: of its socket.
        now: seconds on some clock, when the wait begins.
    """

    def __init__(self, path: Path, now: float) -> None:
        self._path = path
        self._late = now + PATIENCE_S
        self._has_come = self._is_missed = False

    def look(self, now: float) -> bool:
        """Look whether it has come, unless it has; return whether it has."""
        if self._has_come:
            return True
        self._has_come = listens(self._path)
        if self._has_come and self._is_missed:
            log.info("containerd listens at %s now", self._path)
        elif not self._has_come and now >= self._late and not self._is_missed:
            self._is_missed = True
            log.warning(
                "nobody listens at %s: containerd does not run, or has another socket"
                " (--containerd); the snapshotter waits for it",
                self._path,
            )
        return self._has_come

# SPDX-License-Identifier: Apache-2.0
"""The rehearsal of an upgrade: the installed version tries itself while the old one serves.

Owns the process that rehearses, and how a supervisor becomes that version.
`firstread.daemon.trial` says what it tries.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import NoReturn

from firstread.daemon.handover import Handover, Settings, execute, own_format
from firstread.daemon.process import Process

REHEARSAL_S = 60.0


class Rehearsal:
    """A rehearsal under way.

    Args:
        settings: with which the new version will run; it reads its configuration anew.

    Raises:
        OSError: the new version cannot be started.
    """

    def __init__(self, settings: Settings) -> None:
        self._report = open(os.memfd_create("report", os.MFD_CLOEXEC), "r+b")  # noqa: SIM115 - until it has ended
        command = [*_command(settings), "--rehearse", str(own_format())]
        try:
            self._process = Process.start(command, stderr=self._report.fileno())
        except OSError:
            self._report.close()
            raise
        self._until = time.monotonic() + REHEARSAL_S

    def outcome(self) -> str | None:
        """Return what was wrong, "" if nothing was, None if it is not known yet."""
        if not self._process.ended():
            if time.monotonic() > self._until:
                self._process.signal(signal.SIGKILL)
            return None
        code = self._process.code
        with self._report:
            self._report.seek(0)
            lines = self._report.read(65536).decode(errors="replace").strip().splitlines()
        if not code:
            return ""
        return " / ".join(line.strip() for line in lines[-2:]) or f"it ended with {code}"


def become_next_version(settings: Settings, handover: Handover) -> NoReturn:
    """Become what is installed now: the same process, with the same descriptors.

    Raises:
        OSError: it cannot be executed; nothing has changed.
    """
    state = handover.write(settings)
    execute([*_command(settings), "--inherit", str(state)], state, handover)


def _command(settings: Settings) -> list[str]:
    return [sys.executable, "-m", "firstread", "daemon", *settings.arguments]

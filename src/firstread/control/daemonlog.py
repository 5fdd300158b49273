# SPDX-License-Identifier: Apache-2.0
"""The log file of a daemon that was started on demand. Imports little: every command needs it."""

from __future__ import annotations

import os
from pathlib import Path

from firstread.units import MiB

LOG_BYTES = 8 * MiB  # of a log file; the one before is kept


def daemon_log(run_dir: Path) -> Path:
    """Return the log file of the daemon of a run directory."""
    return run_dir / "daemon.log"


def turn_over(path: Path) -> None:
    """Make a log file the one before, ``PATH.1``."""
    os.replace(path, f"{path}.1")

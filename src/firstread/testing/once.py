# SPDX-License-Identifier: Apache-2.0
"""Directories that all processes of a test run share, each made by one of them.

Owns directories beside those of the processes. Invariant: one is either whole or not there, also
if the process that made it was killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

_WORKER = "PYTEST_XDIST_WORKER"


def made_once(own: Path, name: str, make: Callable[[Path], object]) -> Path:
    """Return a directory that is made once in a run; nobody may change what is in it.

    Args:
        own: base of the temporary directories of this process, as pytest has it.
        name: of the directory.
        make: fills an empty one.
    """
    shared = own.parent if _WORKER in os.environ else own
    place = shared / f"once-{name}"
    with open(shared / f"{place.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            scratch = shared / f"{place.name}.part"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            make(scratch)
            scratch.rename(place)
    return place

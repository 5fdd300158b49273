# SPDX-License-Identifier: Apache-2.0
"""A tree that is deeper than programs expect; a container can make one."""

from __future__ import annotations

import os
from pathlib import Path


def make_deep(directory: Path, levels: int) -> None:
    """Make so many nested directories that no path can name the last."""
    directory.mkdir()
    here = os.open(directory, os.O_PATH)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_PATH, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)

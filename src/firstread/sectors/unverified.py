# SPDX-License-Identifier: Apache-2.0
"""Sector files that a reboot left unverified, and that lie aside until somebody has checked them.

A power loss can leave a file with its full size and zeros inside. Before such a file's sector is
mounted it moves to ``ROOT/aside``, and an empty file takes its name. Owns that directory; does not
check anything.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from firstread.sectors.storelayout import doing, file_name, parse_name


class UnverifiedFiles:
    """The files below ``root/aside``; the directory is made if it is missing.

    Args:
        root: of the sector store.
    """

    def __init__(self, root: Path) -> None:
        self._directory = root / "aside"
        self._directory.mkdir(mode=0o700, exist_ok=True)

    def take(self, sector_id: bytes, sectors_fd: int) -> None:
        """Move a sector's file here from the directory ``sectors/``."""
        with doing("cannot set a sector file aside"):
            os.replace(file_name(sector_id), self._path(sector_id), src_dir_fd=sectors_fd)

    def sizes(self) -> dict[bytes, int]:
        """Return the bytes of each file that lies here, by sector id."""
        found = {}
        with doing("cannot read the sector store"), os.scandir(self._directory) as entries:
            for entry in entries:
                sector_id = parse_name(entry.name)
                if sector_id is not None:
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        found[sector_id] = entry.stat(follow_symlinks=False).st_size
        return found

    def open(self, sector_id: bytes) -> int:
        """Return a descriptor, to read, of a sector's file.

        Raises:
            NodeError: there is none.
        """
        with doing("cannot open a sector file that was set aside"):
            return os.open(self._path(sector_id), os.O_RDONLY | os.O_CLOEXEC)

    def remove(self, sector_id: bytes) -> int:
        """Delete a sector's file, if there is one; return the bytes it had."""
        path = self._path(sector_id)
        with doing("cannot remove a sector file that was set aside"):
            try:
                size = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                return 0
            return size

    def _path(self, sector_id: bytes) -> Path:
        return self._directory / sector_id.hex()

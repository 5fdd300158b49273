# SPDX-License-Identifier: Apache-2.0
"""Whether those who list directories want the attributes of files, too. Pure.

``find -type f``, a shell or an importer wants names, and the kernel makes an inode of each file
whose attributes it gets: they cost more than the names. ``ls -l``, ``tar`` and ``du`` look up each
file that is listed without them, which costs more still. So a directory is listed without, and
whether one of its files is looked up afterwards says how the next ones are listed. Invariant: a
wrong guess costs time, never a wrong answer.
"""

from __future__ import annotations

AS_BEFORE = 64  # directories that are listed with attributes, before one is listed without again


class Walks:
    """How a mount's directories are listed.

    Attributes:
        with_attributes: list the one that has begun with the attributes of its files.
    """

    def __init__(self) -> None:
        self.with_attributes = False
        self._probe = 0  # node of the directory that was listed without attributes last
        self._left = 0  # directories to be listed with them

    def begin(self, directory: int) -> None:
        """Begin to list a directory.

        Args:
            directory: its node.
        """
        self.with_attributes = self._left > 0
        if self.with_attributes:
            self._left -= 1
        else:
            self._probe = directory

    def looked_up(self, directory: int) -> None:
        """Note that a file is looked up which is no directory itself.

        Args:
            directory: node of the directory that it is in.
        """
        if directory == self._probe:
            self._left = AS_BEFORE

# SPDX-License-Identifier: Apache-2.0
"""What something takes of a disk: bytes, and files, since a file system can run out of either."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """So many bytes, in so many files; directories count as files, for they take an inode."""

    bytes: int = 0
    files: int = 0

    def __add__(self, other: Room) -> Room:
        return Room(self.bytes + other.bytes, self.files + other.files)

    def __sub__(self, other: Room) -> Room:
        return Room(self.bytes - other.bytes, self.files - other.files)

    def __bool__(self) -> bool:
        return bool(self.bytes or self.files)

    def or_more(self, other: Room) -> Room:
        """Return the larger of both, in bytes and in files."""
        return Room(max(self.bytes, other.bytes), max(self.files, other.files))

    def covers(self, other: Room) -> bool:
        """Return whether there is as much of both as `other` has."""
        return self.bytes >= other.bytes and self.files >= other.files

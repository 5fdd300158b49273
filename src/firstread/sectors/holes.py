# SPDX-License-Identifier: Apache-2.0
"""Records of sector files with holes: which of their frames were written.

Only a device that fills at random makes such files. A record exists before the first byte behind a
hole is written, and the file has the mode `NO_PREFIX` from then on until it is whole or empty, so
nobody takes its size for a prefix: not this version, and not one that knows no records. A frame is
added after it was written, so a process that dies leaves a record that claims too little, never too
much. After a reboot nothing proves that order any more; `SectorStore.claim` empties such files.

Layout of ``ROOT/frames/<sector id>``: records of 16 bytes, appended, little-endian; what remains of
a torn one at the end is ignored. Changing this breaks files with holes:

====== ==== ====================================
offset size meaning
====== ==== ====================================
0      8    first byte of a piece of the sector
8      8    first byte behind it
====== ==== ====================================
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from firstread.sectors.frameset import NOTHING, FrameSet
from firstread.sectors.storelayout import doing, parse_name

_PIECE = struct.Struct("<QQ")


class HoleRecords:
    """The records below ``root/frames``.

    Args:
        root: of the sector store.
    """

    def __init__(self, root: Path) -> None:
        self._directory = root / "frames"

    def ids(self) -> list[bytes]:
        """Return the sectors that have a record."""
        with doing("cannot read the records of frames"):
            try:
                names = os.listdir(self._directory)
            except FileNotFoundError:
                return []
        return [sector_id for name in names if (sector_id := parse_name(name)) is not None]

    def read(self, sector_id: bytes) -> FrameSet | None:
        """Return the frames of a sector; None if there is no record, or it makes no sense."""
        with doing("cannot read a record of frames"):
            try:
                data = self._path(sector_id).read_bytes()
            except FileNotFoundError:
                return None
        found = NOTHING
        for start, end in _PIECE.iter_unpack(data[: len(data) // _PIECE.size * _PIECE.size]):
            if start > end:
                return None
            found = found.having(start, end)
        return found

    def begin(self, sector_id: bytes, prefix: int) -> None:
        """Write the record of a file that is a prefix still."""
        with doing("cannot write a record of frames"):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._path(sector_id).write_bytes(_PIECE.pack(0, prefix))

    def add(self, sector_id: bytes, start: int, end: int) -> None:
        """Note a piece that was written."""
        with doing("cannot write a record of frames"), self._path(sector_id).open("r+b") as file:
            whole = file.seek(0, os.SEEK_END) // _PIECE.size * _PIECE.size
            file.seek(whole)  # over what a full disk left of a piece
            file.write(_PIECE.pack(start, end))

    def remove(self, sector_id: bytes) -> None:
        """Delete a record, if there is one."""
        with doing("cannot remove a record of frames"):
            self._path(sector_id).unlink(missing_ok=True)

    def _path(self, sector_id: bytes) -> Path:
        return self._directory / sector_id.hex()

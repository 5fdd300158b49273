# SPDX-License-Identifier: Apache-2.0
"""Reads a whole archive at once, for tests of its entries."""

from __future__ import annotations

from firstread.convert.entry import TarEntry, TarLimits
from firstread.convert.stream import Feed
from firstread.convert.tar import TarReader


def read_archive(
    archive: bytes, chunk_size: int = 65_521, limits: TarLimits | None = None
) -> list[tuple[TarEntry, bytes]]:
    """Return each entry with its content, holes filled with zeros.

    Args:
        archive: uncompressed.
        chunk_size: of the pieces to cut it into; the default fits no block.
        limits: of the reader.

    Raises:
        ImageError: as `TarReader`.
    """
    chunks = (archive[at : at + chunk_size] for at in range(0, len(archive), chunk_size))
    reader = TarReader(Feed(chunks), limits)
    found = []
    for entry in reader:
        content = bytearray(entry.size)
        for offset, piece in reader.data(entry):
            content[offset : offset + len(piece)] = piece
        found.append((entry, bytes(content)))
    return found

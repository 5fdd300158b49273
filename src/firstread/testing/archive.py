# SPDX-License-Identifier: Apache-2.0
"""A whole archive read at once, for tests that look at what came out of it."""

from __future__ import annotations

from firstread.convert.entry import TarEntry, TarLimits
from firstread.convert.stream import Feed
from firstread.convert.tar import read_tar


def read_archive(
    archive: bytes, chunk_size: int = 65_521, limits: TarLimits | None = None
) -> list[tuple[TarEntry, bytes]]:
    """Return each entry with its content, holes filled with zeros.

    Args:
        archive: uncompressed.
        chunk_size: into how large pieces it is cut; the default fits no block.
        limits: of the reader.

    Raises:
        ImageError: as `read_tar`.
    """
    chunks = (archive[at : at + chunk_size] for at in range(0, len(archive), chunk_size))
    reader = read_tar(Feed(chunks), limits)
    found = []
    for entry in reader:
        content = bytearray(entry.size)
        for offset, piece in reader.data(entry):
            content[offset : offset + len(piece)] = piece
        found.append((entry, bytes(content)))
    return found

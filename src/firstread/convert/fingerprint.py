# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of files: equal for equal content, however it is stored or cut into chunks. Pure.

A fingerprint is a digest over the digests of a file's content in pieces of a sector. A converted
image gives them from its sectors, an ordinary one from its tar, so neither is ever unpacked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from firstread.erofs.tree import Node
from firstread.units import MiB


def chunks_of(node: Node) -> Iterator[tuple[int, int]]:
    """Yield (bytes, address) of each chunk of a file."""
    for number, address in enumerate(node.chunks):
        yield min(node.chunk_size, node.size - number * node.chunk_size), address


class Fingerprint:
    """Digest of one file: SHA-256 over the number and the SHA-256 of each piece that has data.

    A piece of zeros counts as one without data, however it is stored, so that a file of holes costs
    nothing, whatever its size.

    Args:
        size: bytes of the file.
        piece_size: bytes of a piece; the last may be shorter.
    """

    def __init__(self, size: int, piece_size: int) -> None:
        self._size = size
        self._piece_size = piece_size
        self._total = hashlib.sha256()
        self._piece = hashlib.sha256()
        self._number = 0  # of the current piece
        self._filled = 0  # bytes of it, digested
        self._has_data = False  # some of them are not zero

    def data(self, offset: int, view: memoryview) -> None:
        """Add the file's bytes at `offset`, in ascending order; gaps are zeros."""
        while view:
            number, start = divmod(offset, self._piece_size)
            if number != self._number:
                self._end_piece()
                self._number = number
            self._zeros(start)
            part = view[: self._piece_size - start]
            self._piece.update(part)
            self._filled += len(part)
            self._has_data = self._has_data or not is_zero(part)
            offset += len(part)
            view = view[len(part) :]

    def piece(self, number: int, digest: bytes) -> None:
        """Add a whole piece that has data by its digest."""
        self._total.update(number.to_bytes(8, "little") + digest)

    def digest(self) -> bytes:
        """Return the fingerprint."""
        self._end_piece()
        return self._total.digest()

    def _end_piece(self) -> None:
        if self._has_data:
            self._zeros(min(self._piece_size, self._size - self._number * self._piece_size))
            self.piece(self._number, self._piece.digest())
        if self._filled:
            self._piece, self._filled, self._has_data = hashlib.sha256(), 0, False

    def _zeros(self, end: int) -> None:
        while self._filled < end:
            count = min(end - self._filled, len(_ZEROS))
            self._piece.update(_ZEROS[:count])
            self._filled += count


_ZEROS = memoryview(bytes(MiB))


def is_zero(view: memoryview) -> bool:
    """Return whether `view` is all zeros; the search ends at the first block that is not."""
    return all(
        view[start : start + len(_ZEROS)] == _ZEROS[: len(view) - start]
        for start in range(0, len(view), len(_ZEROS))
    )

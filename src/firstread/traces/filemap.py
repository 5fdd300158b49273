# SPDX-License-Identifier: Apache-2.0
"""Finds the file of a range of a sector. Pure.

Owns the way from (device slot, byte) back to (path, offset). Invariant: a range of a chunk gives
the first file, in order of paths, that has the chunk.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from firstread.erofs.tree import HOLE, Node, split_address, walk
from firstread.sectors.format import BLOCK_SIZE
from firstread.units import round_up


class FileRange(NamedTuple):
    """A range of a file: its path, first byte, and bytes."""

    path: bytes
    offset: int
    length: int


class FileMap:
    """The files of an image by where their data lies.

    Args:
        root: of the image's tree, with addresses that count device slots.
    """

    def __init__(self, root: Node) -> None:
        chunks: dict[int, tuple[int, int]] = {}  # address -> (file, chunk)
        self._files: list[tuple[bytes, Node]] = []
        seen: set[int] = set()
        for path, node in walk(root):
            if not node.chunks or id(node) in seen:
                continue
            seen.add(id(node))
            number = len(self._files)
            self._files.append((path, node))
            for chunk, address in enumerate(node.chunks):
                if address != HOLE:
                    chunks.setdefault(address, (number, chunk))
        self._starts = sorted(chunks)
        self._owners = [chunks[address] for address in self._starts]

    def locate(self, slot: int, offset: int, length: int) -> Iterator[FileRange]:
        """Yield the ranges of files that a range of a sector holds; bytes of no file are left out.

        Args:
            slot: device slot of the sector, from 0.
            offset: first byte in the sector.
            length: bytes.
        """
        end = offset + length
        at = max(0, bisect_right(self._starts, slot << 32 | offset // BLOCK_SIZE) - 1)
        while at < len(self._starts):
            in_slot, block = split_address(self._starts[at])
            begin = block * BLOCK_SIZE
            if in_slot > slot or (in_slot == slot and begin >= end):
                return
            if in_slot == slot:
                yield from self._part(at, begin, offset, end)
            at += 1

    def _part(self, at: int, begin: int, offset: int, end: int) -> Iterator[FileRange]:
        """Yield what a chunk, whose data begins at `begin`, has of a range of its sector."""
        number, chunk = self._owners[at]
        path, node = self._files[number]
        first = chunk * node.chunk_size
        size = round_up(min(node.chunk_size, node.size - first), BLOCK_SIZE)
        start, stop = max(begin, offset), min(begin + size, end)
        if start < stop:
            yield FileRange(path, first + start - begin, stop - start)

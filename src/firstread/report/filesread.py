# SPDX-License-Identifier: Apache-2.0
"""Which files a start has read, and how much of each.

Owns the way from reads of sectors to files. A record says what waited; what the kernel holds of the
files in memory (`look_in_memory`) says more, because reads of present sectors raise no events.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from firstread.device.pages import cached_bytes
from firstread.erofs.reader import read_tree
from firstread.erofs.tree import HOLE, Node, split_address, walk
from firstread.fetch.imagehistory import ReadWaited
from firstread.report.startrecord import MAX_FILES, FileRead
from firstread.sectors.image import BlockImage
from firstread.traces.filemap import FileMap
from firstread.traces.firstreads import FirstReads
from firstread.traces.tracefile import TracedRead, escape


@dataclass(slots=True)
class Seen:
    """A file, as far as it is known; see `FileRead`."""

    reads: int = 0
    bytes: int = 0
    first: float | None = None
    seconds: float = 0.0
    cached: int | None = None


class FilesRead:
    """The files of an image, and what was read of them.

    Args:
        image: the image.
    """

    def __init__(self, image: BlockImage) -> None:
        self._sectors = len(image.index.sectors)
        self._root = read_tree(image.erofs)
        self._seen: dict[bytes, Seen] = {}

    def note(self, reads: Iterable[ReadWaited]) -> None:
        """Note reads of sectors."""
        files, first = FileMap(self._root), FirstReads()
        for read in reads:
            waited = dict[bytes, None]()
            for path, offset, length in files.locate(read.sector, read.offset, read.bytes):
                seen = self._seen.setdefault(path, Seen())
                waited[path] = None
                seen.bytes += sum(
                    part.length for part in first.of(TracedRead(0, offset, length, path))
                )
            for path in waited:
                seen = self._seen[path]
                seen.reads += 1
                seen.seconds += read.seconds / len(waited)
                seen.first = read.at if seen.first is None else min(seen.first, read.at)

    def look_in_memory(self, mountpoint: Path) -> list[int] | None:
        """Note how much of each file is in memory; return that for each sector, or None.

        None means that the kernel does not say it (Linux before 6.5), or not to this user.

        Args:
            mountpoint: of the image. Opening its files reads no data.
        """
        used = [0] * self._sectors
        try:
            for path, node in _files(self._root):
                for slot, count in _cached(mountpoint, path, node):
                    used[slot] += count
                    seen = self._seen.setdefault(path, Seen())
                    seen.cached = (seen.cached or 0) + count
        except OSError:
            return None
        for seen in self._seen.values():
            seen.cached = seen.cached or 0
        return used

    def document(self) -> tuple[list[FileRead], int]:
        """Return the files that were read most, and the number of others."""
        ordered = sorted(
            self._seen.items(), key=lambda item: (-max(item[1].bytes, item[1].cached or 0), item[0])
        )
        rows = [
            FileRead("/" + escape(path), s.reads, s.bytes, s.first, s.seconds, s.cached)
            for path, s in ordered[:MAX_FILES]
        ]
        return rows, max(0, len(ordered) - MAX_FILES)


def _files(root: Node) -> Iterator[tuple[bytes, Node]]:
    """Yield the regular files with data, each inode once."""
    done: set[int] = set()
    for path, node in walk(root):
        if stat.S_ISREG(node.mode) and node.chunks and id(node) not in done:
            done.add(id(node))
            yield path, node


def _cached(mountpoint: Path, path: bytes, node: Node) -> Iterator[tuple[int, int]]:
    """Yield (slot, bytes in memory) for the chunks of a file that have any."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(os.path.join(os.fsencode(mountpoint), path), flags)
    except FileNotFoundError:
        return  # something else is mounted on its directory
    try:
        if not cached_bytes(fd):
            return
        for number, address in enumerate(node.chunks):
            start = number * node.chunk_size
            count = 0 if address == HOLE else cached_bytes(fd, start, node.chunk_size)
            if count:
                yield split_address(address)[0], count
    finally:
        os.close(fd)

# SPDX-License-Identifier: Apache-2.0
"""Writes the disk of an image into one file, which the kernel mounts as EROFS.

Invariant: the file appears when all of it is verified, written, and on the disk.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

from firstread.erofs.extents import METADATA_SLOT, NO_SLOT
from firstread.errors import UsageError
from firstread.export.flatdisk import FlatDisk
from firstread.oci.repository import Repository
from firstread.sectors.content import read_frames, wanted_sectors
from firstread.sectors.image import BlockImage
from firstread.sectors.native import NativeSource
from firstread.units import MiB
from firstread.wholefile import whole_file

WORKERS = 4  # requests at a time, as a node makes them
_STEP = 4 * MiB  # of metadata


class _Part(NamedTuple):
    """Bytes of a sector that some file refers to."""

    offset: int  # on the disk
    start: int  # in the sector
    stop: int


def write_raw(repository: Repository, image: BlockImage, path: Path) -> int:
    """Write an image into the file `path`, sparse; return its size in bytes.

    Args:
        repository: has the sectors.
        image: the converted image.
        path: of the file, which is replaced.

    Raises:
        UsageError: there is something else than a file at `path`.
        FirstreadError: the image cannot be read, or is not what its digests say.
        OSError: the file cannot be written.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a file", hint="name a new file, or one to replace")
    disk = FlatDisk(image.erofs)
    with whole_file(path) as out:
        os.ftruncate(out.fileno(), disk.size)
        _Copy(repository, image, disk, out).run()
        os.fsync(out.fileno())
    return disk.size


class _Copy:
    def __init__(
        self, repository: Repository, image: BlockImage, disk: FlatDisk, out: BinaryIO
    ) -> None:
        self._source, self._sectors = NativeSource(repository), wanted_sectors(image)
        self._disk = disk
        self._fd = os.dup(out.fileno())  # threads that nobody waits for may write to it

    def run(self) -> None:
        sectors: list[tuple[int, list[_Part]]] = []
        for slot, parts in groupby(self._data(), key=lambda piece: piece[0]):
            if slot == METADATA_SLOT:
                self._metadata()
            else:
                sectors.append((slot, [part for _, part in parts]))
        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="export")
        waits = True
        try:
            for _ in pool.map(lambda work: self._sector(*work), sectors):
                pass
        except (KeyboardInterrupt, SystemExit):
            waits = False  # for a registry that may say nothing: this process ends soon
            raise
        finally:
            pool.shutdown(wait=waits, cancel_futures=True)
            if waits:
                os.close(self._fd)

    def _data(self) -> Iterator[tuple[int, _Part]]:
        for offset, extent in self._disk.pieces(0, self._disk.size):
            if extent.slot != NO_SLOT:
                yield extent.slot, _Part(offset, extent.start, extent.start + extent.length)

    def _metadata(self) -> None:
        offset = 0
        while piece := self._disk.metadata(offset, _STEP):
            offset += _write(self._fd, memoryview(piece), offset)

    def _sector(self, slot: int, parts: list[_Part]) -> None:
        sector, covering = self._sectors[slot], self._source.covering
        numbers = {n for part in parts for n in covering(sector, part.start, part.stop)}
        left = deque(parts)
        for frame in read_frames(self._source, sector, numbers):
            end = frame.offset + len(frame.data)
            while left and left[0].start < end:
                part = left[0]
                first, stop = max(part.start, frame.offset), min(part.stop, end)
                data = frame.data[first - frame.offset : stop - frame.offset]
                _write(self._fd, data, part.offset + first - part.start)
                if part.stop > end:
                    break  # the rest of it is in the next frame
                left.popleft()


def _write(fd: int, data: memoryview, offset: int) -> int:
    """Write all of `data`; return its length."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
    return done

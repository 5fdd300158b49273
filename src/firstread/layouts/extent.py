# SPDX-License-Identifier: Apache-2.0
"""Extents of local files: where a layout or an archive keeps a blob.

Owns reading them by offset (`pread`, so that threads share one descriptor); does not know what they
hold. Invariant: no read leaves the extent.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from firstread.errors import ImageError, LimitError, SourceError, from_os_error


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a file for reading; return its descriptor.

    Raises:
        SourceError: it is a pipe or another thing that cannot be read by offset; opening a pipe
            would wait until somebody writes to it.
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):  # reading a directory says what it is
        os.close(fd)
        raise SourceError(
            f"{os.fspath(path)!r} is not a file", hint="images are read from regular files only"
        )
    return fd


@dataclass(frozen=True, slots=True)
class Extent:
    """`size` bytes of a file, from byte `offset` on.

    Args:
        fd: descriptor of the file.
        owned: the descriptor is for this extent only, and closes with it.
    """

    fd: int
    offset: int
    size: int
    owned: bool = False

    def read(self, limit: int, what: str) -> bytes:
        """Return all bytes and close.

        Raises:
            LimitError: there are more than `limit` of them.
            ImageError: the file ends before.
            NodeError: it cannot be read.
        """
        with ExtentReader(self) as reader:
            if self.size > limit:
                raise LimitError(f"{what} has {self.size} bytes, more than {limit}")
            buffer = memoryview(bytearray(self.size))
            done = 0
            while count := reader.readinto(buffer[done:]):
                done += count
            if done != self.size:
                raise ImageError(f"{what} ends after {done} of {self.size} bytes")
            return bytes(buffer)


class ExtentReader:
    """A `firstread.oci.blobstream.Reader` of an extent, or of a part of it.

    Args:
        extent: to read.
        start: bytes to leave out.
        length: bytes at most.
    """

    def __init__(self, extent: Extent, start: int = 0, length: int | None = None) -> None:
        self._extent = extent
        self._position = extent.offset + start
        stop = extent.size if length is None else min(extent.size, start + length)
        self._stop = extent.offset + stop
        self._open = extent.owned

    def readinto(self, buffer: memoryview, /) -> int:
        rest = self._stop - self._position
        try:
            count = os.preadv(self._extent.fd, [buffer[:rest]], self._position)
        except OSError as exc:
            raise from_os_error(exc, "cannot read the image") from exc
        self._position += count
        return count

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._extent.fd)

    def __enter__(self) -> ExtentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

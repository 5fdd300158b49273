# SPDX-License-Identifier: Apache-2.0
"""The bytes of one blob, or of a range of it, as a stream.

Owns the verification that all repositories share. Invariant: a stream that covers a whole blob
ends either with the blob's digest verified or with DigestError. Nobody can verify a *range* here:
the reader of a range has digests of its own (the frame tables of a sector blob).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol, Self

from firstread.errors import DigestError, FirstreadError, UsageError
from firstread.oci.model import Descriptor
from firstread.units import KiB

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_SIZE: Final = 512 * KiB  # bytes; of an iterated blob, and of the copies made here


class Reader(Protocol):
    """What a `BlobStream` reads from: gives exactly the bytes that were asked for, in order."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer` from its start and return the bytes read; 0 only at the end."""
        ...

    def close(self) -> None: ...


class BlobStream(io.RawIOBase):
    """The bytes of one blob, or of a range of it: a raw binary file that cannot seek.

    Iterating gives chunks of `CHUNK_SIZE` bytes, each with memory of its own. ``readinto`` fills
    the caller's buffer and copies nothing more than HTTP needs. Use it as a context manager.

    Args:
        blob: what is read.
        reader: gives the bytes; closed with the stream.
        length: bytes that the reader gives.
        verify: the reader gives the whole blob, so check its digest at the end.
        image: for messages.

    Attributes:
        at_hand: bytes at its beginning that were asked for before, so that the time they take says
            nothing of the link.
    """

    at_hand: int = 0

    def __init__(
        self, blob: Descriptor, reader: Reader, *, length: int, verify: bool, image: str
    ) -> None:
        super().__init__()
        self.blob = blob
        self.length = length
        self._reader = reader
        self._left = length
        self._image = image
        self._digest = hashlib.new(blob.digest.partition(":")[0]) if verify else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read into `buffer` and return the number of bytes, 0 at the end.

        Less than the buffer holds is only returned at the end.

        Raises:
            DigestError: the whole blob was read, and it is not what its descriptor says.
            SourceError, NodeError: no more bytes can be had.
        """
        if self.closed:
            raise ValueError("the stream is closed")
        view = memoryview(buffer).cast("B")
        done = 0
        try:
            while self._left and done < len(view):
                count = self._reader.readinto(view[done : done + self._left])
                if not count:
                    raise DigestError(
                        f"blob {self.blob.digest} ends {self._left} bytes before its end",
                        hint="the image is damaged: push it again",
                    )
                if self._digest is not None:
                    self._digest.update(view[done : done + count])
                self._left -= count
                done += count
            if not self._left:
                self._verify()
        except FirstreadError as exc:
            exc.about(image=self._image)
            raise
        return done

    def _verify(self) -> None:
        """Compare size and digest, once."""
        digest, self._digest = self._digest, None
        if digest is None:
            return
        if self._reader.readinto(memoryview(bytearray(1))):
            raise DigestError(f"blob {self.blob.digest} has more bytes than {self.blob.size}")
        if digest.hexdigest() != self.blob.digest.partition(":")[2]:
            raise DigestError(
                f"the bytes of blob {self.blob.digest} do not have this digest",
                hint="the image is damaged: push it again",
            )

    def __iter__(self) -> Iterator[memoryview]:  # type: ignore[override]
        """Yield chunks; a raw file would yield lines, which a blob does not have."""
        while self._left or self._digest is not None:
            chunk = memoryview(bytearray(min(CHUNK_SIZE, self._left)))
            self.readinto(chunk)
            if chunk:
                yield chunk

    def readall(self) -> bytes:
        buffer = bytearray(self._left)
        self.readinto(buffer)
        return bytes(buffer)

    @property
    def source(self) -> str:
        """Name of the endpoint of the last bytes, for people; ``""`` if there is only one."""
        return ""

    def distrust(self) -> bool:
        """Report that the bytes were wrong, as only the reader of a range can tell.

        Returns:
            Whether another endpoint has the blob; it gets the next request.
        """
        return False

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()

    def __enter__(self) -> Self:
        return self


def clamp(blob: Descriptor, offset: int, length: int | None) -> int:
    """Return how many bytes of `blob` the range has, cut at the blob's end.

    Raises:
        UsageError: the range begins outside of the blob.
    """
    if not 0 <= offset <= blob.size or (length or 0) < 0:
        raise UsageError(f"blob {blob.digest} of {blob.size} bytes has no byte {offset}")
    rest = blob.size - offset
    return rest if length is None else min(length, rest)

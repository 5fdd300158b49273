# SPDX-License-Identifier: Apache-2.0
"""The one interface to a place where an image lives, whatever kind of place it is.

Owns the contract and the verification that all places share; knows no place. A repository holds
blobs (named by digest) and manifests (blobs that may also have a tag).

Invariants:

* Bytes are checked against the digest that asked for them. A blob read from its first to its last
  byte ends either with its digest verified or with DigestError. A *range* of a blob cannot be
  verified here: whoever reads ranges has his own digests (the frame tables of a sector blob).
* A writable place publishes nothing under a tag before `put_manifest`, and a blob is there whole
  or not at all. What was not finished is gone after `close`.
* Everything may be called from several threads at once. Nothing survives ``fork``: another process
  opens the place again, from its reference and options.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self

from firstread.errors import DigestError, FirstreadError, LimitError, UsageError
from firstread.oci.model import Descriptor, embedded
from firstread.oci.reference import Reference
from firstread.units import KiB

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_SIZE = 512 * KiB  # bytes; of an iterated blob, and of the copies made here

Progress = Callable[[int], None]
"""Told the bytes of a blob that have been sent so far; the number falls if a part is sent again."""


class Reader(Protocol):
    """Where a `BlobStream` takes its bytes from: exactly those asked for, in order."""

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
    """

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
        """Who gave the last bytes, for people; ``""`` if the place is but one."""
        return ""

    def distrust(self) -> bool:
        """Say that the bytes were not what they should be, as only the reader can know of a range.

        Returns:
            Whether somebody else has the blob, and gets the next request for it.
        """
        return False

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()

    def __enter__(self) -> Self:
        return self


class Repository(ABC):
    """A place where the manifests and blobs of one image repository are. See the module.

    Args:
        reference: the image that the place was opened for.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    @abstractmethod
    def get_manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        """Return a manifest or index, verified, with its descriptor.

        Args:
            reference: a tag or a digest; None for the one that `self.reference` names.

        Raises:
            NotFoundError: there is none.
            ImageError: it is not a manifest, or not the one that its digest names.
            SourceError: the place does not answer.
        """

    @abstractmethod
    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        """Return the bytes of `blob` from `offset` on.

        A transient failure on the way is survived: reading resumes at the byte where it broke.

        Args:
            blob: which; its size is believed, and checked.
            offset: bytes to leave out at the start.
            length: bytes at most; the range is cut at the end of the blob.

        Raises:
            NotFoundError: it is missing (UnsupportedError, if it is a layer that may not be
                distributed).
            SourceError: the place does not answer.
        """

    @abstractmethod
    def has_blob(self, blob: Descriptor) -> bool:
        """Tell whether `blob` is there; its bytes are not looked at."""

    @abstractmethod
    def put_blob(
        self,
        blob: Descriptor,
        file: BinaryIO,
        *,
        on_progress: Progress | None = None,
        verified: bool = False,
    ) -> bool:
        """Make sure that `blob` is there.

        Args:
            blob: its digest and size.
            file: its bytes, from the current position; seekable.
            on_progress: told how far it is.
            verified: the digest was computed when `file` was written, so the bytes need not be
                digested once more.

        Returns:
            False if it was there already and nothing was sent.

        Raises:
            DigestError: `file` does not hold this blob.
            SourceError, NodeError: the place cannot take it.
        """

    def mount_blob(self, blob: Descriptor, repository: str) -> bool:
        """Take `blob` over from another repository of the same registry, without its bytes.

        Args:
            blob: its digest and size.
            repository: which may have it.

        Returns:
            Whether the blob is there now; always False where this is no registry.

        Raises:
            SourceError: the registry does not answer, or does not let us read there.
        """
        return False

    def prepare(self, blobs: Iterable[Descriptor]) -> None:  # noqa: B027 - few have to
        """Open what reading these blobs will need, so that later nothing is opened by its name.

        What cannot be had now is left for later.
        """

    scratch_dir: Path | None = None
    """Where a new blob is best written (`ingest.open_scratch`) so that `put_blob` need not copy it;
    None for ``$TMPDIR``."""

    @abstractmethod
    def put_manifest(self, data: bytes, media_type: str, tag: str | None) -> Descriptor:
        """Publish a manifest whose blobs are all there, and return its descriptor.

        Args:
            data: the document; stored as it is.
            media_type: of `data`.
            tag: what it is called from now on instead of what had the name before; None to reach
                it by its digest.

        Raises:
            SourceError, NodeError: the place cannot take it.
        """

    def referrers(self, subject: str, artifact_type: str) -> list[Descriptor]:
        """Return the manifests of a type that name the manifest `subject` as what they belong to.

        Nothing of it is verified but its form: anyone who may push here can be in the list. A place
        that keeps no such lists has none.

        Args:
            subject: digest of a manifest.
            artifact_type: of the manifests wanted.

        Raises:
            ImageError: the list is not valid, or longer than anybody needs.
            SourceError: the place does not answer.
        """
        return []

    def put_referrer(self, data: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        """Publish a manifest that has a ``subject``, so that `referrers` finds it.

        Publishing it again changes nothing.

        Args:
            data: the document; its blobs are all there.
            media_type: of `data`.
            tag: a name for it besides.

        Raises:
            UsageError: the place keeps no lists of referrers.
            SourceError, NodeError, ImageError: the place, or its present list, does not take it.
        """
        raise UsageError(
            "nothing can be attached to an image here",
            image=str(self.reference),
            hint="name an image in a registry (docker://) or in an OCI layout (oci:)",
        )

    def manifests(self) -> Iterator[Descriptor]:
        """Yield what the place's own index names; a registry has none."""
        raise UsageError("this place does not list its images", image=str(self.reference))

    @abstractmethod
    def close(self) -> None:
        """Give back connections, files and locks. May be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.reference}>"

    def read_blob(self, blob: Descriptor, limit: int) -> bytes:
        """Return all bytes of a small blob, verified.

        Raises:
            LimitError: it has more than `limit` bytes; none was read.
            Everything that `open_blob` and reading raise.
        """
        if blob.size > limit:
            raise LimitError(
                f"blob {blob.digest} has {blob.size} bytes, more than {limit}",
                image=str(self.reference),
            )
        if (data := embedded(blob)) is not None:
            return data
        with self.open_blob(blob) as stream:
            return stream.readall()


class ReadOnly(Repository):
    """A place that can only be read."""

    def put_blob(self, *_: Any, **__: Any) -> bool:
        raise self._refusal()

    def put_manifest(self, *_: Any, **__: Any) -> Descriptor:
        raise self._refusal()

    def _refusal(self) -> UsageError:
        return UsageError(
            "this place can only be read",
            image=str(self.reference),
            hint="use docker://, oci: or oci-archive: as the destination",
        )


def clamp(blob: Descriptor, offset: int, length: int | None) -> int:
    """Return how many bytes of `blob` the range has, cut at the blob's end.

    Raises:
        UsageError: the range begins outside of the blob.
    """
    if not 0 <= offset <= blob.size or (length or 0) < 0:
        raise UsageError(f"blob {blob.digest} of {blob.size} bytes has no byte {offset}")
    rest = blob.size - offset
    return rest if length is None else min(length, rest)


@contextmanager
def naming(reference: Reference) -> Iterator[None]:
    """Make every error of the block name the image."""
    try:
        yield
    except FirstreadError as exc:
        exc.about(image=str(reference))
        raise

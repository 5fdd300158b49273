# SPDX-License-Identifier: Apache-2.0
"""The interface to a repository of images, wherever it is, and to one that takes them.

Owns the contract; knows no kind of repository. A repository holds blobs (named by digest) and
manifests (blobs that may also have a tag). Code that only reads takes a `Repository`; code that
writes takes a `Destination`, which adds the methods that a read-only repository does not have.

Invariants:

* Bytes are checked against the digest that asked for them; see `firstread.oci.blobstream`.
* A destination publishes nothing under a tag before `put_manifest`, and a blob is there whole or
  not at all. `close` removes what was not finished.
* Threads may share a repository. Nothing survives ``fork``: another process opens the repository
  again, from its reference and options.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self

from firstread.errors import FirstreadError, LimitError, UsageError
from firstread.oci.blobstream import BlobStream
from firstread.oci.model import Descriptor, embedded
from firstread.oci.reference import Reference

Progress = Callable[[int], None]
"""Told the bytes of a blob that have been sent so far; the number falls if a part is sent again."""


class Repository(ABC):
    """The manifests and blobs of one image repository, to read. See the module.

    Args:
        reference: the image that the repository was opened for.
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
            SourceError: the repository does not answer.
        """

    @abstractmethod
    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        """Return the bytes of `blob` from `offset` on.

        The stream survives a transient failure: reading resumes at the byte where it broke.

        Args:
            blob: which; its size is believed, and checked.
            offset: bytes to leave out at the start.
            length: bytes at most; the end of the blob cuts the range.

        Raises:
            NotFoundError: it is missing (UnsupportedError, if it is a layer that may not be
                distributed).
            SourceError: the repository does not answer.
        """

    @abstractmethod
    def has_blob(self, blob: Descriptor) -> bool:
        """Return whether `blob` is there, without looking at its bytes."""

    def prepare(self, blobs: Iterable[Descriptor]) -> None:  # noqa: B027 - few have to
        """Open what reading these blobs will need, so that no read opens a file by name later.

        Files that cannot be opened now are left for later.
        """

    def referrers(self, subject: str, artifact_type: str) -> list[Descriptor]:
        """Return the manifests of a type that name the manifest `subject` as their subject.

        Only the form of the list is verified: anyone who may push here can be in it. Entries that
        state no type may be of another one. A repository that keeps no such lists has none.

        Args:
            subject: digest of a manifest.
            artifact_type: of the manifests wanted.

        Raises:
            ImageError: the list is not valid, or longer than anybody needs.
            SourceError: the repository does not answer.
        """
        return []

    @abstractmethod
    def close(self) -> None:
        """Give back connections, files and locks. May be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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


class Destination(Repository):
    """A repository that also takes images."""

    scratch_dir: Path | None = None
    """Where to write a new blob (`ingest.open_scratch`) so that `put_blob` need not copy it; None
    for ``$TMPDIR``."""

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
            verified: the writer of `file` computed the digest, so the destination need not.

        Returns:
            False if it was there already and nothing was sent.

        Raises:
            DigestError: `file` does not hold this blob.
            SourceError, NodeError: the destination cannot take it.
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

    @abstractmethod
    def put_manifest(self, data: bytes, media_type: str, tag: str | None) -> Descriptor:
        """Publish a manifest whose blobs are all there, and return its descriptor.

        Args:
            data: the document; stored as it is.
            media_type: of `data`.
            tag: its name from now on, taken from whatever had it before; None to reach it by its
                digest.

        Raises:
            SourceError, NodeError: the destination cannot take it.
        """

    def put_referrer(self, data: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        """Publish a manifest that has a ``subject``, so that `referrers` finds it.

        Publishing it again changes nothing.

        Args:
            data: the document; its blobs are all there.
            media_type: of `data`.
            tag: a name for it besides.

        Raises:
            UsageError: the destination keeps no lists of referrers.
            SourceError, NodeError, ImageError: the destination, or its present list, does not take
                it.
        """
        raise UsageError(
            "nothing can be attached to an image here",
            image=str(self.reference),
            hint="name an image in a registry (docker://) or in an OCI layout (oci:)",
        )


@contextmanager
def naming(reference: Reference) -> Iterator[None]:
    """Make every error of the block name the image."""
    try:
        yield
    except FirstreadError as exc:
        exc.about(image=str(reference))
        raise

# SPDX-License-Identifier: Apache-2.0
"""A repository of whose blobs the beginning may be here already; see `firstread.mounts.heads`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from firstread.mounts.heads import Head, HeadReader, Heads, asking
from firstread.oci.blobstream import BlobStream, clamp
from firstread.oci.model import Descriptor
from firstread.oci.repository import Repository


class HeadedRepository(Repository):
    """A repository, to read.

    Args:
        repository: that has all; closed with this.
        heads: of some blobs.
        key: of the repository and the access to it.
    """

    def __init__(self, repository: Repository, heads: Heads, key: Hashable) -> None:
        super().__init__(repository.reference)
        self._repository, self._heads, self._key = repository, heads, key

    def get_manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        return self._repository.get_manifest(reference)

    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        head = self._heads.find(self._key, blob)
        if head is None or not head.serves(offset):
            return self._repository.open_blob(blob, offset=offset, length=length)
        return _HeadedStream(self._repository, head, offset, clamp(blob, offset, length))

    def has_blob(self, blob: Descriptor) -> bool:
        return self._repository.has_blob(blob)

    def prepare(self, blobs: Iterable[Descriptor]) -> None:
        self._repository.prepare(blobs)

    def referrers(self, subject: str, artifact_type: str) -> list[Descriptor]:
        return self._repository.referrers(subject, artifact_type)

    def close(self) -> None:
        self._repository.close()


class _HeadedStream(BlobStream):
    """The bytes of a blob, the first of them from a head."""

    def __init__(self, repository: Repository, head: Head, offset: int, length: int) -> None:
        ask = asking(repository, head.blob)
        self._parts = HeadReader(head, ask, offset, offset + length)
        image = str(repository.reference)
        super().__init__(head.blob, self._parts, length=length, verify=False, image=image)
        self.at_hand = min(head.length - offset, length)

    @property
    def source(self) -> str:
        return self._parts.source

    def distrust(self) -> bool:
        return self._parts.distrust()

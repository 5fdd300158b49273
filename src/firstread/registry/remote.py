# SPDX-License-Identifier: Apache-2.0
"""``docker://``: an image repository in a registry, read from any of its endpoints.

Owns what is asked of whom; `attempts` does the asking. Invariant: only the registry itself is
written to, never a mirror.
"""

from __future__ import annotations

import dataclasses
import io
from operator import methodcaller
from typing import BinaryIO, Final

from firstread.errors import DigestError, ImageError, NotFoundError, SourceError
from firstread.oci.blobstream import BlobStream, clamp
from firstread.oci.model import Descriptor, describe
from firstread.oci.reference import DEFAULT_TAG, Reference, is_digest
from firstread.oci.referrers import describe_referrer
from firstread.oci.repository import Destination, Progress, Repository, naming
from firstread.registry.api import RepositoryApi
from firstread.registry.attempts import Attempts, Failures, Question
from firstread.registry.calls import within
from firstread.registry.hosts import PULL, REFERRERS, RESOLVE, Endpoint
from firstread.registry.referrerlists import add_to_tag
from firstread.registry.resume import RemoteStream, ResumingReader
from firstread.registry.upload import Upload

REFERRERS_S: Final = 9.0  # for all endpoints together


class RemoteRepository(Repository):
    """One repository of a registry.

    Args:
        reference: host, repository and image.
        attempts: asks its endpoints.

    Raises:
        UsageError: none may be asked for images.
    """

    def __init__(self, reference: Reference, attempts: Attempts) -> None:
        super().__init__(reference)
        self._attempts = attempts
        self._holders = attempts.able(PULL, "images")  # of what is named by digest

    def get_manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        wanted = reference or self.reference.digest or self.reference.tag or DEFAULT_TAG
        by_digest = is_digest(wanted)
        able = self._holders if by_digest else self._attempts.able(RESOLVE, "tags")
        ask = methodcaller("get_manifest", wanted)
        question: Question[tuple[Descriptor, bytes]] = Question(wanted, ask)
        with naming(self.reference):
            return self._attempts.ask(question, able)[1]

    def connect_ahead(self) -> None:
        """Have a connection more: what the manifest names will be asked for at the same time.

        Takes as long as a connection does, and fails silently: whoever needs it makes another.
        """
        first = self._holders[0]
        if not first.health.barred_s():
            first.api.transport.connect_ahead()

    def referrers(self, subject: str, artifact_type: str) -> list[Descriptor]:
        """As `Repository.referrers`; the first endpoint that has any is believed, as for a tag.

        Only the registry itself can say that there are none. All are asked within `REFERRERS_S`,
        and how they answer is not held against them.
        """
        able = self._attempts.able(REFERRERS) or self._attempts.able(RESOLVE)
        failures: Failures = []
        with naming(self.reference), within(REFERRERS_S):
            for candidate in sorted(able, key=lambda c: c.health.rests_until() > 0.0):
                if candidate.health.barred_s():
                    failures.append((candidate, candidate.barred()))
                    continue
                try:  # a mirror may know neither the API nor the tag
                    if found := candidate.api.referrers(subject, artifact_type):
                        return found
                except (SourceError, ImageError) as exc:
                    failures.append((candidate, exc))
            failed = {candidate.endpoint for candidate, _ in failures}
            if len(failures) == len(able) > 0 or self._attempts.server in failed:
                raise self._attempts.worst(failures)
        return []  # also if the configuration says that nobody may be asked

    def has_blob(self, blob: Descriptor) -> bool:
        question: Question[None] = Question(blob.digest, methodcaller("need_blob", blob))
        with naming(self.reference):
            try:
                self._attempts.ask(question, self._holders)
            except NotFoundError:
                return False
            return True

    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        with naming(self.reference):
            count = clamp(blob, offset, length)
            reader = ResumingReader(self._attempts, self._holders, blob, offset, offset + count)
            if count:
                reader.open()
            return RemoteStream(blob, reader, count, self.reference)

    def read_blob(self, blob: Descriptor, limit: int) -> bytes:
        for _ in self._holders[1:]:
            try:
                return super().read_blob(blob, limit)
            except DigestError:
                if all(holder.avoided(blob.digest) for holder in self._holders):
                    raise
        return super().read_blob(blob, limit)

    def endpoints(self) -> list[tuple[Endpoint, RepositoryApi]]:
        """Return each endpoint that may be asked, in order, and this repository there."""
        return [(candidate.endpoint, candidate.api) for candidate in self._attempts.candidates]

    def shared(self) -> RemoteRepository:
        """Return it for all of its images, with the same connections: close one of both."""
        reference = dataclasses.replace(self.reference, tag=None, digest=None)
        return RemoteRepository(reference, self._attempts)

    def close(self) -> None:
        self._attempts.close()


class RemoteDestination(RemoteRepository, Destination):
    """One repository of a registry, to write: its only endpoint is the registry itself."""

    def __init__(self, reference: Reference, attempts: Attempts) -> None:
        super().__init__(reference, attempts)
        self._backoff = attempts.backoff
        (self._server,) = (candidate.api for candidate in attempts.candidates)

    def put_blob(
        self,
        blob: Descriptor,
        file: BinaryIO,
        *,
        on_progress: Progress | None = None,
        verified: bool = False,
    ) -> bool:
        with naming(self.reference):
            if self.has_blob(blob):
                return False
            self._upload(blob, file, on_progress).run()
            return True

    def mount_blob(self, blob: Descriptor, repository: str) -> bool:
        with naming(self.reference):
            self._server.transport.ask_for(f"repository:{repository}:pull")
            return self._upload(blob, io.BytesIO(), None).mount(repository)

    def _upload(self, blob: Descriptor, file: BinaryIO, progress: Progress | None) -> Upload:
        return Upload(self._server.transport, self._backoff, blob, file, progress)

    def put_manifest(self, data: bytes, media_type: str, tag: str | None) -> Descriptor:
        with naming(self.reference):
            self._backoff.insist(lambda: self._server.put_manifest(data, media_type, tag))
        return describe(data, media_type)

    def put_referrer(self, data: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        subject, entry = describe_referrer(data, media_type)
        with naming(self.reference):
            answer = self._backoff.insist(lambda: self._server.put_manifest(data, media_type, tag))
            if answer.headers.get("OCI-Subject", "") != subject.digest:
                add_to_tag(self._server.transport, self._backoff, subject.digest, entry)
        return describe(data, media_type)

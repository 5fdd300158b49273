# SPDX-License-Identifier: Apache-2.0
"""``docker://``: an image repository in a registry.

Owns the meaning of the registry's answers (manifests, blobs, ranges); `transport` sends, `upload`
pushes. Invariant: whatever breaks while a blob is read, the next byte given out is the next byte of
the blob.

Facts about ranges:

* docker-registry 2.8 answers a range past the end with 416 and a wrong length: ranges are cut.
* A registry may redirect blobs to a store whose URL is signed and expires. The URL is kept for
  `MOVED_LIFETIME`, so that thousands of lazy reads do not each ask twice; when the store refuses,
  the registry is asked again.

Source: distribution-spec v1.1; RFC 9110, section 14 (range requests).
"""

from __future__ import annotations

import io
import re
import time
from typing import BinaryIO, Final
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from firstread.errors import DigestError, NotFoundError, SourceError, TransportError
from firstread.oci.endpoint import shown
from firstread.oci.faults import from_exception
from firstread.oci.hosts import Endpoint
from firstread.oci.model import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1_SIGNED,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    describe,
    missing_blob,
    offered_media_type,
    sha256_digest,
)
from firstread.oci.options import AccessOptions
from firstread.oci.reference import DEFAULT_TAG, Reference, is_digest
from firstread.oci.referrers import add_to_tag, describe_referrer, list_referrers
from firstread.oci.repository import BlobStream, Progress, Repository, clamp, naming
from firstread.oci.standing import Declined
from firstread.oci.transport import SUCCESS, Answer, Transport, release
from firstread.oci.upload import Upload

MAX_MOVED: Final = 256  # addresses that are kept
MOVED_LIFETIME: Final = 60.0  # seconds; stores sign URLs for minutes at least

# Schema 1 is asked for, too: else a registry says "not found" where we can say what is wrong.
_ACCEPT: Final = ", ".join(
    (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX, DOCKER_SCHEMA1_SIGNED)
)
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(?:(\d{1,18})|\*)")
_SKIP_SIZE: Final = 1 << 18  # bytes


class RegistryRepository(Repository):
    """One repository of a registry, at one of its endpoints.

    Args:
        reference: host, repository and image.
        options: how to reach it.
        endpoint: which; None for the registry itself.
        push: it will be written to, so ask for that right.
        declined: what is not asked now; shared by all who reach the same registries.

    Attributes:
        transport: sends the requests.
    """

    def __init__(
        self,
        reference: Reference,
        options: AccessOptions,
        endpoint: Endpoint | None = None,
        *,
        push: bool = False,
        declined: Declined | None = None,
    ) -> None:
        super().__init__(reference)
        self._declined = declined or Declined()
        self.transport = Transport(reference, "pull,push" if push else "pull", options, endpoint)
        self._root = self.transport.root
        self._moved: dict[str, tuple[str, float]] = {}  # digest -> (URL, valid until)

    def get_manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        wanted = reference or self.reference.digest or self.reference.tag or DEFAULT_TAG
        with naming(self.reference):
            answer = self.transport.request(
                "GET",
                f"{self._root}/manifests/{wanted}",
                what=f"cannot read manifest {wanted}",
                headers={"Accept": _ACCEPT},
            )
            declared = answer.headers.get("Content-Type", "").partition(";")[0].strip()
            media_type = offered_media_type(answer.data, declared)
            like = wanted if is_digest(wanted) else answer.headers.get("Docker-Content-Digest", "")
            if not is_digest(like):
                return describe(answer.data, media_type), answer.data
            found = describe(answer.data, media_type, like=like)
            if found.digest != like:
                raise DigestError(f"the bytes of manifest {wanted} do not have the digest {like}")
            return found, answer.data

    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        with naming(self.reference):
            count = clamp(blob, offset, length)
            reader = self.reader(blob, offset, offset + count, skip=count == blob.size)
        return BlobStream(
            blob, reader, length=count, verify=count == blob.size, image=str(self.reference)
        )

    def reader(self, blob: Descriptor, start: int, stop: int, *, skip: bool) -> BlobReader:
        """Return what `open_blob` reads from; the first answer has begun. As `open_range`."""
        return BlobReader(self, blob, start, stop, skip=skip)

    def has_blob(self, blob: Descriptor) -> bool:
        what, url = f"cannot look for blob {blob.digest}", self._blob_url(blob)
        with naming(self.reference):
            # A store that the registry redirects to may have signed the URL for GET only, and
            # some registries know no HEAD: then one byte is read.
            head = self.transport.request(
                "HEAD", url, what=what, expect=(200, 404, 400, 403, 405, 501)
            )
            if head.status in (200, 404):
                return head.status == 200
            answer, _ = self.transport.open(
                "GET", url, what=what, expect=(200, 206, 404, 416), headers={"Range": "bytes=0-0"}
            )
            answer.close()
            return answer.status != 404

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
            return Upload(self.transport, self._root, blob, file, on_progress).run()

    def mount_blob(self, blob: Descriptor, repository: str) -> bool:
        with naming(self.reference):
            self.transport.allow_mount(repository)
            return Upload(self.transport, self._root, blob, io.BytesIO(), None).mount(repository)

    def put_manifest(self, data: bytes, media_type: str, tag: str | None) -> Descriptor:
        self._put_manifest(data, media_type, tag)
        return describe(data, media_type)

    def _put_manifest(self, data: bytes, media_type: str, tag: str | None) -> Answer:
        with naming(self.reference):
            return self.transport.request(
                "PUT",
                f"{self._root}/manifests/{tag or sha256_digest(data)}",
                what="cannot publish the manifest",
                expect=SUCCESS,
                headers={"Content-Type": media_type},
                body=data,
            )

    def referrers(self, subject: str, artifact_type: str) -> list[Descriptor]:
        with naming(self.reference):
            return list_referrers(
                self.transport, self._root, subject, artifact_type, self._declined
            )

    def put_referrer(self, data: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        subject, entry = describe_referrer(data, media_type)
        answer = self._put_manifest(data, media_type, tag)
        if answer.headers.get("OCI-Subject", "") != subject.digest:
            with naming(self.reference):
                add_to_tag(self.transport, self._root, subject.digest, entry)
        return describe(data, media_type)

    def close(self) -> None:
        self.transport.close()

    def _blob_url(self, blob: Descriptor) -> str:
        return f"{self._root}/blobs/{blob.digest}"

    def open_range(
        self, blob: Descriptor, start: int, stop: int, *, skip: bool
    ) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Ask for the bytes `start` to `stop` of `blob`.

        Args:
            blob: which.
            start: first byte.
            stop: the byte after the last.
            skip: a registry that cannot give ranges may send what is before `start`; it is dropped.

        Returns:
            The answer, its body beginning at `start`, and the URL that gave it.

        Raises:
            DigestError: the blob in the registry has another size.
            SourceError: as everywhere.
        """
        answer, url = self._get(blob, start, stop)
        try:
            first = _first_byte(blob, start, answer)
            if first < start:
                _skip(answer, start, url, allowed=skip)
        except BaseException:
            answer.close()
            raise
        return answer, url

    def _get(self, blob: Descriptor, start: int, stop: int) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Send the request for a range, to where the registry last redirected to."""
        headers = {} if (start, stop) == (0, blob.size) else {"Range": f"bytes={start}-{stop - 1}"}
        what, own = f"cannot read blob {blob.digest}", self._blob_url(blob)
        expect = (200, 206, 416)
        moved, until = self._moved.get(blob.digest, ("", 0.0))
        if time.monotonic() < until:
            try:
                return self.transport.open("GET", moved, what=what, expect=expect, headers=headers)
            except SourceError as exc:
                self._moved.pop(blob.digest, None)
                if exc.retryable:
                    raise
        try:
            answer, url = self.transport.open("GET", own, what=what, expect=expect, headers=headers)
        except NotFoundError as exc:
            raise missing_blob(blob) from exc
        if urlsplit(url).path != own:
            self._moved[blob.digest] = (url, time.monotonic() + MOVED_LIFETIME)
            while len(self._moved) > MAX_MOVED:
                self._moved.pop(next(iter(self._moved)), None)
        return answer, url


class BlobReader:
    """Reads a range of a blob, over as many connections as it takes."""

    def __init__(
        self,
        repository: RegistryRepository,
        blob: Descriptor,
        start: int,
        stop: int,
        *,
        skip: bool,
    ) -> None:
        self._repository = repository
        self._blob = blob
        self._position = start
        self._stop = stop
        self._skip = skip
        self._answer = self._open() if start < stop else None

    def readinto(self, buffer: memoryview, /) -> int:
        attempt = 0
        while self._position < self._stop:
            try:
                if self._answer is None:
                    self._answer = self._open()
                count = self._read(*self._answer, buffer[: self._stop - self._position])
            except TransportError as exc:
                self.close()
                self._repository.transport.wait(attempt, exc)
                attempt += 1
            else:
                self._position += count
                return count
        return 0

    def close(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            release(answer[0])

    def _open(self) -> tuple[urllib3.BaseHTTPResponse, str]:
        return self._repository.open_range(self._blob, self._position, self._stop, skip=self._skip)

    def _read(self, answer: urllib3.BaseHTTPResponse, url: str, buffer: memoryview) -> int:
        try:
            count = answer.readinto(buffer)
        except (HTTPError, OSError) as exc:
            raise from_exception(exc, url) from exc
        if not count:
            raise TransportError(f"cannot read blob {self._blob.digest}: the answer is too short")
        return count


def _first_byte(blob: Descriptor, start: int, answer: urllib3.BaseHTTPResponse) -> int:
    """Return where in `blob` the body of `answer` begins: at `start`, or at 0.

    Raises:
        DigestError: the blob in the registry has another size.
        TransportError: it is another range than asked for.
    """
    if answer.status == 416:
        raise DigestError(f"blob {blob.digest} has less than {start + 1} bytes in the registry")
    if answer.status == 200:
        first, size = 0, answer.headers.get("Content-Length")
    else:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise TransportError(f"cannot read blob {blob.digest}: the registry sent another range")
        first, size = start, match[3]
    if size is not None and size != str(blob.size):
        raise DigestError(
            f"blob {blob.digest} has {size[:20]} bytes in the registry, not {blob.size}"
        )
    return first


def _skip(answer: urllib3.BaseHTTPResponse, count: int, url: str, *, allowed: bool) -> None:
    """Drop the first `count` bytes of an answer."""
    if not allowed:
        raise SourceError(
            f"registry {shown(url)} ignores range requests",
            hint="sectors cannot be read from it one by one: use another registry or a mirror",
        )
    while count:
        try:
            data = answer.read(min(count, _SKIP_SIZE))
        except (HTTPError, OSError) as exc:
            raise from_exception(exc, url) from exc
        if not data:
            raise TransportError("the answer is too short")
        count -= len(data)

# SPDX-License-Identifier: Apache-2.0
"""One repository at one endpoint of its registry: each call is one attempt.

Owns the meaning of the registry's answers (manifests, blobs, ranges); `transport` sends, `upload`
pushes, `attempts` tries again.

Facts about ranges:

* docker-registry 2.8 answers a range past the end with 416 and a wrong length: ranges are cut.
* A registry may redirect blobs to a store whose URL is signed and expires. The URL is kept for
  `MOVED_LIFETIME`, so that thousands of lazy reads do not each ask twice; when the store refuses,
  the registry is asked again.

Source: distribution-spec v1.1; RFC 9110, section 14 (range requests).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from firstread.errors import DigestError, NotFoundError, SourceError, TransportError
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
from firstread.oci.reference import is_digest
from firstread.registry.answer import Answer, release
from firstread.registry.connections import read_body
from firstread.registry.encoding import Unpacked, is_gzip
from firstread.registry.endpoint import shown
from firstread.registry.faults import from_exception
from firstread.registry.health import Declined
from firstread.registry.publishing import publish_manifest
from firstread.registry.referrerlists import list_referrers
from firstread.registry.transport import Transport
from firstread.units import KiB

MAX_MOVED: Final = 256  # addresses that are kept
MOVED_LIFETIME: Final = 60.0  # seconds; stores sign URLs for minutes at least

# Schema 1 is asked for, too: else a registry says "not found" where we can say what is wrong.
_ACCEPT: Final = ", ".join(
    (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX, DOCKER_SCHEMA1_SIGNED)
)
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(?:(\d{1,18})|\*)")
_SKIP_SIZE: Final = 1 << 18  # bytes
LEAST_PART: Final = 64 * KiB  # bytes; a range in smaller parts takes more requests than it is worth
_RANGE_STATUSES: Final = (200, 206, 416)


class RepositoryApi:
    """One repository at one endpoint.

    Args:
        transport: sends the requests.
        declined: what the endpoint is not asked now; shared by all who use it.
    """

    def __init__(self, transport: Transport, declined: Declined) -> None:
        self.transport = transport
        self._declined = declined
        self._moved: dict[str, tuple[str, float]] = {}  # digest -> (URL, valid until)

    def get_manifest(self, wanted: str) -> tuple[Descriptor, bytes]:
        """Return a manifest by tag or digest. As `Repository.get_manifest`."""
        answer = self.transport.request(
            "GET",
            f"{self.transport.root}/manifests/{wanted}",
            what=f"cannot read manifest {wanted}",
            headers={"Accept": _ACCEPT},
        )
        declared = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        media_type = offered_media_type(answer.data, declared, what=f"manifest {wanted}")
        like = wanted if is_digest(wanted) else answer.headers.get("Docker-Content-Digest", "")
        if not is_digest(like):
            return describe(answer.data, media_type), answer.data
        found = describe(answer.data, media_type, like=like)
        if found.digest != like:
            raise DigestError(f"the bytes of manifest {wanted} do not have the digest {like}")
        return found, answer.data

    def has_blob(self, blob: Descriptor) -> bool:
        """Return whether `blob` is there."""
        what, url = f"cannot look for blob {blob.digest}", self._blob_url(blob)
        # A store that the registry redirects to may have signed the URL for GET only, and some
        # registries know no HEAD: then one byte is read.
        head = self.transport.request("HEAD", url, what=what, expect=(200, 404, 400, 403, 405, 501))
        if head.status in (200, 404):
            return head.status == 200
        answer, _ = self.transport.open(
            "GET", url, what=what, expect=(200, 206, 404, 416), headers={"Range": "bytes=0-0"}
        )
        answer.close()
        return answer.status != 404

    def need_blob(self, blob: Descriptor) -> None:
        """As `has_blob`, where another endpoint may have it. Raises: NotFoundError."""
        if not self.has_blob(blob):
            raise NotFoundError(f"there is no blob {blob.digest}")

    def put_manifest(self, data: bytes, media_type: str, tag: str | None) -> Answer:
        """Publish a manifest; return what the registry says. As `Destination.put_manifest`."""
        reference, what = tag or sha256_digest(data), "cannot publish the manifest"
        return publish_manifest(self.transport, reference, data, media_type, what)

    def referrers(self, subject: str, artifact_type: str) -> list[Descriptor]:
        """Return what refers to a manifest. As `Repository.referrers`."""
        return list_referrers(self.transport, subject, artifact_type, self._declined)

    def open_range(self, blob: Descriptor, start: int, stop: int, *, skip: bool) -> RangeAnswer:
        """Ask for the bytes `start` to `stop` of `blob`; return the answer, which has begun.

        Args:
            blob: which.
            start: first byte.
            stop: the byte after the last.
            skip: drop what a registry that cannot give ranges sends before `start`.

        Raises:
            DigestError: the blob in the registry has another size.
            SourceError: as everywhere.
        """
        headers = {} if (start, stop) == (0, blob.size) else {"Range": f"bytes={start}-{stop - 1}"}
        own = self._blob_url(blob)
        for target in (self._moved_to(blob.digest), own):
            if not target:
                continue
            try:
                response, url = self.transport.open(
                    "GET",
                    target,
                    what=f"cannot read blob {blob.digest}",
                    expect=_RANGE_STATUSES,
                    headers=headers,
                )
                break
            except SourceError as exc:
                self._moved.pop(blob.digest, None)
                if target is own and isinstance(exc, NotFoundError):
                    raise missing_blob(blob) from exc
                if target is own or exc.retryable:
                    raise
        if target is own and urlsplit(url).path != own:
            self._keep_moved(blob.digest, url)
        answer = RangeAnswer(blob, response, url)
        answer.begin(start, stop, skip=skip)
        return answer

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()

    def _blob_url(self, blob: Descriptor) -> str:
        return f"{self.transport.root}/blobs/{blob.digest}"

    def _moved_to(self, digest: str) -> str:
        """Return where the registry last redirected to; ``""`` if that is not known now."""
        url, until = self._moved.get(digest, ("", 0.0))
        return url if time.monotonic() < until else ""

    def _keep_moved(self, digest: str, url: str) -> None:
        self._moved[digest] = (url, time.monotonic() + MOVED_LIFETIME)
        while len(self._moved) > MAX_MOVED:
            self._moved.pop(next(iter(self._moved)), None)


class RangeAnswer:
    """The answer to one request for a range of a blob.

    Args:
        blob: which.
        response: its body unread.
        url: that gave it.
    """

    def __init__(self, blob: Descriptor, response: urllib3.BaseHTTPResponse, url: str) -> None:
        self._blob = blob
        self._response = response
        self._url = url
        self._read: Callable[[memoryview], int] = self._body
        self._left: int | None = None  # bytes, if the answer says that it is a part of the range

    def begin(self, start: int, stop: int, *, skip: bool) -> None:
        """Check that the body has the bytes `start` to `stop` of the blob, or make it so.

        A server may send the beginning of a range only (RFC 9110, 15.3.7), and ask for one more
        request in this way.

        Raises:
            DigestError: the blob in the registry has another size.
            TransportError: it is another range than asked for.
            SourceError: the registry knows no ranges, and `skip` does not allow for that.
        """
        try:
            first = self._first_byte(start, stop)
            if first < start:
                self._skip(start, allowed=skip)
        except BaseException:
            self._response.close()
            raise

    def readinto(self, buffer: memoryview) -> int:
        """Read at least one byte; 0 at the end of an answer that said it is a part of the range.

        Raises:
            TransportError: it broke off.
        """
        if self._left == 0:
            return 0
        count = self._read(buffer[: self._left])
        if not count:
            raise TransportError(f"cannot read blob {self._blob.digest}: the answer is too short")
        if self._left is not None:
            self._left -= count
        return count

    def close(self) -> None:
        release(self._response)

    def _body(self, buffer: memoryview) -> int:
        try:
            return read_body(self._response, buffer)
        except (HTTPError, OSError) as exc:
            self._response.close()
            raise from_exception(exc, self._url) from exc

    def _first_byte(self, start: int, stop: int) -> int:
        """Return where in the blob the body begins: at `start`, or at 0."""
        blob, response = self._blob, self._response
        if response.status == 416:
            raise DigestError(f"blob {blob.digest} has less than {start + 1} bytes in the registry")
        if response.status == 200:
            # Not the header: it may be there twice, or beside chunks, and then says nothing.
            left = getattr(response, "length_remaining", None)
            first, size = 0, None if left is None else str(left)
            # Some stores give the encoding of what they keep; then the length is that of the blob.
            encoded = is_gzip(response.headers.get("Content-Encoding", ""))
            if encoded and size != str(blob.size):
                self._read, size = Unpacked(self._body, blob.size).readinto, None
        else:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != start:
                raise TransportError(
                    f"cannot read blob {blob.digest}: the registry sent another range"
                )
            first, size, end = start, match[3], int(match[2]) + 1
            if start + LEAST_PART <= end < stop:
                self._left = end - start
        if size is not None and size != str(blob.size):
            raise DigestError(
                f"blob {blob.digest} has {size[:20]} bytes in the registry, not {blob.size}"
            )
        return first

    def _skip(self, count: int, *, allowed: bool) -> None:
        """Drop the first `count` bytes of the body."""
        if not allowed:
            raise SourceError(
                f"registry {shown(self._url)} ignores range requests",
                hint="sectors cannot be read from it one by one: use another registry or a mirror",
            )
        scratch = memoryview(bytearray(min(count, _SKIP_SIZE)))
        while count:
            count -= self.readinto(scratch[:count])

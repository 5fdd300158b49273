# SPDX-License-Identifier: Apache-2.0
"""One blob on its way into a registry.

Owns the upload session: mount, start, parts, resume, finish, cancel. Invariants: a part goes only
to the offset that the registry itself named, so a break in the middle neither doubles nor loses a
byte; the registry checks the digest at the end; a session that is of no more use is cancelled.

Facts about upload sessions:

* Every answer may move the session to another URL; only the newest is valid. An answer to a part
  that names none leaves it where it is.
* docker-registry 2.8 ignores a body that comes with the first POST. It takes PATCH and PUT bodies.
* It puts the offset into the session's URL, and refuses the URL (416 or 404) when a part broke off
  in the middle: then the upload starts again from its first byte, and nobody can cancel the session
  that is left. So a part that we stop ends in order, and its answer names the URL to cancel: a blob
  goes in chunks (RFC 9112, section 7.1), as docker and skopeo send it, and not as so many bytes.
* A cancellation that overtakes a part leaves half a session behind, which nobody can cancel either:
  it comes after the answer to the part.
* Some say 200 or 204 where the specification has 201 or 202: any 2xx is one.
* ``Range: 0-0`` can mean no byte or one byte; we do not believe it.

Source: distribution-spec v1.1, "Pushing blobs".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, Final
from urllib.parse import quote

from firstread.errors import (
    DigestError,
    FirstreadError,
    SourceError,
    TransportError,
    from_os_error,
)
from firstread.oci.model import Descriptor
from firstread.oci.repository import Progress
from firstread.registry.answer import Answer
from firstread.registry.backoff import Backoff
from firstread.registry.transport import SUCCESS, Transport
from firstread.units import KiB

_READ_SIZE: Final = 256 * KiB  # bytes
_RANGE: Final = re.compile(r"(?:bytes=)?0-(\d{1,18})")
_CREATED: Final = 201
_NO_PATCH: Final = (404, 405, 411, 501)  # registries that only take a blob in one PUT
_LOST: Final = (404, 416)  # registries that have forgotten a session, or what was sent in it


@dataclass(frozen=True, slots=True)
class _Session:
    """An upload that the registry knows: where to send, and what it has."""

    url: str
    offset: int = 0


class Upload:
    """Sends one blob.

    Args:
        transport: to the registry, with the right to push.
        backoff: when to try again.
        blob: to send.
        file: its bytes, from the current position.
        progress: told the bytes sent so far.
    """

    def __init__(
        self,
        transport: Transport,
        backoff: Backoff,
        blob: Descriptor,
        file: BinaryIO,
        progress: Progress | None,
    ) -> None:
        self._transport = transport
        self._backoff = backoff
        self._root = transport.root
        self._blob = blob
        self._file = file
        self._start_position = file.tell()
        self._progress = progress
        self._in_one = False  # it takes no parts
        self._what = f"cannot send blob {blob.digest}"
        self._session: _Session
        self._stopped: FirstreadError | None = None  # why a part ended before its end

    def run(self) -> None:
        """Send the blob.

        Raises:
            DigestError: the file does not hold this blob.
            SourceError: the registry does not take it.
            FirstreadError: of `progress`.
        """
        self._begin()
        try:
            self._send_all()
        except BaseException:
            self._cancel(self._session)
            raise

    def mount(self, mount_from: str) -> bool:
        """Mount the blob; return False, and send nothing, if the registry does not.

        Raises:
            SourceError: the registry does not answer, or does not let us read there.
        """
        mount = f"?mount={self._blob.digest}&from={quote(mount_from, safe='/')}"
        is_mounted = self._begin(mount).status == _CREATED
        if not is_mounted:
            self._cancel(self._session)
        return is_mounted

    def _send_all(self) -> None:
        attempt = best = 0
        while True:
            try:
                if self._step():
                    return
            except TransportError as exc:
                if self._stopped is not None:
                    raise self._stopped from exc
                self._backoff.wait(attempt, exc)
                attempt += 1
                if self._is_there():  # we lost the answer to the last part, not the part
                    self._cancel(self._session)  # it is another client's, if it is there still
                    return
                self._resume()
            if self._session.offset > best:
                best, attempt = self._session.offset, 0

    def _begin(self, query: str = "") -> Answer:
        """Start a session; return the answer, which may say that there is no need of one."""
        answer = self._backoff.insist(
            lambda: self._transport.request(
                "POST",
                f"{self._root}/blobs/uploads/{query}",
                what=self._what,
                expect=SUCCESS,
                headers={"Content-Length": "0"},
            )
        )
        if not query or answer.status != _CREATED:
            self._session = _Session(answer.location())
        return answer

    def _begin_again(self) -> None:
        """Start another session in place of one that is of no use any more."""
        lost = self._session
        self._begin()
        self._cancel(lost)

    def _step(self) -> bool:
        """Send what is missing; return whether the blob is complete."""
        session = self._session
        if self._in_one or session.offset == self._blob.size:
            self._finish(session)
            return True
        answer = self._send("PATCH", session.url, session.offset, (*SUCCESS, 416, *_NO_PATCH))
        if answer.status == 416:
            raise TransportError(f"{self._what}: the registry is at another byte of it")
        if answer.status in _NO_PATCH:
            self._in_one = True
            self._begin_again()
            return False
        offset = following(_taken(answer), session.offset, self._blob.size)
        self._session = _Session(answer.location(session.url), offset)
        if self._stopped is not None:
            raise self._stopped
        return False

    def _finish(self, session: _Session) -> None:
        """Send what is missing and have the registry check the digest."""
        separator = "&" if "?" in session.url else "?"
        url = f"{session.url}{separator}digest={self._blob.digest}"
        answer = self._send("PUT", url, session.offset, (*SUCCESS, 400, *_LOST))
        if answer.status in _LOST:
            raise TransportError(f"{self._what}: the registry does not know the upload any more")
        if answer.status == 400:
            kind = DigestError if b"DIGEST_INVALID" in answer.data[:4096] else SourceError
            said = self._transport.quoted(answer)
            raise kind(f"{self._what}: the registry does not accept it{said and f': {said}'}")

    def _send(self, method: str, url: str, start: int, expect: tuple[int, ...]) -> Answer:
        """Send the bytes from `start` on."""
        headers, end = {"Content-Type": "application/octet-stream"}, self._blob.size
        in_chunks = method == "PATCH" and start == 0
        if not in_chunks:
            headers["Content-Length"] = str(end - start)
        if 0 < start < end:
            headers["Content-Range"] = f"{start}-{end - 1}"
        read = self._read_until_stopped if in_chunks else self._read
        return self._transport.request(
            method,
            url,
            what=self._what,
            expect=expect,
            headers=headers,
            body=lambda: read(start),
        )

    def _read_until_stopped(self, start: int) -> Iterator[bytes]:
        """As `_read`; an error is kept, and is the end of the part."""
        try:
            yield from self._read(start)
        except FirstreadError as exc:
            self._stopped = exc

    def _read(self, start: int) -> Iterator[bytes]:
        """Yield the bytes of the blob from `start` on, and tell the progress."""
        try:
            self._file.seek(self._start_position + start)
            while start < self._blob.size:
                data = self._file.read(min(_READ_SIZE, self._blob.size - start))
                if not data:
                    raise DigestError(f"the file for blob {self._blob.digest} is too short")
                yield data
                start += len(data)
                if self._progress is not None:
                    self._progress(start)
        except OSError as exc:
            raise from_os_error(exc, "cannot read the blob") from exc

    def _is_there(self) -> bool:
        """Return whether the registry has the blob; False if it does not say: we send it again."""
        with suppress(SourceError):
            self._backoff.insist(
                lambda: self._transport.request(
                    "HEAD", f"{self._root}/blobs/{self._blob.digest}", what=self._what
                )
            )
            return True
        return False

    def _resume(self) -> None:
        """Ask how far the registry got; start again if it does not say."""
        url = self._session.url
        with suppress(SourceError):
            answer = self._transport.request("GET", url, what=self._what, expect=SUCCESS)
            self._session = _Session(answer.location(url), _taken(answer))
            if 1 < self._session.offset <= self._blob.size:
                return
        self._begin_again()

    def _cancel(self, session: _Session) -> None:
        """Have the registry remove what it got; it does so later anyway."""
        with suppress(SourceError):
            self._transport.request("DELETE", session.url, what=self._what, expect=SUCCESS)


def _taken(answer: Answer) -> int:
    """Return how many bytes of the blob the registry says it has; 0 if it does not say."""
    match = _RANGE.fullmatch(answer.headers.get("Range", ""))
    return int(match[1]) + 1 if match else 0


def following(taken: int, start: int, end: int) -> int:
    """Return where to go on after a part from `start` to `end`.

    Args:
        taken: bytes of the blob that the registry says it has. We believe less than we sent as long
            as it is some of this part: other registries count from the start of the part, or not
            at all.
        start: first byte of the part.
        end: the byte after its last.
    """
    return taken if max(start, 1) < taken < end else end

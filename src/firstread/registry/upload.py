# SPDX-License-Identifier: Apache-2.0
"""One blob on its way into a registry.

Owns the upload session: mount, start, parts, resume, finish. Invariant: a part goes only to the
offset that the registry itself named, so a break in the middle neither doubles nor loses a byte;
the registry checks the digest at the end.

Facts about upload sessions:

* Every answer may move the session to another URL; only the newest is valid. An answer to a part
  that names none leaves it where it is.
* docker-registry 2.8 ignores a body that comes with the first POST. It takes PATCH and PUT bodies.
* It puts the offset into the session's URL, and refuses the URL (416 or 404) when a part broke off
  in the middle: then the upload starts again from its first byte.
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

from firstread.errors import DigestError, SourceError, TransportError, from_os_error
from firstread.oci.model import Descriptor
from firstread.oci.repository import Progress
from firstread.registry.answer import Answer
from firstread.registry.backoff import Backoff
from firstread.registry.transport import SUCCESS, Transport
from firstread.units import KiB

_READ_SIZE: Final = 256 * KiB  # bytes
_RANGE: Final = re.compile(r"(?:bytes=)?0-(\d{1,18})")
_CREATED: Final = 201
_NO_PATCH: Final = (404, 405, 501)  # registries that only take a blob in one PUT
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
        self._in_one = transport.options.upload == "monolithic"
        self._what = f"cannot send blob {blob.digest}"

    def run(self) -> bool:
        """Send the blob; return False if the registry turned out to have it.

        Raises:
            DigestError: the file does not hold this blob.
            SourceError: the registry does not take it.
        """
        session = self._begin(None)
        if session is None:
            return False
        attempt = best = 0
        while True:
            try:
                following = self._step(session)
            except TransportError as exc:
                self._backoff.wait(attempt, exc)
                attempt += 1
                if self._is_there():  # we lost the answer to the last part, not the part
                    return True
                following = self._resume(session)
            except BaseException:
                self._abandon(session)
                raise
            if following is None:
                return True
            session = following
            if session.offset > best:
                best, attempt = session.offset, 0

    def mount(self, mount_from: str) -> bool:
        """Mount the blob; return False, and send nothing, if the registry does not.

        Raises:
            SourceError: the registry does not answer, or does not let us read there.
        """
        session = self._begin(mount_from)
        if session is not None:
            self._abandon(session)
        return session is None

    def _begin(self, mount_from: str | None) -> _Session | None:
        """Start a session; None if the registry mounted the blob instead, as it was asked to."""
        query = ""
        if mount_from is not None:
            query = f"?mount={self._blob.digest}&from={quote(mount_from, safe='/')}"
        answer = self._backoff.insist(
            lambda: self._transport.request(
                "POST",
                f"{self._root}/blobs/uploads/{query}",
                what=self._what,
                expect=SUCCESS,
                headers={"Content-Length": "0"},
            )
        )
        if mount_from is not None and answer.status == _CREATED:
            return None
        return _Session(answer.location())

    def _step(self, session: _Session) -> _Session | None:
        """Send the next part; return where to go on, or None when the blob is complete."""
        rest = self._blob.size - session.offset
        if not rest or self._in_one:
            self._finish(session, rest)
            return None
        count = min(rest, self._transport.options.chunk_size or rest)
        answer = self._send(
            "PATCH", session.url, session.offset, count, (*SUCCESS, 416, *_NO_PATCH)
        )
        if answer.status == 416:
            raise TransportError(f"{self._what}: the registry is at another byte of it")
        if answer.status in _NO_PATCH:
            self._in_one = True
            return self._begin(None)
        offset = following(_taken(answer), session.offset, session.offset + count)
        return _Session(answer.location(session.url), offset)

    def _finish(self, session: _Session, rest: int) -> None:
        """Send the last `rest` bytes and have the registry check the digest."""
        separator = "&" if "?" in session.url else "?"
        url = f"{session.url}{separator}digest={self._blob.digest}"
        answer = self._send("PUT", url, session.offset, rest, (*SUCCESS, 400, *_LOST))
        if answer.status in _LOST:
            raise TransportError(f"{self._what}: the registry does not know the upload any more")
        if answer.status == 400:
            kind = DigestError if b"DIGEST_INVALID" in answer.data[:4096] else SourceError
            said = self._transport.quoted(answer)
            raise kind(f"{self._what}: the registry does not accept it{said and f': {said}'}")

    def _send(
        self, method: str, url: str, start: int, count: int, expect: tuple[int, ...]
    ) -> Answer:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(count)}
        if 0 < count < self._blob.size:
            headers["Content-Range"] = f"{start}-{start + count - 1}"
        return self._transport.request(
            method,
            url,
            what=self._what,
            expect=expect,
            headers=headers,
            body=lambda: self._read(start, count),
        )

    def _read(self, start: int, count: int) -> Iterator[bytes]:
        """Yield `count` bytes of the blob from `start` on, and tell the progress."""
        end = start + count
        try:
            self._file.seek(self._start_position + start)
            while start < end:
                data = self._file.read(min(_READ_SIZE, end - start))
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

    def _resume(self, session: _Session) -> _Session:
        """Ask how far the registry got; start again if it does not say."""
        with suppress(SourceError):
            answer = self._transport.request("GET", session.url, what=self._what, expect=SUCCESS)
            if 1 < _taken(answer) <= self._blob.size:
                return _Session(answer.location(session.url), _taken(answer))
        fresh = self._begin(None)
        if fresh is None:
            raise SourceError(f"{self._what}: the registry mounts what it does not have")
        return fresh

    def _abandon(self, session: _Session) -> None:
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

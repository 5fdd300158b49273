# SPDX-License-Identifier: Apache-2.0
"""What we ask of containerd itself: its contents, images and leases, as far as we need them.

Owns names and field numbers of these messages, and the calls. Source: content.proto, images.proto,
leases.proto and descriptor.proto below api/ of containerd 1.6, the same in 2.4. Invariant: every
call has a time limit, since containerd may wait for us meanwhile.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from firstread.errors import NodeError
from firstread.snapshotter import messages as api
from firstread.snapshotter.wire import decode, encode, labels, message, messages, number, raw, text
from firstread.snapshotter.wire import texts as texts_

SOCKET = Path("/run/containerd/containerd.sock")
TIMEOUT_S = 60.0
LEASE_S = 3600  # after that containerd removes what somebody who was killed has left
CONTENT = "containerd.services.content.v1.Content"
IMAGES = "containerd.services.images.v1.Images"
LEASES = "containerd.services.leases.v1.Leases"
DIFF = "containerd.services.diff.v1.Diff"
WRITE, COMMIT = 1, 2  # WriteAction
UNPACK_S = 900.0  # for one layer


@dataclass
class Info:
    """One content."""

    digest: str = text(1)
    size: int = number(2)
    labels: dict[str, str] = labels(5)


@dataclass
class ListRequest:
    """The request of List."""

    filters: list[str] = texts_(1)


@dataclass
class ListResponse:
    """Some of the contents."""

    info: list[Info] = messages(1, Info)


@dataclass
class ReadRequest:
    """The request of Read."""

    digest: str = text(1)


@dataclass
class ReadResponse:
    """A part of a content."""

    data: bytes = raw(2)


@dataclass
class WriteRequest:
    """All of a small content."""

    action: int = number(1)
    ref: str = text(2)
    total: int = number(3)
    expected: str = text(4)
    offset: int = number(5)
    data: bytes = raw(6)
    labels: dict[str, str] = labels(7)


@dataclass
class UpdateRequest:
    """New labels of a content."""

    info: Info | None = message(1, Info)
    update_mask: api.FieldMask | None = message(2, api.FieldMask)


@dataclass
class Target:
    """A descriptor."""

    media_type: str = text(1)
    digest: str = text(2)
    size: int = number(3)


@dataclass
class Image:
    """A name, and what it means."""

    name: str = text(1)
    target: Target | None = message(3, Target)


@dataclass
class ImageRequest:
    """The request of Create and Update."""

    image: Image | None = message(1, Image)


@dataclass
class ImageList:
    """The answer to List."""

    images: list[Image] = messages(1, Image)


@dataclass
class ApplyRequest:
    """A layer, and where it is unpacked."""

    diff: Target | None = message(1, Target)
    mounts: list[api.Mount] = messages(2, api.Mount)


@dataclass
class Applied:
    """The archive that was unpacked."""

    applied: Target | None = message(1, Target)


@dataclass
class Lease:
    """The request of Create and Delete."""

    id: str = text(1)
    labels: dict[str, str] = labels(3)


class ContainerdClient:
    """A client of containerd in one namespace; a context manager.

    Args:
        address: its socket.
        namespace: of containerd.

    Raises (every method):
        NodeError: containerd does not answer, or refuses.
    """

    def __init__(self, address: Path, namespace: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(f"unix://{address}")
        self._metadata = [("containerd-namespace", namespace)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._channel.close()

    @contextlib.contextmanager
    def leased(self) -> Iterator[None]:
        """Keep what is made for as long as the block takes; names and labels keep it after that."""
        lease = f"firstread-{uuid.uuid4()}"
        expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + LEASE_S))
        self.call(LEASES, "Create", Lease(lease, {"containerd.io/gc.expire": expiry}))
        self._metadata.append(("containerd-lease", lease))
        try:
            yield
        finally:
            self._metadata.pop()
            self.call(LEASES, "Delete", Lease(lease))

    def contents(self, *filters: str) -> list[Info]:
        """Return what matches one of the filters."""
        pages = self._stream(CONTENT, "List", ListRequest(list(filters)), ListResponse)
        return [info for page in pages for info in page.info]

    def read(self, digest: str) -> bytes:
        """Return a content."""
        parts = self._stream(CONTENT, "Read", ReadRequest(digest), ReadResponse)
        return b"".join(part.data for part in parts)

    def write(self, digest: str, data: bytes, labels: Mapping[str, str]) -> None:
        """Keep a content, and give it labels; others that it has stay."""
        if not self.copy(digest, len(data), [data], labels):
            self.label(digest, labels)

    def copy(
        self,
        digest: str,
        size: int,
        chunks: Iterable[bytes | memoryview],
        labels: Mapping[str, str] | None = None,
    ) -> bool:
        """Keep a content of `size` bytes; return whether it was not there."""
        ref = f"firstread-{digest}"

        def requests() -> Iterator[WriteRequest]:
            offset = 0
            for chunk in chunks:
                yield WriteRequest(WRITE, ref, size, digest, offset, bytes(chunk))
                offset += len(chunk)
            yield WriteRequest(COMMIT, ref, size, digest, offset, labels=dict(labels or {}))

        call = self._channel.stream_stream(f"/{CONTENT}/Write", encode, bytes)
        try:
            for _ in call(requests(), metadata=self._metadata, timeout=UNPACK_S):
                pass
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.ALREADY_EXISTS:
                return False
            raise self._error(exc) from exc
        return True

    def apply(self, layer: Target, mounts: list[api.Mount]) -> str:
        """Unpack a content into what `mounts` are; return the digest of the tar archive."""
        call = self._channel.unary_unary(
            f"/{DIFF}/Apply", encode, lambda data: decode(Applied, data)
        )
        request = ApplyRequest(layer, mounts)
        try:
            answer: Applied = call(request, metadata=self._metadata, timeout=UNPACK_S)
        except grpc.RpcError as exc:
            raise self._error(exc) from exc
        return answer.applied.digest if answer.applied else ""

    def label(self, digest: str, labels: Mapping[str, str]) -> None:
        """Give labels to a content; others that it has stay."""
        mask = api.FieldMask([f"labels.{name}" for name in labels])
        self.call(CONTENT, "Update", UpdateRequest(Info(digest, 0, dict(labels)), mask))

    def name(self, name: str, target: Target) -> None:
        """Let a name mean a manifest from now on."""
        request = ImageRequest(Image(name, target))
        if not self.call(IMAGES, "Create", request, grpc.StatusCode.ALREADY_EXISTS):
            self.call(IMAGES, "Update", request)

    def names(self, digest: str) -> list[str]:
        """Return the names of a manifest."""
        call = self._channel.unary_unary(
            f"/{IMAGES}/List", encode, lambda data: decode(ImageList, data)
        )
        request = ListRequest([f"target.digest=={digest}"])
        try:
            answer: ImageList = call(request, metadata=self._metadata, timeout=TIMEOUT_S)
        except grpc.RpcError as exc:
            raise self._error(exc) from exc
        return [image.name for image in answer.images]

    def prepare(self, snapshotter: str, key: str, parent: str, labels: Mapping[str, str]) -> bool:
        """Prepare a snapshot; return whether it is one that has to be unpacked."""
        request = api.PrepareRequest(snapshotter, key, parent, dict(labels))
        return self.call(api.SERVICE, "Prepare", request, grpc.StatusCode.ALREADY_EXISTS)

    def remove(self, snapshotter: str, key: str) -> None:
        """Remove a snapshot."""
        self.call(api.SERVICE, "Remove", api.KeyRequest(snapshotter, key))

    def call(
        self, service: str, method: str, request: Any, refusal: grpc.StatusCode | None = None
    ) -> bool:
        """Call a method without an answer; return False if it was refused with `refusal`."""
        call = self._channel.unary_unary(f"/{service}/{method}", encode, bytes)
        try:
            call(request, metadata=self._metadata, timeout=TIMEOUT_S)
        except grpc.RpcError as exc:
            if refusal is not None and exc.code() is refusal:
                return False
            raise self._error(exc) from exc
        return True

    def _stream(self, service: str, method: str, request: Any, kind: type[Any]) -> Sequence[Any]:
        call = self._channel.unary_stream(
            f"/{service}/{method}", encode, lambda data: decode(kind, data)
        )
        try:
            return list(call(request, metadata=self._metadata, timeout=TIMEOUT_S))
        except grpc.RpcError as exc:
            raise self._error(exc) from exc

    def _error(self, exc: Any) -> NodeError:
        if exc.code() is grpc.StatusCode.UNAVAILABLE and "connect" in str(exc.details()):
            return NodeError(
                f"no containerd answers at {self._address}", hint="name its socket (--containerd)"
            )
        return NodeError(f"containerd: {exc.details()}")

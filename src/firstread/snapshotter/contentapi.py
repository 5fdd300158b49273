# SPDX-License-Identifier: Apache-2.0
"""A client of containerd's own services: contents, images, leases and unpacking.

Owns the calls; ``containerd.proto`` has their messages. Invariant: every call has a time limit,
since containerd may wait for us meanwhile.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from firstread.errors import NodeError
from firstread.oci.model import Descriptor
from firstread.snapshotter import containerd_pb2 as api
from firstread.snapshotter.messages import SERVICE, Mount, encode

TIMEOUT_S = 60.0
LEASE_S = 3600  # after that containerd removes what somebody who was killed has left
CONTENT = "containerd.services.content.v1.Content"
IMAGES = "containerd.services.images.v1.Images"
LEASES = "containerd.services.leases.v1.Leases"
DIFF = "containerd.services.diff.v1.Diff"
WRITE, COMMIT = 1, 2  # WriteAction
UNPACK_S = 900.0  # for one layer

M = TypeVar("M", bound=Message)


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

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    @contextlib.contextmanager
    def leased(self) -> Iterator[None]:
        """Keep what is made for as long as the block takes; names and labels keep it after that."""
        lease = f"firstread-{uuid.uuid4()}"
        expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + LEASE_S))
        self.call(LEASES, "Create", api.Lease(id=lease, labels={"containerd.io/gc.expire": expiry}))
        self._metadata.append(("containerd-lease", lease))
        try:
            yield
        finally:
            self._metadata.pop()
            self.call(LEASES, "Delete", api.Lease(id=lease))

    def contents(self, *filters: str) -> list[api.Content]:
        """Return what matches one of the filters."""
        pages = self._stream("List", api.FilterRequest(filters=filters), api.ContentList)
        return [content for page in pages for content in page.info]

    def labels(self, digest: str) -> dict[str, str]:
        """Return the labels of a content; none if it is not there."""
        found = self.contents(f"digest=={digest}")
        return dict(found[0].labels) if found else {}

    def read(self, digest: str) -> bytes:
        """Return a content."""
        parts = self._stream("Read", api.ReadRequest(digest=digest), api.ReadResponse)
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

        def requests() -> Iterator[api.WriteRequest]:
            request = partial(api.WriteRequest, ref=ref, total=size, expected=digest)
            offset = 0
            for chunk in chunks:
                yield request(action=WRITE, offset=offset, data=bytes(chunk))
                offset += len(chunk)
            yield request(action=COMMIT, offset=offset, labels=labels)

        call = self._channel.stream_stream(f"/{CONTENT}/Write", encode, bytes)
        try:
            for _ in call(requests(), metadata=self._metadata, timeout=UNPACK_S):
                pass
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.ALREADY_EXISTS:
                return False
            raise self._error(exc) from exc
        return True

    def apply(self, layer: Descriptor, mounts: Sequence[Mount]) -> str:
        """Unpack a content into what `mounts` are; return the digest of the tar archive."""
        made = [api.Mount(**vars(mount)) for mount in mounts]
        request = api.ApplyRequest(diff=_descriptor(layer), mounts=made)
        with self._explained():
            answer = self._ask(DIFF, "Apply", request, api.ApplyResponse, UNPACK_S)
        return answer.applied.digest

    def label(self, digest: str, labels: Mapping[str, str]) -> None:
        """Give labels to a content; others that it has stay."""
        mask = FieldMask(paths=[f"labels.{name}" for name in labels])
        content = api.Content(digest=digest, labels=labels)
        self.call(CONTENT, "Update", api.ContentUpdate(info=content, update_mask=mask))

    def name(self, name: str, target: Descriptor) -> None:
        """Let a name mean a manifest from now on."""
        request = api.ImageRequest(image=api.Image(name=name, target=_descriptor(target)))
        if not self.call(IMAGES, "Create", request, grpc.StatusCode.ALREADY_EXISTS):
            self.call(IMAGES, "Update", request)

    def names(self, digest: str) -> list[str]:
        """Return the names of a manifest."""
        request = api.FilterRequest(filters=[f"target.digest=={digest}"])
        with self._explained():
            answer = self._ask(IMAGES, "List", request, api.ImageList)
        return [image.name for image in answer.images]

    def prepare(self, snapshotter: str, key: str, parent: str, labels: Mapping[str, str]) -> bool:
        """Prepare a snapshot; return whether it is one that has to be unpacked."""
        request = api.PrepareRequest(snapshotter=snapshotter, key=key, parent=parent, labels=labels)
        return self.call(SERVICE, "Prepare", request, grpc.StatusCode.ALREADY_EXISTS)

    def remove(self, snapshotter: str, key: str) -> None:
        """Remove a snapshot."""
        self.call(SERVICE, "Remove", api.KeyRequest(snapshotter=snapshotter, key=key))

    def call(
        self, service: str, method: str, request: Message, refusal: grpc.StatusCode | None = None
    ) -> bool:
        """Call a method whose answer does not matter; return False if `refusal` was the answer."""
        try:
            self._ask(service, method, request, Empty)
        except grpc.RpcError as exc:
            if refusal is not None and exc.code() is refusal:
                return False
            raise self._error(exc) from exc
        return True

    def _ask(
        self,
        service: str,
        method: str,
        request: Message,
        answer: type[M],
        timeout_s: float = TIMEOUT_S,
    ) -> M:
        """Call a method. Raises `grpc.RpcError`."""
        call = self._channel.unary_unary(f"/{service}/{method}", encode, answer.FromString)
        found: M = call(request, metadata=self._metadata, timeout=timeout_s)
        return found

    def _stream(self, method: str, request: Message, answer: type[M]) -> list[M]:
        call = self._channel.unary_stream(f"/{CONTENT}/{method}", encode, answer.FromString)
        with self._explained():
            return list(call(request, metadata=self._metadata, timeout=TIMEOUT_S))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as exc:
            raise self._error(exc) from exc

    def _error(self, exc: Any) -> NodeError:
        if exc.code() is grpc.StatusCode.UNAVAILABLE and "connect" in str(exc.details()):
            return NodeError(
                f"no containerd answers at {self._address}", hint="name its socket (--containerd)"
            )
        return NodeError(f"containerd: {exc.details()}")


def _descriptor(content: Descriptor) -> api.Descriptor:
    return api.Descriptor(media_type=content.media_type, digest=content.digest, size=content.size)

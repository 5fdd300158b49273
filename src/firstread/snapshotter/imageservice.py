# SPDX-License-Identifier: Apache-2.0
"""CRI's image service in front of containerd's: passes all on, and keeps what pulls have shown.

A kubelet gives the credentials of a pull to the image service that it is told to use
(``imageServiceEndpoint``), and to nobody else; containerd hands none to a snapshotter. So this one
is told to it. It also hears of an image before a registry does, so the daemon begins at once. Owns
what a pull's request says of credentials, and the one answer that is not containerd's: an image
whose registry refuses the daemon is not here. A kubelet that is about to start a container then
pulls it again, which brings new credentials and hardly a byte.

Invariants: requests and answers go through as bytes, whatever the version of CRI; all else ends as
containerd ends it, even if the daemon does not answer; credentials are in no message and no log.

Facts about gRPC: a call with one answer is a stream of one, so one kind of handler fits all
methods of the service. A client has the answer of such a call when its status arrives, so what
happens before that has happened before the kubelet goes on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import DecodeError

from firstread.errors import BusyError, FirstreadError
from firstread.mounts.pulls import Seats
from firstread.oci.reference import parse_reference
from firstread.registry.auth import decode_pair, normal_key
from firstread.registry.credentials import Credentials
from firstread.snapshotter import containerd_pb2 as api
from firstread.snapshotter.foretelling import Foretelling
from firstread.snapshotter.inflight import PullsInFlight
from firstread.threads import SteadyPool
from firstread.units import KiB, MiB

log = logging.getLogger("imageservice")

THREADS: Final = 96  # calls at a time
PULLS: Final = 80  # of them: the others are for calls that take no time
CALLS: Final = 1000  # with those that wait for a thread
MAX_MESSAGE: Final = 16 * MiB  # what a kubelet takes; gRPC's own limit is 4 MiB
MAX_SECRET: Final = 16 * KiB  # bytes; registries take no headers that are longer
LONGEST_S: Final = 86400.0  # of a pull: a kubelet sets it no end, which gRPC knows as 292 years
RECONNECT_MS: Final = 1000  # while containerd restarts
OPTIONS: Final = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
]
_OWN: Final = ("user-agent", "grpc-accept-encoding")  # headers of one connection
_NOT_HERE: Final = b""  # an ImageStatusResponse without an image


class Daemon(Protocol):
    """What the image service tells the daemon of pulls, and asks it."""

    def foretell(self, image: str) -> None:
        """Have an image of a pull in flight soon.

        Raises FirstreadError; UnsupportedError if it is an ordinary one.
        """

    def pulled(self, image: str, credentials: Credentials | None) -> None:
        """Take what a successful pull has shown, if anything. Raises FirstreadError."""

    def wants_pull(self, image: str) -> bool:
        """Return whether the registry refuses the daemon. Raises FirstreadError."""


class ImageService(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Handles all methods of the image service, of any version.

    Args:
        containerd: socket of its CRI.
        pulls: knows the credentials while a pull lasts.
        daemon: keeps them after that.
    """

    def __init__(self, containerd: Path, pulls: PullsInFlight, daemon: Daemon) -> None:
        limit = ("grpc.max_reconnect_backoff_ms", RECONNECT_MS)
        # Calls need no thread of the channel then: one that cannot be had would end it for good.
        alone = ("SingleThreadedUnaryStream", 1)  # grpc.experimental.ChannelOptions
        options = [*OPTIONS, limit, alone]
        self._channel = grpc.insecure_channel(f"unix://{containerd}", options=options)
        self._pulls = pulls
        self._daemon = daemon
        self._foretelling = Foretelling(daemon.foretell)
        self._seats = Seats(PULLS, PULLS, "pulls run")

    def close(self) -> None:
        """End the calls, and the connection to containerd."""
        self._channel.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method
        service, _, method = path.removeprefix("/").partition("/")
        if not (service.startswith("runtime.") and service.endswith(".ImageService")):
            return None
        known = {"PullImage": self._pull, "ImageStatus": self._status}
        answer = partial(known.get(method, self._pass_on), path)
        return grpc.unary_stream_rpc_method_handler(partial(_answering, answer))

    def _pull(self, path: str, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        image, credentials = shown(request)
        foretold = self._foretelling.of(image)
        with self._taken(context), self._pulling(image, credentials), foretold:
            yield from self._pass_on(path, request, context)
        if image:
            try:
                self._daemon.pulled(image, credentials)
            except FirstreadError as exc:
                log.warning("the daemon does not know of the pull of %s: %s", image, exc)

    def _status(self, path: str, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for answer in self._pass_on(path, request, context):
            yield _NOT_HERE if self._wants_pull(request) else answer

    def _wants_pull(self, request: bytes) -> bool:
        try:
            image = api.ImageStatusRequest.FromString(request).image.image
            wants = self._daemon.wants_pull(image)
        except (DecodeError, FirstreadError):  # it is asked by id, or the daemon is away
            return False
        if wants:
            log.warning("the registry refuses the daemon: %s is to be pulled again", image)
        return wants

    def _pulling(self, image: str, credentials: Credentials | None) -> AbstractContextManager[None]:
        return self._pulls.pulling(image, credentials) if credentials else nullcontext()

    @contextlib.contextmanager
    def _taken(self, context: grpc.ServicerContext) -> Iterator[None]:
        try:
            self._seats.take("containerd")
        except BusyError as exc:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"firstread: {exc}")
        try:
            yield
        finally:
            self._seats.give_back("containerd")

    def _pass_on(self, path: str, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        metadata = [each for each in context.invocation_metadata() if each[0] not in _OWN]
        timeout = min(context.time_remaining(), LONGEST_S)
        call = self._channel.unary_stream(path)(request, timeout=timeout, metadata=metadata)
        if not context.add_callback(call.cancel):
            call.cancel()
        yield from call
        context.set_trailing_metadata(call.trailing_metadata())


def _answering(
    answer: Callable[[bytes, grpc.ServicerContext], Iterator[bytes]],
    request: bytes,
    context: grpc.ServicerContext,
) -> Iterator[bytes]:
    try:
        yield from answer(request, context)
    except grpc.RpcError as exc:
        context.set_trailing_metadata(exc.trailing_metadata() or ())
        context.abort(exc.code(), exc.details())


def shown(request: bytes) -> tuple[str, Credentials | None]:
    """Return the image of a PullImageRequest, and the credentials that fit it; None for none.

    As containerd reads them (ParseAuth): a user name comes first, a token for the registry itself
    is not supported, and ``server_address`` may only confirm the registry. The name is empty if the
    request is wrong: containerd says what is wrong with it.
    """
    try:
        message = api.PullImageRequest.FromString(request)
        image, auth = message.image.image, message.auth
        host = parse_reference(image).host
        if auth.server_address and normal_key(auth.server_address).partition("/")[0] != host:
            return image, None
        username, password = auth.username, auth.password
        if not username and auth.auth and not auth.identity_token:
            username, password = decode_pair(auth.auth)
    except (DecodeError, FirstreadError, ValueError):
        return "", None
    token = "" if username else auth.identity_token
    size = len(username) + len(password) + len(token)
    if not (username or token) or not host or size > MAX_SECRET:
        return image, None
    return image, Credentials(username, password, token)


def server_of(service: ImageService) -> grpc.Server:
    """Return a server for an image service, which does not listen yet."""
    threads = SteadyPool(THREADS, "image")
    return grpc.server(threads, handlers=[service], options=OPTIONS, maximum_concurrent_rpcs=CALLS)

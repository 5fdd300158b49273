# SPDX-License-Identifier: Apache-2.0
"""CRI's image service in front of another: what goes through, and what stays."""

from __future__ import annotations

import base64
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from firstread.errors import NodeError
from firstread.registry.credentials import Credentials
from firstread.snapshotter import containerd_pb2 as api
from firstread.snapshotter import imageservice
from firstread.snapshotter.imageservice import MAX_MESSAGE, MAX_SECRET, ImageService, shown
from firstread.snapshotter.inflight import PullsInFlight
from firstread.snapshotter.service import start
from firstread.testing.patience import PATIENCE_S
from firstread.testing.shortage import no_threads

PULL = "/runtime.v1.ImageService/PullImage"
IMAGE = "r.example/team/app:1"
LOGIN = Credentials("robot", "pass word")


class Containerd(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers a request with itself, said twice; with `code` if there is one."""

    def __init__(self, pulls: PullsInFlight) -> None:
        self.pulls = pulls
        self.code: grpc.StatusCode | None = None
        self.seen: list[tuple[str, bytes, dict[str, Any]]] = []
        self.in_flight: list[Credentials] = []
        self.hang = False
        self.left = threading.Event()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        def answer(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            self.seen.append((details.method, request, dict(context.invocation_metadata())))
            self.in_flight = self.pulls.secrets(IMAGE)
            context.add_callback(self.left.set)
            if self.hang:
                yield b"first"
                self.left.wait(PATIENCE_S)
            context.set_trailing_metadata((("more", "of it"),))
            if self.code is not None:
                context.abort(self.code, "as containerd says it")
            yield request
            yield request

        return grpc.unary_stream_rpc_method_handler(answer)


@dataclass
class Between:
    containerd: Containerd
    address: str
    channel: grpc.Channel
    pulls: PullsInFlight
    kept: list[tuple[str, Credentials | None]] = field(default_factory=list)
    told: SimpleQueue[tuple[str, list[Credentials]]] = field(default_factory=SimpleQueue)
    wanted: list[str] = field(default_factory=list)
    failing: bool = False

    def foretell(self, image: str) -> None:
        self.told.put((image, self.pulls.secrets(image)))
        self._check()

    def pulled(self, image: str, credentials: Credentials | None) -> None:
        self._check()
        self.kept.append((image, credentials))

    def wants_pull(self, image: str) -> bool:
        self._check()
        return image in self.wanted

    def _check(self) -> None:
        if self.failing:
            raise NodeError("no daemon answers")

    def pull(self, request: bytes) -> bytes:
        return b"".join(self.channel.unary_stream(PULL)(request, timeout=PATIENCE_S))


@pytest.fixture
def between(tmp_path: Path) -> Iterator[Between]:
    pulls = PullsInFlight()
    containerd = Containerd(pulls)
    limits = imageservice.OPTIONS
    upstream = grpc.server(ThreadPoolExecutor(4), handlers=[containerd], options=limits)
    upstream.add_insecure_port(f"unix://{tmp_path}/containerd.sock")
    upstream.start()
    address = f"unix://{tmp_path}/image.sock"
    channel = grpc.insecure_channel(address, options=limits)
    made = Between(containerd, address, channel, pulls)
    service = ImageService(tmp_path / "containerd.sock", pulls, made)
    server = imageservice.server_of(service)
    start(server, tmp_path / "image.sock")
    yield made
    channel.close()
    server.stop(None).wait()
    service.close()
    upstream.stop(None).wait()


def request_of(image: str = IMAGE, **auth: str) -> bytes:
    message = api.PullImageRequest(image=api.ImageSpec(image=image), auth=api.AuthConfig(**auth))
    unknown = b"\x1a\x03\x08\x96\x01"  # of a later version: field 3
    return message.SerializeToString() + unknown


def test_what_it_does_not_know_goes_through(between: Between) -> None:
    path = "/runtime.v7.ImageService/StreamSomething"
    data = os.urandom(5 << 20)  # more than gRPC takes by default
    call = between.channel.unary_stream(path)(data, metadata=(("trace", "7"),), timeout=PATIENCE_S)
    assert list(call) == [data, data]
    assert dict(call.trailing_metadata())["more"] == "of it"
    method, request, metadata = between.containerd.seen[0]
    assert (method, request, metadata["trace"]) == (path, data, "7")


def test_a_message_of_too_many_bytes_ends_its_call(between: Between) -> None:
    with grpc.insecure_channel(between.address, [("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_stream(PULL)(bytes(MAX_MESSAGE + 1), timeout=PATIENCE_S)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert between.containerd.seen == []


@pytest.mark.parametrize("path", ["/runtime.v1.RuntimeService/Status", "/x.ImageService/PullImage"])
def test_other_services_do_not_go_through(between: Between, path: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(between.channel.unary_stream(path)(b"", timeout=PATIENCE_S))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert between.containerd.seen == []


def test_a_pull_is_passed_on_as_it_is_and_kept_when_it_has_succeeded(between: Between) -> None:
    request = request_of(username="robot", password="pass word")
    assert between.pull(request) == 2 * request
    assert between.containerd.seen[0][1] == request
    assert between.containerd.in_flight == [LOGIN]
    assert between.pulls.secrets(IMAGE) == []
    assert between.kept == [(IMAGE, LOGIN)]


def test_a_pull_that_fails_is_not_kept(between: Between, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    between.containerd.code = grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.RpcError) as caught:
        between.pull(request_of(username="robot", password="pass word"))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert caught.value.details() == "as containerd says it"
    assert dict(caught.value.trailing_metadata())["more"] == "of it"
    assert between.containerd.in_flight == [LOGIN]
    assert between.pulls.secrets(IMAGE) == []
    assert between.kept == []
    assert "pass word" not in caplog.text


def test_a_pull_succeeds_though_the_daemon_does_not_answer(
    between: Between, caplog: pytest.LogCaptureFixture
) -> None:
    between.failing = True
    request = request_of(username="robot", password="pass word")
    assert between.pull(request) == 2 * request
    assert f"the daemon does not know of the pull of {IMAGE}: no daemon" in caplog.text
    assert "pass word" not in caplog.text


def test_a_pull_without_credentials_keeps_nothing(between: Between) -> None:
    for request in (request_of(), b"\xff no message", b""):
        assert between.pull(request) == 2 * request
    assert between.kept == [(IMAGE, None)]


@pytest.mark.parametrize("state", ["wanted", "other", "failing"])
def test_an_image_whose_registry_refuses_the_daemon_is_not_here(
    between: Between, state: str
) -> None:
    between.failing = state == "failing"
    between.wanted = [IMAGE] if state == "wanted" else ["r.example/other"]
    status = api.ImageStatusRequest(image=api.ImageSpec(image=IMAGE)).SerializeToString()
    for request in (status, b"\xff no message"):
        call = between.channel.unary_stream("/runtime.v1.ImageService/ImageStatus")
        answers = list(call(request, timeout=PATIENCE_S))
        hidden = state == "wanted" and request is status
        assert answers == [b"" if hidden else request] * 2


def test_the_daemon_hears_of_a_pull_in_flight_and_its_credentials(between: Between) -> None:
    between.containerd.hang = True
    request = request_of(username="robot", password="pass word")
    call = between.channel.unary_stream(PULL)(request, timeout=PATIENCE_S)
    assert between.told.get(timeout=PATIENCE_S) == (IMAGE, [LOGIN])
    call.cancel()


def test_a_client_that_goes_ends_the_call_behind(between: Between) -> None:
    between.containerd.hang = True
    call = between.channel.unary_stream(PULL)(request_of(username="u", password="p"))
    assert next(call) == b"first"
    assert between.pulls.secrets(IMAGE)
    call.cancel()
    assert between.containerd.left.wait(PATIENCE_S)


def test_calls_go_on_while_no_thread_can_be_had(between: Between) -> None:
    """gRPC's own pools and channels would do nothing any more from then on."""
    between.pull(request_of())
    call = between.channel.unary_stream(PULL)(request_of(), timeout=PATIENCE_S)
    with no_threads():
        answer = b"".join(call)
    assert answer == between.pull(request_of())


def test_only_root_can_connect(between: Between, tmp_path: Path) -> None:
    assert (tmp_path / "image.sock").stat().st_mode & 0o777 == 0o600


def test_a_containerd_that_is_away_is_unavailable(between: Between, tmp_path: Path) -> None:
    service = ImageService(tmp_path / "none.sock", PullsInFlight(), between)
    server = imageservice.server_of(service)
    start(server, tmp_path / "other.sock")
    with grpc.insecure_channel(f"unix://{tmp_path}/other.sock") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.unary_stream(PULL)(b"", timeout=PATIENCE_S))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    server.stop(None).wait()
    service.close()


AUTH = base64.b64encode(b"robot:pass word").decode()


@pytest.mark.parametrize(
    ("image", "auth", "expected"),
    [
        (IMAGE, {"auth": AUTH}, LOGIN),
        (IMAGE, {"username": "robot", "password": "pass word", "auth": "!"}, LOGIN),
        (IMAGE, {"identity_token": "t"}, Credentials("", identity_token="t")),
        (IMAGE, {"username": "robot", "password": "pass word", "identity_token": "t"}, LOGIN),
        (IMAGE, {"auth": AUTH, "server_address": "https://r.example"}, LOGIN),
        (IMAGE, {"auth": AUTH, "server_address": "https://other.example"}, None),
        ("app", {"auth": AUTH, "server_address": "https://index.docker.io/v1/"}, LOGIN),
        (IMAGE, {"auth": "no base64"}, None),
        (IMAGE, {"password": "alone"}, None),
        (IMAGE, {"username": "robot", "password": "x" * MAX_SECRET}, None),
        ("not a name", {"auth": AUTH}, None),
        ("oci:/etc", {"auth": AUTH}, None),
    ],
)
def test_what_a_request_shows(
    image: str, auth: dict[str, str], expected: Credentials | None
) -> None:
    assert shown(request_of(image, **auth))[1] == expected

# SPDX-License-Identifier: Apache-2.0
"""``firstread sync serve``: the endpoint and its clients, and a registry that notifies it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

from firstread.convert.conversion import ConvertOptions
from firstread.convert.layercache import LayerCache
from firstread.errors import BusyError, NodeError, UsageError
from firstread.oci.model import OCI_MANIFEST
from firstread.oci.reference import parse_reference
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.sync import pushservice, webhook
from firstread.sync.beside import Beside
from firstread.sync.notifications import parse_notification
from firstread.sync.pattern import parse_pattern
from firstread.sync.pushservice import PushService
from firstread.sync.sources import Wanted
from firstread.sync.syncing import Sync
from firstread.sync.webhook import MAX_BODY, Secret, WebhookServer, tls_context
from firstread.testing.certificates import make_certificate
from firstread.testing.command import firstread, program
from firstread.testing.images import File, Image, Layer, digest_of
from firstread.testing.patience import PATIENCE_S
from firstread.testing.ports import free_port
from firstread.testing.pushing import push
from firstread.testing.registry import DockerRegistry
from firstread.testing.serving import serving

SECRET = "secret of the registry"
ENVELOPE = b'{"events":[]}'


class Endpoint:
    """The endpoint, which notes what it takes."""

    def __init__(self, secret: Path, tls: ssl.SSLContext | None = None) -> None:
        self.taken: list[bytes] = []
        self.full = False
        secret.write_text(f"{SECRET}\n")
        address = ("127.0.0.1", 0)
        self.server = WebhookServer(address, Secret(secret), self.take, lambda: b"metrics 1\n", tls)
        self.port = int(self.server.server_address[1])
        self.tls = tls

    def take(self, body: bytes) -> int:
        parse_notification(body, "r.example")
        if self.full:
            raise BusyError("10 images wait")
        self.taken.append(body)
        return 1

    def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, bytes, Any]:
        where, timeout = ("127.0.0.1", self.port), PATIENCE_S
        client = HTTPConnection(*where, timeout=timeout)
        if self.tls:
            context = ssl._create_unverified_context()
            client = HTTPSConnection(*where, timeout=timeout, context=context)
        with contextlib.closing(client):
            client.request(method, path, body, headers)
            answer = client.getresponse()
            return answer.status, answer.read(), answer.headers

    def notify(self, body: bytes = ENVELOPE, secret: str = SECRET) -> int:
        return self.ask("POST", "/notifications", body, Authorization=f"Bearer {secret}")[0]


@contextlib.contextmanager
def running(endpoint: Endpoint) -> Iterator[Endpoint]:
    with serving(endpoint.server):
        yield endpoint


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    with running(Endpoint(tmp_path / "secret")) as served:
        yield served


def test_answers(endpoint: Endpoint) -> None:
    assert endpoint.ask("GET", "/healthz")[:2] == (200, b"ok\n")
    assert endpoint.ask("GET", "/metrics")[:2] == (200, b"metrics 1\n")
    assert endpoint.ask("GET", "/notifications")[0] == 404
    assert endpoint.ask("POST", "/elsewhere", ENVELOPE, Authorization=SECRET)[0] == 404
    status, body, _ = endpoint.ask("POST", "/notifications", ENVELOPE, Authorization=SECRET)
    assert (status, json.loads(body)) == (202, {"queued": 1})
    assert endpoint.notify() == 202
    assert endpoint.ask("DELETE", "/notifications")[0] == 501
    assert endpoint.taken == [ENVELOPE] * 2


@pytest.mark.parametrize("shown", ["", "Bearer ", "Bearer wrong", SECRET[:-1], f"Basic {SECRET}"])
def test_a_forged_notification_costs_nothing(endpoint: Endpoint, shown: str) -> None:
    for body in (ENVELOPE, b"x" * MAX_BODY):
        status, said, _ = endpoint.ask("POST", "/notifications", body, Authorization=shown)
        assert (status, said) == (401, b"unauthorized\n")
    assert endpoint.taken == []


def test_bad_requests_do_not_flood_the_log(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        assert endpoint.notify(secret="wrong") == 401
    assert [record.getMessage() for record in caplog.records if record.name == "webhook"] == [
        "a request of 127.0.0.1 lacks the secret"
    ]


def test_a_huge_notification_is_refused(endpoint: Endpoint) -> None:
    assert endpoint.notify(ENVELOPE.ljust(MAX_BODY)) == 202
    assert endpoint.notify(ENVELOPE.ljust(MAX_BODY + 1)) == 413
    head = f"POST /notifications HTTP/1.1\r\nAuthorization: {SECRET}\r\n"
    for more, status in (
        ("Content-Length: 99999999999999\r\n", b" 413 "),
        ("Content-Length: -1\r\n", b" 411 "),
        ("Transfer-Encoding: chunked\r\n", b" 411 "),
    ):
        with socket.create_connection(("127.0.0.1", endpoint.port), PATIENCE_S) as client:
            client.sendall(f"{head}{more}\r\n".encode())
            client.shutdown(socket.SHUT_WR)
            assert status in client.recv(4096)
    assert len(endpoint.taken) == 1


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"events":{}}'])
def test_nonsense_is_refused(endpoint: Endpoint, body: bytes) -> None:
    assert endpoint.notify(body) == 400
    assert endpoint.taken == []


def test_a_full_queue_has_the_registry_try_again(endpoint: Endpoint) -> None:
    endpoint.full = True
    status, _, headers = endpoint.ask("POST", "/notifications", ENVELOPE, Authorization=SECRET)
    assert (status, headers["Retry-After"]) == (503, "30")


def test_a_new_secret_needs_no_restart(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("another secret of it")
    assert endpoint.notify() == 401
    assert endpoint.notify(secret="another secret of it") == 202
    (tmp_path / "secret").unlink()
    assert endpoint.notify(secret="another secret of it") == 500


def test_a_slow_client_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "REQUEST_S", 0.5)
    monkeypatch.setattr(WebhookServer, "max_connections", 2)
    with running(Endpoint(tmp_path / "secret")) as endpoint:
        slow = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(3)]
        for client in slow:
            client.settimeout(PATIENCE_S)
            with contextlib.suppress(OSError):
                client.sendall(b"POST /notifications HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
        for client in slow:
            with contextlib.suppress(OSError):
                while client.recv(4096):
                    pass
            client.close()
        until = time.monotonic() + PATIENCE_S
        while True:  # a thread gives its place back after its connection
            with contextlib.suppress(OSError):
                if endpoint.notify() == 202:
                    break
            assert time.monotonic() < until


def test_over_tls(tmp_path: Path) -> None:
    tls = tls_context(*make_certificate(tmp_path))
    with running(Endpoint(tmp_path / "secret", tls)) as endpoint:
        with socket.create_connection(("127.0.0.1", endpoint.port)) as plain:
            plain.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert b"200" not in plain.recv(100)
        assert endpoint.notify() == 202
    with pytest.raises(NodeError, match="cannot use the certificate"):
        tls_context(tmp_path / "secret", None)


@pytest.mark.parametrize(
    "secret", ["", "short", "line\nfeed and more of it", "ümlaute are no header"]
)
def test_bad_secrets(tmp_path: Path, secret: str) -> None:
    (tmp_path / "secret").write_text(secret)
    with pytest.raises(UsageError, match="is no secret"):
        Secret(tmp_path / "secret")


def test_wrong_words(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    given = ("--secret-file", str(tmp_path / "secret"))
    for words, message in (
        (("r.example/*:*", "--attach"), "--secret-file"),
        (("--attach", *given), "there is no SOURCE"),
        (("r.example/*", "s.example/*", "--attach", *given), "name 2 registries"),
        (("r.example/*", *given), "there is no SOURCE"),
        (("r.example/*", "m.example/lazy", *given), "is no DEST"),
        (("r.example/*", "--attach", "--listen=a", *given), "is not HOST:PORT"),
        (("r.example/*", "--attach", f"--tls-key={tmp_path}/secret", *given), "--tls-cert"),
    ):
        ran = firstread("sync", "serve", *words)
        assert (ran.code, ran.stdout) == (2, "")
        assert message in ran.stderr


# With a registry.


def image(number: int) -> Image:
    return Image([Layer([File("a", random.Random(number).randbytes(100_000))])], {}, "linux/amd64")


def await_conversion(name: str, original: str) -> None:
    """Wait until a node that asks for `name` gets a conversion of `original`."""
    until = time.monotonic() + PATIENCE_S
    while True:
        ran = firstread("inspect", "--json", name)
        if ran.code == 0 and ran.json["source_digest"] == original:
            return
        assert time.monotonic() < until, ran
        time.sleep(0.05)


@pytest.mark.parametrize("before", ["nothing", "an older image"])
def test_a_notification_that_comes_before_its_tag(
    registry: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """docker-registry sends it so."""
    monkeypatch.setattr(pushservice, "AGAIN_S", (0.05,) * 1000)
    name = f"{registry.host}/team/app:v1"
    options = ConvertOptions(cache=LayerCache(tmp_path / "cache"), static=False)
    pattern = [parse_pattern(f"{registry.host}/*:*")]
    sync = Sync(Beside(options), 1)
    result = "failed"
    if before == "an older image":
        push(name, image(0))
        sync.run([parse_reference(name)])
        result = "present"
    service = PushService(sync, Wanted(pattern, only=pattern), AccessOptions(), 1)
    pushed = image(1)
    known = {"repository": "team/app", "tag": "v1", "mediaType": OCI_MANIFEST}
    event = {"action": "push", "target": known | {"digest": digest_of(pushed.manifest())}}
    assert service.take(json.dumps({"events": [event]}).encode()) == 1
    service.start(None)
    until = time.monotonic() + PATIENCE_S
    while f'firstread_sync_images_total{{result="{result}"}}'.encode() not in service.metrics():
        assert time.monotonic() < until
        time.sleep(0.01)
    await_conversion(name, push(name, pushed))
    service.stop()


def test_a_shortage_ends_no_thread_that_converts(
    registry: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushservice, "AGAIN_S", (0.05,) * 1000)
    name = f"{registry.host}/team/short:v1"
    options = ConvertOptions(cache=LayerCache(tmp_path / "cache"), static=False)
    sync, short = Sync(Beside(options), 1), [RuntimeError("can't start new thread"), ValueError()]
    run = sync.run

    def fails(*names: Any) -> Any:
        if short:
            raise short.pop(0)
        return run(*names)

    monkeypatch.setattr(sync, "run", fails)
    pattern = [parse_pattern(f"{registry.host}/*:*")]
    service = PushService(sync, Wanted(pattern, only=pattern), AccessOptions(), 1)
    service.start(None)
    digest = push(name, image(1))
    target = {"repository": "team/short", "tag": "v1", "mediaType": OCI_MANIFEST, "digest": digest}
    notification = json.dumps({"events": [{"action": "push", "target": target}]}).encode()
    until = time.monotonic() + PATIENCE_S
    assert service.take(notification) == 1
    while short:  # tried again after the first, and not after the second
        assert time.monotonic() < until
        time.sleep(0.01)
    while not service.take(notification):
        assert time.monotonic() < until
        time.sleep(0.01)
    await_conversion(name, digest)
    service.stop()


@pytest.mark.parametrize("way", ["DEST", "--attach"])
def test_a_push_is_converted(tmp_path: Path, way: str) -> None:
    """Its repeats, the conversion itself and pushes to other repositories lead to nothing."""
    port = free_port()
    (tmp_path / "secret").write_text(SECRET)
    url = f"http://127.0.0.1:{port}/notifications"
    with DockerRegistry(notify=(url, f"Bearer {SECRET}")) as registry:
        host = registry.host
        missed = push(f"{host}/team/missed:v1", image(0))  # nobody listens yet
        target = "--attach" if way == "--attach" else f"{host}/*:*-lazy"
        words = ("sync", "serve", f"{host}/team/*:*", target, "--no-hot", "--watch=3600")
        more = ("--listen", f"127.0.0.1:{port}", "--secret-file", f"{tmp_path}/secret")
        with (tmp_path / "log").open("w") as log:
            served = subprocess.Popen(program(*words, *more), stderr=log)
        try:
            suffix = "" if way == "--attach" else "-lazy"
            await_conversion(f"{host}/team/missed:v1{suffix}", missed)
            other = push(f"{host}/other/app:v1", image(2))
            for _ in range(3):
                digest = push(f"{host}/team/app:v1", image(1))
            await_conversion(f"{host}/team/app:v1{suffix}", digest)
            later = push(f"{host}/team/app:v1", image(3))
            await_conversion(f"{host}/team/app:v1{suffix}", later)
            assert firstread("inspect", f"{host}/other/app:v1{suffix}").code in (3, 4), other
            # To another thread than the first: the kernel may choose any (ADR 160).
            os.kill(int(sorted(os.listdir(f"/proc/{served.pid}/task"), key=int)[1]), signal.SIGTERM)
            code = served.wait(timeout=PATIENCE_S)
        finally:
            served.kill()
            served.wait()
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert code == 0, lines
        done = [line for line in lines if line.get("result") == "converted"]
        assert [line["image"].partition("/team/")[2] for line in done] == [
            "missed:v1",
            "app:v1",
            "app:v1",
        ]
        assert not [line for line in lines if line["level"] in ("error", "critical")]
        assert registry.open_uploads() == 0
        with open_source(parse_reference(f"{host}/team/app:v1")) as place:
            assert place.get_manifest()[0].digest == later  # the original keeps its name

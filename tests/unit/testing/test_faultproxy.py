# SPDX-License-Identifier: Apache-2.0
"""A real proxy before a registry: what a client sees of each fault, and what ours makes of it."""

from __future__ import annotations

import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from firstread.errors import DigestError, FirstreadError, SourceError, TransportError
from firstread.oci.model import OCI_LAYER, OCI_MANIFEST, describe, sha256_digest
from firstread.oci.reference import parse_reference
from firstread.registry.open import open_destination, open_source
from firstread.registry.options import AccessOptions
from firstread.testing.faultproxy import FaultProxy
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import DockerRegistry
from firstread.testing.scripted import ScriptedRegistry

DATA = bytes(range(256)) * 4000
BLOB = describe(DATA, OCI_LAYER)
OPTIONS = AccessOptions(retries=2, retry_base=0.01, read_timeout=20, connect_timeout=2)


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as registry:
        registry.add_blob(DATA)
        yield registry


@pytest.fixture
def proxy(registry: ScriptedRegistry) -> Iterator[FaultProxy]:
    with FaultProxy(f"http://{registry.host}") as proxy:
        yield proxy


def get(proxy: FaultProxy, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """Ask as a bare client; the body is as far as it comes."""
    connection = http.client.HTTPConnection(proxy.host, timeout=5)
    connection.request("GET", f"/v2/a/b/blobs/{BLOB.digest}", headers=headers)
    response = connection.getresponse()
    try:
        body = response.read()
    except http.client.IncompleteRead as exc:
        body = exc.partial
    connection.close()
    return response, body


def read(host: str, offset: int = 0, length: int | None = None) -> bytes:
    with (
        open_source(parse_reference(f"docker://{host}/a/b"), OPTIONS) as place,
        place.open_blob(BLOB, offset=offset, length=length) as stream,
    ):
        return stream.readall()


def test_without_a_script_nothing_is_changed(proxy: FaultProxy) -> None:
    response, body = get(proxy)
    assert (response.status, body) == (200, DATA)
    response, body = get(proxy, Range="bytes=1000-1999")
    assert (response.status, body) == (206, DATA[1000:2000])
    assert response.getheader("Content-Range") == f"bytes 1000-1999/{len(DATA)}"
    assert proxy.injected.total() == 0


def test_an_image_is_pushed_and_read_through_it() -> None:
    with DockerRegistry() as registry, FaultProxy(f"http://{registry.host}") as proxy:
        reference = parse_reference(f"docker://{proxy.host}/a/b:1")
        manifest = b'{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[]}' % (
            OCI_MANIFEST.encode(),
            json.dumps({"mediaType": OCI_LAYER, "size": BLOB.size, "digest": BLOB.digest}).encode(),
        )
        with open_destination(reference, OPTIONS) as place:
            assert place.put_blob(BLOB, io.BytesIO(DATA))
            place.put_manifest(manifest, OCI_MANIFEST, "1")
        with open_source(reference, OPTIONS) as place:
            assert place.get_manifest()[1] == manifest
        assert read(proxy.host, 5, 100_000) == DATA[5:100_005]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("hangup 1000", DATA[1000:2000]),
        ("cut 10", DATA[1000:5990]),
        ("short 10", DATA[1000:5990]),
        ("flip 3", DATA[1000:1003] + bytes([DATA[1003] ^ 1]) + DATA[1004:6000]),
        ("flip", DATA[1000:3500] + bytes([DATA[3500] ^ 1]) + DATA[3501:6000]),
        ("duplicate 7", DATA[1000:1007] + DATA[1000:5993]),
        ("wrong-range", DATA[1001:6000]),
        ("wrong-content-range", DATA[1000:6000]),
        ("ignore-range", DATA),
        ("body text", b"text"),
        ("trickle 100000", DATA[1000:6000]),
        ("slow 0.01", DATA[1000:6000]),
    ],
)
def test_what_comes(proxy: FaultProxy, fault: str, expected: bytes) -> None:
    proxy.script(f"GET /blobs/ {fault}")
    assert get(proxy, Range="bytes=1000-5999")[1] == expected
    assert proxy.injected == {fault.split(maxsplit=1)[0]: 1}
    assert get(proxy, Range="bytes=1000-5999")[1] == DATA[1000:6000]


def test_the_words_of_a_script(proxy: FaultProxy) -> None:
    proxy.script("GET /blobs/ short 10\nGET /blobs/ wrong-content-range\nGET /blobs/ redirect")
    short, wrong, moved = (get(proxy, Range="bytes=0-99")[0] for _ in range(3))
    assert short.getheader("Content-Length") == "90"
    assert short.getheader("Content-Range") == f"bytes 0-99/{len(DATA)}"
    assert wrong.getheader("Content-Range") == f"bytes 1-100/{len(DATA)}"
    assert moved.status == 307


@pytest.mark.parametrize("fault", ["lost", "blackhole 0.05", "refuse 0.05"])
def test_no_answer_at_all(proxy: FaultProxy, fault: str) -> None:
    proxy.script(f"GET /blobs/ {fault}")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        get(proxy)
    assert proxy.injected.total() == 1


def test_nobody_listens_for_a_while(proxy: FaultProxy) -> None:
    proxy.script("GET /blobs/ refuse 0.5")
    with pytest.raises(ConnectionError):
        get(proxy)
    deadline = time.monotonic() + 5
    refused = False
    while not (refused and listens(proxy.host)):
        assert time.monotonic() < deadline
        refused = refused or not listens(proxy.host)
        time.sleep(0.01)
    assert get(proxy)[1] == DATA


def listens(host: str) -> bool:
    name, port = host.split(":")
    with socket.socket() as client:
        return client.connect_ex((name, int(port))) == 0


@pytest.mark.parametrize(
    "fault",
    [
        "status 503",
        "status 429 Retry-After=0",
        "hangup 1000",
        "cut 1",
        "short 9",
        "lost",
        "expired",
        "refuse 0.001",
        "trickle 2000000",
    ],
)
def test_our_client_survives(proxy: FaultProxy, fault: str) -> None:
    proxy.script(f"GET /blobs/ {fault}")
    assert read(proxy.host, 1000, 200_000) == DATA[1000:201_000]
    assert proxy.unused() == []


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("redirect", SourceError),
        ("ignore-range", SourceError),
        ("status 404", SourceError),
        ("wrong-range", TransportError),
        ("wrong-content-range", TransportError),
        ("body text", DigestError),
    ],
)
def test_our_client_says_what_is_wrong(
    proxy: FaultProxy, fault: str, kind: type[FirstreadError]
) -> None:
    proxy.script(f"GET /blobs/ {fault} x*")
    with pytest.raises(kind):
        read(proxy.host, 1000, 200_000)


@pytest.mark.parametrize("fault", ["flip", "duplicate 100"])
def test_wrong_bytes_of_a_whole_blob_are_found(proxy: FaultProxy, fault: str) -> None:
    proxy.script(f"GET /blobs/ {fault}")
    with pytest.raises(DigestError):
        read(proxy.host)


@pytest.mark.parametrize(
    ("upstream", "address"),
    [("127.0.0.1:5000", "127.0.0.1:0"), ("ftp://x", "127.0.0.1:0"), ("http://x", "5000")],
)
def test_wrong_addresses_are_refused(upstream: str, address: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        FaultProxy(upstream, address=address)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "firstread.testing.faultproxy", *arguments]


def test_the_command(registry: ScriptedRegistry) -> None:
    arguments = ("--upstream", f"http://{registry.host}", "--script", "GET /blobs/ flip x*")
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.fullmatch(r"listening on http://(127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert found
        control = http.client.HTTPConnection(found[1], timeout=5)
        path = f"/v2/a/b/blobs/{sha256_digest(DATA)}"
        control.request("GET", path)
        assert control.getresponse().read() != DATA
        control.request("PUT", "/faultproxy/script", body="GET /blobs/ explode")
        answer = control.getresponse()
        assert (answer.status, b"explode" in answer.read()) == (400, True)
        control.request("PUT", "/faultproxy/script", body="")
        assert control.getresponse().read() == b"{}"
        control.request("GET", path)
        assert control.getresponse().read() == DATA
        control.request("GET", "/faultproxy/injected")
        assert json.loads(control.getresponse().read()) == {"flip": 1}
        control.close()
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=PATIENCE_S)
        assert said.split() == ["flip", "1", "all", "1"]
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait(timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "--upstream"),
        (("--upstream", "nothing"), "is not the URL"),
        (("--upstream", "http://x", "--script", "GET / explode"), "no fault 'explode'"),
        (("--upstream", "http://x", "--script-file", "/missing"), "No such file"),
    ],
)
def test_a_wrong_command_line(arguments: tuple[str, ...], why: str) -> None:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 2
    assert why in done.stderr
    assert "Traceback" not in done.stderr

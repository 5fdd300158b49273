# SPDX-License-Identifier: Apache-2.0
"""Sending blobs: parts, one PUT, mounts, and what happens when it breaks in the middle."""

from __future__ import annotations

import io
import random
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

import pytest

from firstread.errors import AuthError, DigestError, FirstreadError, SourceError, TransportError
from firstread.oci.model import OCI_LAYER, OCI_MANIFEST, describe
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Destination
from firstread.registry.open import open_destination
from firstread.registry.options import AccessOptions
from firstread.registry.upload import following
from firstread.testing.registry import DockerRegistry, ScriptedRegistry

OPTIONS = AccessOptions(retries=2, retry_base=0.01, read_timeout=20, connect_timeout=2)
DATA = random.Random(2).randbytes(1_000_000)
BLOB = describe(DATA, OCI_LAYER)


def destination(host: str) -> Destination:
    return open_destination(parse_reference(f"docker://{host}/a/b"), OPTIONS)


def put(place: Destination) -> bool:
    return place.put_blob(BLOB, io.BytesIO(DATA))


def ranges(registry: ScriptedRegistry) -> list[str | None]:
    """Return the ranges that the parts of uploads have stated."""
    return [seen.headers["Content-Range"] for seen in registry.seen if seen.method == "PATCH"]


@pytest.mark.parametrize("relative", [True, False])
def test_a_blob_is_sent_once(relative: bool) -> None:
    with ScriptedRegistry(relative=relative) as registry, destination(registry.host) as to:
        assert put(to)
        assert registry.blobs[BLOB.digest] == DATA
        assert ranges(registry) == [None]
        registry.seen.clear()
        assert not put(to)
        assert [seen.method for seen in registry.seen] == ["HEAD"]


def test_a_blob_goes_into_a_real_registry() -> None:
    with DockerRegistry() as registry, destination(registry.host) as to:
        assert put(to)
        assert to.read_blob(BLOB, len(DATA)) == DATA


def test_a_registry_that_takes_no_parts() -> None:
    with ScriptedRegistry(patch=False) as registry, destination(registry.host) as to:
        assert put(to)
        assert registry.blobs[BLOB.digest] == DATA
        assert registry.open_uploads() == 0


def test_an_upload_goes_on_where_it_broke_off() -> None:
    script = """
        PATCH /uploads/ hangup 250000
        PATCH /uploads/ hangup 100000
        PUT   /uploads/ hangup 9999
    """
    with ScriptedRegistry(script) as registry, destination(registry.host) as to:
        told: list[int] = []
        assert to.put_blob(BLOB, io.BytesIO(DATA), on_progress=told.append)
        assert registry.blobs[BLOB.digest] == DATA
        assert told[-1] == len(DATA)
        # urllib3 stops sending at the break; what the registry took decides
        assert ranges(registry) == [None, "250000-999999", "350000-999999"]


def test_a_broken_connection_to_a_real_registry() -> None:
    """docker-registry forgets a session whose part broke off: the blob is sent again."""
    with DockerRegistry() as registry, Relay(registry.host, breaks=[400_000, 700_000]) as relay:
        with destination(relay.host) as to:
            assert put(to)
            assert to.read_blob(BLOB, len(DATA)) == DATA
        assert relay.breaks == []


class Relay:
    """Passes connections on to `host`; breaks them after so many bytes of the client, in turn."""

    def __init__(self, host: str, breaks: list[int]) -> None:
        self._target = ("127.0.0.1", int(host.rpartition(":")[2]))
        self.breaks = breaks
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._pass_on, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, client: socket.socket) -> None:
        """Copy both ways until one side closes, or until the break."""
        left = self.breaks[0] if self.breaks else None
        with client, socket.create_connection(self._target) as server, suppress(OSError):
            other = {client: server, server: client}
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65536)
                    other[ready].sendall(data)
                    if not data:
                        return
                    if ready is client and left is not None:
                        left -= len(data)
                        if left < 0:
                            self.breaks.pop(0)
                            return


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("PATCH /uploads/ hangup 250000\nGET /uploads/ status 404", id="broken-off"),
        pytest.param(
            "PUT /uploads/ status 404\nGET /uploads/ status 404", id="forgotten-at-the-end"
        ),
    ],
)
def test_a_session_that_is_lost_begins_again(script: str) -> None:
    with ScriptedRegistry(script) as registry, destination(registry.host) as to:
        assert put(to)
        assert registry.blobs[BLOB.digest] == DATA
        assert len(registry.asked("POST")) == 2
        assert registry.open_uploads() == 0


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
@pytest.mark.parametrize("fault", ["status 500 x2", "status 429 Retry-After=0 x2", "lost"])
def test_a_transient_failure_is_survived(method: str, fault: str) -> None:
    with ScriptedRegistry(f"{method} /uploads/ {fault}") as registry:
        with destination(registry.host) as to:
            assert put(to)
        assert registry.blobs[BLOB.digest] == DATA
        assert registry.unused() == []


@pytest.mark.parametrize("status", [400, 403, 405, 501])
def test_an_upload_goes_on_where_head_is_not_answered(status: int) -> None:
    script = f"PATCH /uploads/ hangup 250000\nHEAD / status {status} x9"
    with ScriptedRegistry(script) as registry, destination(registry.host) as to:
        assert put(to)
        assert registry.blobs[BLOB.digest] == DATA
        assert len(registry.asked("POST")) == 1


def test_a_part_that_is_taken_in_part() -> None:
    script = "PATCH /uploads/ short 1000"
    with ScriptedRegistry(script) as registry, destination(registry.host) as to:
        assert put(to)
        assert registry.blobs[BLOB.digest] == DATA
        assert ranges(registry) == [None, "999000-999999"]


@pytest.mark.parametrize(
    ("taken", "offset"),
    [
        pytest.param(0, 600, id="says-nothing"),
        pytest.param(600, 600, id="all"),
        pytest.param(301, 301, id="one-byte"),
        pytest.param(300, 600, id="counts-from-the-part"),
        pytest.param(601, 600, id="more"),
    ],
)
def test_where_to_go_on(taken: int, offset: int) -> None:
    assert following(taken, 300, 600) == offset


def test_one_byte_at_the_start_is_not_believed() -> None:
    assert following(1, 0, 300) == 300
    assert following(2, 0, 300) == 2


def test_a_part_whose_answer_names_no_place_leaves_the_upload_where_it_is() -> None:
    with ScriptedRegistry(moves=False) as registry:
        with destination(registry.host) as to:
            assert put(to)
        assert registry.blobs[BLOB.digest] == DATA


def test_a_repository_that_has_moved() -> None:
    script = """
        POST  /a/b/       status 307 Location=/v2/c/d/blobs/uploads/
        PATCH /uploads/u2 status 308 Location=u2
        PUT   /uploads/u3 status 307 Location=u3?digest=DIGEST
        PUT   /manifests/ status 307 Location=/v2/c/d/manifests/1
    """
    with ScriptedRegistry(script.replace("DIGEST", BLOB.digest)) as registry:
        with destination(registry.host) as to:
            assert put(to)
            to.put_manifest(b"{}", OCI_MANIFEST, "1")
        assert registry.unused() == []
        assert registry.blobs[BLOB.digest] == DATA
        assert registry.manifests["1"] == (OCI_MANIFEST, b"{}")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("302 Location=/x", "answers 302"),
        ("307 Location=http://localhost:1/x", "redirects what it is sent to localhost:1"),
    ],
)
def test_an_upload_goes_to_no_other_host_and_stays_one(fault: str, said: str) -> None:
    with ScriptedRegistry(f"POST /uploads/ status {fault}") as registry:
        with destination(registry.host) as to, pytest.raises(SourceError, match=said):
            put(to)
        assert registry.open_uploads() == 0


@pytest.mark.parametrize("code", ["MANIFEST_BLOB_UNKNOWN", "DIGEST_INVALID"])
def test_a_manifest_whose_blobs_another_client_puts_is_put_again(code: str) -> None:
    """docker-registry loses sight of a blob for a moment; a later answer is the right one."""
    manifest = b"{}"
    script = "PUT /manifests/ status 400 x2"
    with ScriptedRegistry(script, says=code) as registry, destination(registry.host) as to:
        to.put_manifest(manifest, "application/json", "1")
        assert registry.unused() == []
    with ScriptedRegistry("PUT /manifests/ status 400 x9", says="no") as registry:
        with (
            destination(registry.host) as to,
            pytest.raises(SourceError, match="Bad Request"),
        ):
            to.put_manifest(manifest, "application/json", "1")
        assert len(registry.asked("PUT")) == 1


def test_a_registry_that_always_breaks_off() -> None:
    with ScriptedRegistry("PATCH /uploads/ hangup 0 x99") as registry:
        with destination(registry.host) as to, pytest.raises(TransportError) as caught:
            put(to)
        assert caught.value.image == f"docker://{registry.host}/a/b:latest"
        assert len(registry.asked("PATCH")) == 1 + OPTIONS.retries
        assert registry.open_uploads() == 0


@pytest.mark.parametrize("sent", [1, len(DATA)], ids=["in-the-middle", "at-the-end"])
def test_a_stopped_upload_leaves_nothing_in_a_real_registry(sent: int) -> None:
    """docker-registry keeps a session whose part broke off, and half of one that is in use."""
    with DockerRegistry() as registry, destination(registry.host) as to:
        for _ in range(10):
            with pytest.raises(FirstreadError, match="stopped"):
                to.put_blob(BLOB, io.BytesIO(DATA), on_progress=stopping(sent))
            assert registry.open_uploads() == 0
        assert put(to)


@pytest.mark.parametrize("fault", ["", "PATCH /uploads/ status 500", "PATCH /uploads/ lost"])
def test_a_stopped_upload_is_not_tried_again(fault: str) -> None:
    with ScriptedRegistry(fault) as registry, destination(registry.host) as to:
        with pytest.raises(FirstreadError, match="stopped"):
            to.put_blob(BLOB, io.BytesIO(DATA), on_progress=stopping(1))
        assert len(registry.asked("PATCH")) <= 1
        assert len(registry.asked("DELETE")) == 1


def stopping(sent: int) -> Callable[[int], None]:
    """Return what hears of progress, and stops an upload after so many bytes."""

    def hear(count: int) -> None:
        if count >= sent:
            raise FirstreadError("stopped")

    return hear


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("POST /uploads/ status 403", AuthError),
        ("PATCH /uploads/ status 413", SourceError),
        ("PUT /uploads/ status 400", SourceError),
        ("POST /uploads/ body done", SourceError),
        ("PATCH /uploads/ body done", DigestError),
    ],
)
def test_a_refusal_leaves_nothing_behind(fault: str, kind: type[FirstreadError]) -> None:
    with ScriptedRegistry(fault) as registry:
        with destination(registry.host) as to, pytest.raises(kind) as caught:
            put(to)
        assert not caught.value.retryable
        assert registry.open_uploads() == 0


@pytest.mark.parametrize("status", [200, 201, 202, 203])
@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "PUT /manifests/"])
def test_any_success_is_one(method: str, status: int) -> None:
    fault = method if " " in method else f"{method} /uploads/"
    with ScriptedRegistry(f"{fault} as {status} x9") as registry:
        with destination(registry.host) as place:
            assert put(place)
            place.put_manifest(b"{}", "application/json", "1")
        assert registry.blobs[BLOB.digest] == DATA
        assert "1" in registry.manifests


def test_what_another_host_says_of_an_upload_is_in_no_message() -> None:
    with ScriptedRegistry(says="of an inner service") as inner:
        there = f"http://{inner.host}/v2/a/b/blobs/uploads/u7"
        inner.script("PUT /uploads/ status 400")
        with (
            ScriptedRegistry(f"POST /uploads/ status 202 Location={there} x2") as registry,
            destination(registry.host) as place,
            pytest.raises(SourceError) as caught,
        ):
            put(place)
        assert "does not accept it" in str(caught.value)
        assert "inner" not in str(caught.value)


def test_a_file_that_becomes_shorter() -> None:
    with ScriptedRegistry() as registry, destination(registry.host) as to:
        with pytest.raises(DigestError, match="too short"):
            to.put_blob(BLOB, io.BytesIO(DATA[:-1]))
        assert not to.has_blob(BLOB)


def test_a_mount_sends_nothing() -> None:
    with DockerRegistry() as real:
        with open_destination(parse_reference(f"docker://{real.host}/x/y"), OPTIONS) as other:
            put(other)
        real.forget()
        with destination(real.host) as to:
            assert to.mount_blob(BLOB, "x/y")
            assert real.counts.requests_of("PATCH") == 0
            assert to.read_blob(BLOB, len(DATA)) == DATA
            assert not put(to)


def test_a_mount_that_is_refused_leaves_nothing() -> None:
    with ScriptedRegistry(mounts=False) as registry, destination(registry.host) as to:
        assert not to.mount_blob(BLOB, "x/y")
        assert BLOB.digest not in registry.blobs
        (post,) = (seen for seen in registry.seen if seen.method == "POST")
        assert post.query == f"mount={BLOB.digest}&from=x/y"
        assert registry.open_uploads() == 0


def test_a_mount_asks_for_the_right_to_read_the_other_repository() -> None:
    with ScriptedRegistry(auth="token") as registry, destination(registry.host) as to:
        with pytest.raises(AuthError):
            to.mount_blob(BLOB, "x/y")
        tokens = [seen.query for seen in registry.seen if seen.path == "/token"]
        assert "scope=repository%3Aa%2Fb%3Apull%2Cpush" in tokens[0]
        assert "scope=repository%3Ax%2Fy%3Apull" in tokens[0]

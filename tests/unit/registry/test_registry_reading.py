# SPDX-License-Identifier: Apache-2.0
"""Reading from a registry that fails: what is survived, and what is said about the rest."""

from __future__ import annotations

import io
import json
import os
import socket
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firstread.errors import (
    AuthError,
    DigestError,
    ImageError,
    LimitError,
    NotFoundError,
    SourceError,
    TransportError,
    UnsupportedError,
    UsageError,
)
from firstread.oci.model import (
    DOCKER_SCHEMA1_SIGNED,
    OCI_LAYER,
    OCI_MANIFEST,
    describe,
    sha256_digest,
)
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Repository
from firstread.registry import answer, calls, connections, trust
from firstread.registry.credentials import Credentials
from firstread.registry.open import open_destination, open_source
from firstread.registry.options import AccessOptions
from firstread.registry.remote import RemoteRepository
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import PASSWORD, USERNAME, DockerRegistry, ScriptedRegistry
from firstread.testing.scripted import IDENTITY_TOKEN

OPTIONS = AccessOptions(retries=2, retry_base=0.01, read_timeout=20, connect_timeout=2)
DATA = bytes(range(256)) * 4000
BLOB = describe(DATA, OCI_LAYER)
MANIFEST = b'{"schemaVersion":2,"config":{},"layers":[]}'


def source(registry: ScriptedRegistry, options: AccessOptions = OPTIONS) -> Repository:
    registry.add_blob(DATA)
    return open_source(parse_reference(f"docker://{registry.host}/a/b"), options)


def read(place: Repository) -> bytes:
    with place.open_blob(BLOB) as stream:
        return b"".join(stream)


def login(path: Path, host: str, **entry: str) -> AccessOptions:
    """Return options with an auth file for `host`."""
    file = path / "auth.json"
    file.write_text(json.dumps({"auths": {host: entry}}))
    return replace(OPTIONS, auth_file=file)


PAIR = Credentials(USERNAME, PASSWORD).basic().removeprefix("Basic ")


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (400, SourceError, None),
        (401, AuthError, "log in"),
        (403, AuthError, "account"),
        (404, NotFoundError, "name"),
        (405, SourceError, "read-only"),
        (413, SourceError, "limit"),
        (418, SourceError, None),
        (429, TransportError, "wait"),
        (500, TransportError, None),
        (501, SourceError, "cannot"),
        (503, TransportError, None),
        (599, TransportError, None),
    ],
)
def test_a_status_is_one_error(status: int, kind: type[SourceError], hint: str | None) -> None:
    with ScriptedRegistry(f"GET /manifests/ status {status} x3") as registry:
        with source(registry) as place, pytest.raises(SourceError) as caught:
            place.get_manifest()
        error = caught.value
        assert type(error) is kind
        assert error.image == f"docker://{registry.host}/a/b:latest"
        assert f"{registry.host} answers {status}" in str(error)
        assert "SCRIPTED: as the script says" in str(error)
        assert (hint or "") in (error.hint or "")
        assert len(registry.seen) == (3 if error.retryable else 1)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("GET /manifests/ status 429 Retry-After=0 x2", id="too-many-requests"),
        pytest.param("GET /manifests/ status 500 x2", id="server-error"),
        pytest.param("GET /manifests/ lost x2", id="no-answer"),
        pytest.param("GET /manifests/ slow 0.5", id="slow"),
        pytest.param("GET /manifests/ hangup 9 x2", id="broken-off"),
        pytest.param("GET /manifests/ hangup 0 x2", id="no-body"),
    ],
)
def test_a_transient_failure_is_survived(script: str) -> None:
    with ScriptedRegistry(script) as registry:
        registry.manifests["latest"] = (OCI_MANIFEST, MANIFEST)
        with source(registry, replace(OPTIONS, read_timeout=0.3)) as place:
            assert place.get_manifest()[1] == MANIFEST
        assert registry.unused() == []


def test_an_answer_that_always_breaks_off() -> None:
    """It says nothing of the image, which is not damaged."""
    with ScriptedRegistry("GET /manifests/ cut 5 x9") as registry, source(registry) as place:
        registry.manifests["latest"] = (OCI_MANIFEST, MANIFEST)
        with pytest.raises(TransportError, match="5 bytes are missing"):
            place.get_manifest()
        assert len(registry.asked("/manifests/")) == 1 + OPTIONS.retries


def test_a_long_wait_is_not_waited_for() -> None:
    with ScriptedRegistry("GET /manifests/ status 429 Retry-After=3600") as registry:
        with source(registry) as place, pytest.raises(TransportError) as caught:
            place.get_manifest()
        assert caught.value.retry_after == 3600
        assert len(registry.seen) == 1


def test_a_short_wait_is_kept() -> None:
    with ScriptedRegistry("GET /manifests/ status 503 Retry-After=1") as registry:
        registry.manifests["latest"] = (OCI_MANIFEST, MANIFEST)
        with source(registry) as place:
            start = time.monotonic()
            place.get_manifest()
            assert time.monotonic() - start >= 1


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        reference = parse_reference(f"docker://127.0.0.1:{free.getsockname()[1]}/a/b")
        with open_source(reference, OPTIONS) as place, pytest.raises(TransportError) as caught:
            place.get_manifest()
    assert "it cannot be reached" in str(caught.value)
    assert caught.value.image == str(reference)


def test_closing_ends_the_waits() -> None:
    options = replace(OPTIONS, retries=100, retry_base=60)
    with ScriptedRegistry("GET /manifests/ status 500") as registry:
        place = source(registry, options)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(place.get_manifest)
            while not registry.seen:
                time.sleep(0.01)
            place.close()
            assert isinstance(waiting.exception(timeout=PATIENCE_S), TransportError)


def test_a_blob_goes_on_where_it_broke_off() -> None:
    script = """
        GET /blobs/ hangup 1000
        GET /blobs/ hangup 300000
        GET /blobs/ status 500
        GET /blobs/ wrong-range
        GET /blobs/ hangup 0
        GET /blobs/ hangup 50000
    """
    with ScriptedRegistry(script) as registry:
        with source(registry, replace(OPTIONS, retries=3)) as place:
            assert read(place) == DATA
        assert registry.unused() == []
        ranges = [seen.headers["Range"] for seen in registry.seen]
        assert ranges[0] is None
        starts = [int(text[6:].split("-")[0]) for text in ranges[1:]]
        assert starts == sorted(starts)
        assert all(text.endswith(f"-{len(DATA) - 1}") for text in ranges[1:])


def test_a_range_goes_on_where_it_broke_off() -> None:
    with ScriptedRegistry("GET /blobs/ hangup 70 x5") as registry:
        with source(registry) as place, place.open_blob(BLOB, offset=500, length=400) as stream:
            assert stream.readall() == DATA[500:900]
        assert [seen.headers["Range"] for seen in registry.seen] == [
            f"bytes={start}-899" for start in range(500, 900, 70)
        ]


def test_a_registry_without_ranges() -> None:
    script = "GET /blobs/ hangup 9999\nGET /blobs/ ignore-range x9"
    with ScriptedRegistry(script) as registry, source(registry) as place:
        assert read(place) == DATA  # what was there already is dropped
        with place.open_blob(BLOB, length=10) as stream:
            assert stream.readall() == DATA[:10]
        with pytest.raises(SourceError, match="ignores range") as caught:
            place.open_blob(BLOB, offset=10, length=10)
        assert not caught.value.retryable


def test_a_blob_that_always_breaks_off() -> None:
    with ScriptedRegistry("GET /blobs/ hangup 1000\nGET /blobs/ hangup 0 x9") as registry:
        with source(registry) as place, pytest.raises(TransportError) as caught:
            read(place)
        assert "hung up" in str(caught.value)
        assert caught.value.image is not None
        assert len(registry.seen) == 1 + OPTIONS.retries


def test_another_manifest_than_asked_for() -> None:
    with ScriptedRegistry("GET /manifests/ body {} x3") as registry, source(registry) as place:
        with pytest.raises(ImageError):
            place.get_manifest()
        registry.manifests[sha256_digest(MANIFEST)] = (OCI_MANIFEST, MANIFEST + b" ")
        registry.script("")
        with pytest.raises(DigestError):
            place.get_manifest(sha256_digest(MANIFEST))


@pytest.mark.parametrize("declared", ["", "text/plain", "application/json; charset=utf-8"])
def test_a_registry_that_does_not_know_media_types(declared: str) -> None:
    with ScriptedRegistry() as registry:
        registry.manifests["latest"] = (declared, MANIFEST)
        with source(registry) as place:
            assert place.get_manifest()[0].media_type == OCI_MANIFEST


def test_schema_1() -> None:
    with ScriptedRegistry() as registry:
        registry.manifests["latest"] = (DOCKER_SCHEMA1_SIGNED, b'{"schemaVersion":1}')
        with source(registry) as place, pytest.raises(UnsupportedError, match="schema 1"):
            place.get_manifest()


def test_answers_are_bounded() -> None:
    with ScriptedRegistry() as registry:
        registry.manifests["latest"] = (OCI_MANIFEST, b" " * (4 << 20) + MANIFEST)
        with source(registry) as place, pytest.raises(LimitError):
            place.get_manifest()


def test_what_a_server_says_is_bounded_and_printable() -> None:
    message = "bad\x1b[2J\nthing " + "x" * 30_000
    registry = ScriptedRegistry("GET /manifests/ status 400", says=message)
    with registry, source(registry) as place, pytest.raises(SourceError) as caught:
        place.get_manifest()
    text = str(caught.value)
    assert "bad [2J thing xxx" in text
    assert len(text) < 500


def test_head_is_not_known_everywhere() -> None:
    script = "HEAD /blobs/ status 405 x2"
    with ScriptedRegistry(script) as registry, source(registry) as place:
        assert place.has_blob(BLOB)
        assert not place.has_blob(describe(b"?", OCI_LAYER))


def test_redirected_blobs() -> None:
    with ScriptedRegistry(redirect=True, auth="token") as registry, source(registry) as place:
        for start in range(0, 50_000, 1000):
            with place.open_blob(BLOB, offset=start, length=1000) as stream:
                assert stream.readall() == DATA[start : start + 1000]
        assert len(registry.asked("GET /v2/")) == 2  # one was refused: it wanted a token
        store = [seen for seen in registry.seen if seen.path.startswith("/store/")]
        assert len(store) == 50
        assert not any("Authorization" in seen.headers for seen in store)
        registry.script("GET /store/ status 403\nGET /store/ hangup 5")  # the signature expired
        with place.open_blob(BLOB, offset=7, length=1000) as stream:
            assert stream.readall() == DATA[7:1007]
        assert registry.unused() == []


def test_a_signed_address_is_in_no_message() -> None:
    script = "GET /store/ status 403 x9"
    with ScriptedRegistry(script, redirect=True) as registry, source(registry) as place:
        with pytest.raises(AuthError) as caught:
            read(place)
        assert "secret" not in repr(caught.value.to_dict())


def test_a_circle_of_redirects() -> None:
    script = "GET /manifests/ status 307 Location=/v2/a/b/manifests/latest x9"
    with ScriptedRegistry(script) as registry, source(registry) as place:
        place.has_blob(BLOB)
        with pytest.raises(SourceError, match="without end"):
            place.get_manifest()


@pytest.mark.parametrize(
    "target",
    ["ftp://x/", "ftp://x:80/", "http://[", "file:///etc/passwd", "http://x:y/", "https:"],
)
def test_a_redirect_to_nonsense(target: str) -> None:
    script = f"GET /manifests/ status 302 Location={target}"
    with ScriptedRegistry(script) as registry, source(registry) as place:
        with pytest.raises(SourceError, match=r"not valid|without a host"):
            place.get_manifest()
        assert registry.unused() == []


def test_one_token_serves_all() -> None:
    with ScriptedRegistry(auth="token") as registry, source(registry) as place:
        with ThreadPoolExecutor(8) as threads:

            def get(start: int) -> bytes:
                with place.open_blob(BLOB, offset=start, length=100) as stream:
                    return stream.readall()

            get(0)
            list(threads.map(get, range(0, 10_000, 100)))
            assert registry.asked("token") == ["GET /token"]
            registry.revoke_tokens()
            list(threads.map(get, range(0, 10_000, 100)))
        assert len(registry.asked("token")) == 2


def test_a_token_is_renewed_before_it_ends() -> None:
    with ScriptedRegistry(auth="token", token_lifetime=0.4) as registry, source(registry) as place:
        calls, end = 0, time.monotonic() + 1
        while time.monotonic() < end:
            place.has_blob(BLOB)
            calls += 1
            time.sleep(0.02)
        assert len(registry.asked("token")) >= 2
        assert len(registry.asked("HEAD")) == calls + 1  # only the first was refused


def test_a_token_that_ends_in_the_middle_of_a_blob() -> None:
    script = "GET /blobs/ status 404\nGET /blobs/ hangup 1000"
    with ScriptedRegistry(script, auth="token") as registry, source(registry) as place:
        with pytest.raises(NotFoundError):
            read(place)
        with place.open_blob(BLOB) as stream:
            first = stream.read(1000)
            registry.revoke_tokens()
            assert first + stream.readall() == DATA


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_login(tmp_path: Path, auth: str) -> None:
    with ScriptedRegistry(auth=auth) as registry:
        options = login(tmp_path, registry.host, auth=PAIR)
        with source(registry, options) as place:
            assert read(place) == DATA
        if auth == "basic":
            with source(registry) as place, pytest.raises(AuthError):
                read(place)
        options = login(tmp_path, registry.host, username=USERNAME, password="wrong: hunter2")
        with source(registry, options) as place, pytest.raises(AuthError) as caught:
            read(place)
        assert "hunter2" not in repr(caught.value.to_dict()) + repr(caught.value.__cause__)
        assert "log in" in (caught.value.hint or "")


def test_an_identity_token(tmp_path: Path) -> None:
    with ScriptedRegistry(auth="token") as registry:
        options = login(tmp_path, registry.host, identitytoken=IDENTITY_TOKEN)
        reference = parse_reference(f"docker://{registry.host}/a/b")
        with open_destination(reference, options) as place:
            place.put_manifest(MANIFEST, OCI_MANIFEST, "x")
        assert "POST /token" in registry.asked("token")


def test_a_login_during_the_work_is_seen(tmp_path: Path) -> None:
    with ScriptedRegistry(auth="basic") as registry:
        options = login(tmp_path, registry.host, username=USERNAME, password="old")
        with source(registry, options) as place:
            with pytest.raises(AuthError):
                read(place)
            login(tmp_path, registry.host, auth=PAIR)
            assert read(place) == DATA


def test_reading_without_a_login_and_not_writing() -> None:
    with ScriptedRegistry(auth="token") as registry, source(registry) as place:
        assert read(place) == DATA
        reference = parse_reference(f"docker://{registry.host}/a/b")
        with open_destination(reference, OPTIONS) as target, pytest.raises(AuthError):
            target.put_manifest(MANIFEST, OCI_MANIFEST, "x")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("GET /token status 401", id="refused"),
        pytest.param("GET /token status 404", id="missing"),
        pytest.param("GET /token body {", id="no-json"),
        pytest.param('GET /token body \'{"token":""}\'', id="empty"),
        pytest.param('GET /token body \'{"token":"a\\r\\nX:y"}\'', id="header-injection"),
        pytest.param("GET /token body '{\"token\":1}'", id="number"),
    ],
)
def test_a_token_server_that_gives_none(script: str) -> None:
    with ScriptedRegistry(script, auth="token") as registry:
        with source(registry) as place, pytest.raises(AuthError):
            read(place)
        assert registry.unused() == []


def test_a_token_answer_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "MAX_ANSWER", 1000)
    script = f"GET /token body {'x' * 1001}"
    with (
        ScriptedRegistry(script, auth="token") as registry,
        source(registry) as place,
        pytest.raises(AuthError, match="more than 1000 bytes"),
    ):
        read(place)


@pytest.mark.parametrize("fault", ["status 503 x2", "hangup 7 x2"], ids=["busy", "broken-off"])
def test_a_token_server_that_fails_for_a_moment(fault: str) -> None:
    script = f"GET /token {fault}"
    with ScriptedRegistry(script, auth="token") as registry, source(registry) as place:
        assert read(place) == DATA
        assert registry.unused() == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"], ids=["here", "elsewhere"])
def test_a_token_server_that_has_moved(tmp_path: Path, host: str) -> None:
    """It is found, and sees the password only if it is the same one."""
    with ScriptedRegistry(auth="token") as registry:
        to = f"//{host}:{registry.host.partition(':')[2]}/token?scope=repository:a/b:pull"
        registry.script(f"GET /token status 307 Location={to}")
        with source(registry, login(tmp_path, registry.host, auth=PAIR)) as place:
            assert read(place) == DATA
        asked = [seen for seen in registry.seen if seen.path == "/token"]
        shown = ["Authorization" in seen.headers for seen in asked]
        assert shown == [True, host == "127.0.0.1"]


def test_a_token_server_with_tls_redirects_to_none_without(tmp_path: Path) -> None:
    with ScriptedRegistry(tls=make_certificate(tmp_path)) as registry:
        realm = f'Bearer realm="https://{registry.host}/token"'
        registry.script(
            f"""GET /v2/ status 401 'WWW-Authenticate={realm}' x9
            GET /token status 302 Location=http://localhost:1/token"""
        )
        options = replace(OPTIONS, ca_file=tmp_path / "certificate.pem")
        with source(registry, options) as place, pytest.raises(AuthError, match="without TLS"):
            read(place)


def test_a_password_is_not_sent_to_a_token_server_in_the_clear(tmp_path: Path) -> None:
    """A registry with TLS names a token server without."""
    with ScriptedRegistry(tls=make_certificate(tmp_path)) as registry:
        registry.script(
            """GET /v2/ status 401 'WWW-Authenticate=Bearer realm="http://x/token"' x9"""
        )
        options = replace(
            login(tmp_path, registry.host, auth=PAIR), ca_file=tmp_path / "certificate.pem"
        )
        with source(registry, options) as place, pytest.raises(AuthError, match="without TLS"):
            read(place)


def make_certificate(path: Path) -> tuple[Path, Path]:
    """Return (certificate, key) for 127.0.0.1, signed by itself."""
    certificate, key = path / "certificate.pem", path / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=test"
        f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    return certificate, key


def test_tls(tmp_path: Path) -> None:
    files = make_certificate(tmp_path)
    trusting = replace(OPTIONS, ca_file=files[0])
    with ScriptedRegistry(tls=files) as registry:
        for options in (trusting, replace(OPTIONS, insecure_tls=True)):
            with source(registry, options) as place:
                assert read(place) == DATA
        other = make_certificate(tmp_path / "..")[0]
        with source(registry, replace(OPTIONS, ca_file=other)) as place:
            with pytest.raises(SourceError, match="not trusted") as caught:
                read(place)
            assert "--ca-file" in (caught.value.hint or "")
    with ScriptedRegistry() as registry, source(registry, trusting) as place:
        with pytest.raises(SourceError, match="does not speak TLS") as caught:
            read(place)
        assert "--plain-http" in (caught.value.hint or "")


def test_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    for name in ("bad.pem", "missing.pem"):
        with ScriptedRegistry() as registry, pytest.raises(UsageError, match="certificates"):
            source(registry, replace(OPTIONS, ca_file=tmp_path / name))


def test_a_real_registry_counts_what_it_sends() -> None:
    with DockerRegistry(login=True) as registry:
        reference = parse_reference(f"docker://{registry.host}/a/b")
        with open_source(reference, OPTIONS) as place, pytest.raises(AuthError) as caught:
            place.get_manifest()
        assert caught.value.image == str(reference)
        assert registry.counts.requests_of("GET /v2/a/b/manifests/latest") == 1
        registry.forget()
        assert registry.counts.requests_of() == 0


def test_a_real_registry_that_is_read_only() -> None:
    with DockerRegistry(readonly=True) as registry:
        reference = parse_reference(f"docker://{registry.host}/a/b")
        with open_destination(reference, OPTIONS) as place, pytest.raises(SourceError) as caught:
            place.put_blob(BLOB, io.BytesIO(DATA))
        assert "read-only" in (caught.value.hint or "")
        assert not caught.value.retryable


def test_a_real_registry_that_restarts() -> None:
    with DockerRegistry() as registry:
        reference = parse_reference(f"docker://{registry.host}/a/b")
        with open_destination(reference, replace(OPTIONS, retries=8)) as place:
            place.has_blob(BLOB)
            registry.restart()  # the idle connection is dead now
            assert not place.has_blob(BLOB)


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_connection_that_was_made_ahead_takes_one_of_two_requests(
    is_tls: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = []

    def connect(*arguments: Any) -> calls.PacedSocket:
        made.append(arguments)
        return calls.connect(*arguments)

    monkeypatch.setattr(connections, "connect", connect)
    tls = make_certificate(tmp_path) if is_tls else None
    with ScriptedRegistry(tls=tls) as registry:
        registry.blobs[BLOB.digest] = DATA
        with source(registry, replace(OPTIONS, insecure_tls=is_tls)) as place:
            assert isinstance(place, RemoteRepository)
            place.connect_ahead()
            assert len(made) == 1
            with place.open_blob(BLOB) as one, place.open_blob(BLOB) as another:
                assert one.readall() == another.readall() == DATA
            assert len(made) == 2
            place.close()
            place.connect_ahead()
            assert len(made) == 2
    with source(registry, OPTIONS) as place:
        assert isinstance(place, RemoteRepository)
        place.connect_ahead()  # nobody is there any more, which the next request says
        assert len(made) == 3


def test_repositories_share_what_the_system_trusts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Loading it takes as long as some requests; what an endpoint states itself is never shared."""
    system = trust.SystemTrust()
    monkeypatch.setattr(trust, "_system", system)
    certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    trust.load_authorities()
    shared = system.context()
    with ScriptedRegistry(tls=(certificate, key)) as registry:
        registry.blobs[BLOB.digest] = DATA
        with source(registry, replace(OPTIONS, insecure_tls=True)) as place:
            assert read(place) == DATA
        with source(registry, replace(OPTIONS, ca_file=certificate)) as place:
            assert read(place) == DATA
    with ScriptedRegistry() as registry:
        registry.blobs[BLOB.digest] = DATA
        with source(registry) as place:
            assert read(place) == DATA
    assert system.context() is shared
    assert shared.check_hostname
    assert shared.verify_mode is ssl.CERT_REQUIRED
    os.utime(certificate, (0, 0))
    assert system.context() is not shared, "its file has changed"

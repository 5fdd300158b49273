# SPDX-License-Identifier: Apache-2.0
"""Several endpoints of one registry: who is asked, and who goes on when one fails."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from http.server import HTTPServer
from pathlib import Path

import pytest

from firstread.errors import (
    DigestError,
    NotFoundError,
    SourceError,
    TransportError,
    UsageError,
)
from firstread.oci.model import OCI_LAYER, OCI_MANIFEST, describe, sha256_digest
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Repository
from firstread.registry.backoff import LONGEST_S
from firstread.registry.health import FEWEST_SAMPLES, KnownEndpoints
from firstread.registry.hosts import PULL, RESOLVE, Endpoint
from firstread.registry.open import open_destination, open_endpoints, open_source
from firstread.registry.options import AccessOptions
from firstread.testing.certificates import make_certificate
from firstread.testing.httpfaults import refusal, send
from firstread.testing.patience import PATIENCE_S
from firstread.testing.scripted import PASSWORD, USERNAME, ScriptedRegistry
from firstread.testing.serving import QuietHandler, serving

OPTIONS = AccessOptions(retries=2, retry_base=0.01, read_timeout=20, connect_timeout=2)
DATA = bytes(range(256)) * 4000
BLOB = describe(DATA, OCI_LAYER)
MANIFEST = b'{"schemaVersion":2,"config":{},"layers":[]}'
HOST = "r.example"  # nobody answers there: it stands for the name that a user writes


@dataclass
class Fleet:
    """Registries with the same blob, and a repository that they all serve."""

    registries: list[ScriptedRegistry]
    known: KnownEndpoints
    place: Repository

    def asked(self) -> list[int]:
        return [len(registry.asked("/blobs/")) for registry in self.registries]

    def states(self) -> list[str]:
        return [document["state"] for document in self.known.documents()]


@contextmanager
def fleet(
    *scripts: str,
    options: AccessOptions = OPTIONS,
    reference: str = f"docker://{HOST}/a/b",
    known: KnownEndpoints | None = None,
) -> Iterator[Fleet]:
    """Give a registry for each script; the last one is the server."""
    with ExitStack() as stack:
        registries = [stack.enter_context(ScriptedRegistry(s, referrers=True)) for s in scripts]
        for registry in registries:
            registry.add_blob(DATA)
        endpoints = [Endpoint("http", registry.host, namespace=HOST) for registry in registries]
        known = known or KnownEndpoints()
        place = open_endpoints(parse_reference(reference), endpoints, options, known)
        yield Fleet(registries, known, stack.enter_context(place))


def read(place: Repository, offset: int = 0, length: int | None = None) -> bytes:
    with place.open_blob(BLOB, offset=offset, length=length) as stream:
        return stream.readall()


def test_the_first_that_works_is_asked_and_told_whose_content_is_wanted() -> None:
    with fleet("", "") as it:
        assert read(it.place) == DATA
        assert it.asked() == [1, 0]
        assert it.registries[0].seen[0].query == f"ns={HOST}"


@pytest.mark.parametrize(
    "fault",
    ["status 500 x99", "status 429 x99", "status 404 x99", "status 401 x99", "status 403 x99",
     "hangup 0 x99", "wrong-range x99", "ignore-range x99", "body nonsense x99"],
)  # fmt: skip
def test_a_range_comes_from_the_next_endpoint(fault: str) -> None:
    with fleet(f"GET /blobs/ {fault}", "") as it:
        for _ in range(5):
            assert read(it.place, 1000, 5000) == DATA[1000:6000]
        first, second = it.asked()
        assert (first <= 2, second) == (True, 5)  # a mirror that fails is left alone


def test_failover_in_the_middle_of_a_range() -> None:
    with fleet("GET /blobs/ hangup 70000", "GET /blobs/ hangup 90000", "") as it:
        with it.place.open_blob(BLOB, offset=500, length=600_000) as stream:
            assert stream.readall() == DATA[500:600_500]
            assert stream.source == it.registries[2].host
        ranges = [registry.seen[-1].headers["Range"] for registry in it.registries]
        assert ranges == ["bytes=500-600499", "bytes=70500-600499", "bytes=160500-600499"]
        assert it.states() == ["resting", "resting", "healthy"]


def test_a_whole_blob_is_verified_whoever_gave_its_parts() -> None:
    with fleet("GET /blobs/ hangup 70000", "") as it:
        assert read(it.place) == DATA


def test_an_endpoint_that_nobody_listens_at() -> None:
    with fleet("", "") as it:
        it.registries[0].__exit__(None, None, None)
        assert read(it.place, 0, 10) == DATA[:10]
        assert it.states() == ["resting", "healthy"]


def test_a_reader_that_finds_wrong_bytes_gets_the_next_endpoint() -> None:
    with fleet("GET /blobs/ flip 5 x9", "") as it:
        with it.place.open_blob(BLOB, offset=0, length=100) as stream:
            assert stream.readall() != DATA[:100]
            assert stream.distrust()
        assert read(it.place, 0, 100) == DATA[:100]
        assert read(it.place, 200, 100) == DATA[200:300]
        assert it.asked() == [1, 2]
        assert it.states() == ["healthy", "healthy"]  # of other blobs it may well be asked


def test_wrong_bytes_of_all_endpoints_are_an_error_but_not_for_ever() -> None:
    with fleet("GET /blobs/ flip 5", "GET /blobs/ flip 5") as it:
        for more in (True, False):
            with it.place.open_blob(BLOB, offset=0, length=100) as stream:
                assert stream.readall() != DATA[:100]
                assert stream.distrust() is more
        assert read(it.place, 0, 100) == DATA[:100]


def test_an_endpoint_with_wrong_bytes_is_not_asked_because_the_other_rests() -> None:
    with fleet("GET /blobs/ flip 5 x9", "GET /blobs/ status 500 x9") as it:
        with it.place.open_blob(BLOB, offset=0, length=100) as stream:
            stream.readall()
            stream.distrust()
        with pytest.raises(TransportError):
            read(it.place, 0, 100)
        assert it.asked()[0] == 1


def test_a_small_blob_with_wrong_bytes_is_read_from_the_next() -> None:
    with fleet("GET /blobs/ flip 5 x9", "") as it:
        assert it.place.read_blob(BLOB, len(DATA)) == DATA
    with fleet("GET /blobs/ flip 5 x9", "GET /blobs/ flip 5 x9") as it:
        with pytest.raises(DigestError):
            it.place.read_blob(BLOB, len(DATA))
        assert it.asked() == [1, 1]


def test_a_mirror_gives_another_manifest_than_asked_for() -> None:
    digest = sha256_digest(MANIFEST)
    with fleet("GET /manifests/ body {}", "") as it:
        it.registries[1].manifests[digest] = (OCI_MANIFEST, MANIFEST)
        assert it.place.get_manifest(digest)[1] == MANIFEST


def test_capabilities() -> None:
    digest = sha256_digest(MANIFEST)
    with ScriptedRegistry() as blobs, ScriptedRegistry() as names, ScriptedRegistry() as server:
        for registry in (blobs, names, server):
            registry.add_blob(DATA)
            registry.manifests.update(dict.fromkeys((digest, "1"), (OCI_MANIFEST, MANIFEST)))
        endpoints = [
            Endpoint("http", blobs.host, capabilities=frozenset({PULL})),
            Endpoint("http", names.host, capabilities=frozenset({RESOLVE})),
            Endpoint("http", server.host),
        ]
        reference = parse_reference(f"docker://{HOST}/a/b:1")
        with open_endpoints(reference, endpoints, OPTIONS, KnownEndpoints()) as place:
            place.get_manifest()
            place.get_manifest(digest)
            assert read(place) == DATA
        assert blobs.asked() == [
            f"GET /v2/a/b/manifests/{digest}",
            f"GET /v2/a/b/blobs/{BLOB.digest}",
        ]
        assert names.asked() == ["GET /v2/a/b/manifests/1"]
        assert server.asked() == []


def test_nobody_who_may_resolve_tags() -> None:
    """As with containerd: what is named by digest can be read, and nothing is attached to it."""
    with ScriptedRegistry() as registry:
        registry.manifests[sha256_digest(MANIFEST)] = (OCI_MANIFEST, MANIFEST)
        endpoint = Endpoint("http", registry.host, capabilities=frozenset({PULL}))
        reference = parse_reference(f"docker://{HOST}/a/b:1")
        with open_endpoints(reference, [endpoint], OPTIONS, KnownEndpoints()) as place:
            with pytest.raises(UsageError, match="tags") as caught:
                place.get_manifest()
            assert '"resolve" is missing' in (caught.value.hint or "")
            assert place.get_manifest(sha256_digest(MANIFEST))[1] == MANIFEST
            assert place.referrers(sha256_digest(MANIFEST), "a/b") == []


def test_nobody_may_be_asked() -> None:
    push = Endpoint("http", HOST, capabilities=frozenset({"push"}))
    with pytest.raises(UsageError, match="no endpoint"):
        open_endpoints(parse_reference(f"{HOST}/a"), [push], OPTIONS, KnownEndpoints())


def test_the_registry_knows_what_there_is_not() -> None:
    with fleet("* /v2/ status 500 x99", "") as it:
        with pytest.raises(NotFoundError):
            it.place.get_manifest("1")
        other = describe(b"other", OCI_LAYER)
        assert not it.place.has_blob(other)
        assert it.place.has_blob(BLOB)


def test_a_mirror_does_not_know_what_there_is_not() -> None:
    """It lacks the blob, and the registry is down for a moment: that is worth another attempt."""
    with fleet("GET /blobs/ status 404 x99", "GET /blobs/ status 500 x1") as it:
        assert read(it.place, 0, 10) == DATA[:10]
        assert it.asked() == [1, 2]


def test_an_endpoint_is_probed_after_its_rest() -> None:
    class Clock:
        now = 1000.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    with fleet("GET /blobs/ status 503 x2", "") as it:
        known = KnownEndpoints(clock=clock)
        endpoints = [Endpoint("http", registry.host) for registry in it.registries]
        reference = parse_reference(f"{HOST}/a/b")
        with open_endpoints(reference, endpoints, OPTIONS, known) as place:

            def asked_after(seconds: float) -> list[int]:
                clock.now += seconds
                assert read(place, 0, 10) == DATA[:10]
                return it.asked()

            assert asked_after(0) == [1, 1]
            assert asked_after(0.9) == [1, 2]
            assert asked_after(0.2) == [2, 3]  # one finds out, in vain
            assert asked_after(1.5) == [2, 4]  # so it rests twice as long
            assert asked_after(0.6) == [3, 4]
            assert asked_after(0) == [4, 4]


def test_a_wish_to_be_left_alone_is_kept_whoever_else_fails() -> None:
    with fleet("GET /blobs/ status 429 Retry-After=50 x9", "GET /blobs/ status 500 x1") as it:
        assert read(it.place, 0, 10) == DATA[:10]
        assert read(it.place, 0, 10) == DATA[:10]
        assert it.asked() == [1, 3]
    with fleet("GET /blobs/ status 429 Retry-After=70 x9") as it:
        for _ in range(3):
            with pytest.raises(TransportError) as caught:
                read(it.place)
            assert LONGEST_S < caught.value.retry_after <= 70
        assert it.asked() == [1]


def test_retries_have_a_budget() -> None:
    with fleet("GET /blobs/ status 500 x999", options=replace(OPTIONS, retry_base=0.001)) as it:
        for _ in range(20):
            with pytest.raises(TransportError):
                read(it.place)
        assert 20 + 10 <= it.asked()[0] <= 20 + 10 + 2  # of each ten requests one is earned


def test_what_breaks_after_progress_costs_no_budget() -> None:
    script = "\n".join(["GET /blobs/ hangup 30000"] * 30)
    with fleet(script) as it:
        assert read(it.place) == DATA
        assert it.registries[0].unused() == []


def test_what_breaks_everywhere_has_an_end_though_all_endpoints_answer_others() -> None:
    def answer(state: str, endpoint: Endpoint, _: str) -> None:
        if state == "rests":
            known.of(endpoint).answered(0.01)  # another blob was read

    known = KnownEndpoints(answer)
    script = "GET /blobs/ hangup 0 x99"
    with fleet(script, script, known=known) as it:
        with pytest.raises(TransportError):
            read(it.place)
        assert sum(it.asked()) == 2 * (1 + OPTIONS.retries)


SLOW = "GET /blobs/ slow 3 x999"


def warm(it: Fleet, count: int = FEWEST_SAMPLES + 1) -> None:
    """Let the first endpoint answer soon, often enough to know what late is."""
    for _ in range(count):
        assert read(it.place, 0, 10) == DATA[:10]


def test_a_second_endpoint_is_asked_when_the_first_is_late() -> None:
    with fleet("", "", options=replace(OPTIONS, hedge_share=0.1)) as it:
        warm(it)
        first, second = it.asked()  # a busy machine may have been late before
        it.registries[0].script(SLOW)
        with it.place.open_blob(BLOB, offset=7, length=1000) as stream:
            assert stream.readall() == DATA[7:1007]
            assert stream.source == it.registries[1].host
        assert it.asked() == [first + 1, second + 1]
        assert [d["hedges"] for d in it.known.documents()] == [0, second + 1]
        assert it.states() == ["healthy", "healthy"]  # who lost has not failed
        threads = [t for t in threading.enumerate() if t.name == "race"]
        for thread in threads:
            thread.join(2.0)
        assert not any(thread.is_alive() for thread in threads)  # it was cancelled


def test_hedged_requests_are_a_share_of_all() -> None:
    with fleet("", "", options=replace(OPTIONS, hedge_share=0.1)) as it:
        warm(it, 30)
        hedged = it.asked()[1]
        assert hedged <= 3
        it.registries[0].script("GET /blobs/ slow 0.05 x999")
        warm(it, 30)
        assert it.asked()[1] <= 6
        assert it.asked()[0] == 60


def test_no_share_is_no_hedge() -> None:
    with fleet("", "", options=replace(OPTIONS, hedge_share=0)) as it:
        warm(it)
        it.registries[0].script("GET /blobs/ slow 0.2 x3")
        warm(it, 3)
        assert it.asked()[1] == 0


def test_a_late_endpoint_that_wins_after_all() -> None:
    with fleet("", "", options=replace(OPTIONS, hedge_share=0.2)) as it:
        warm(it)
        it.registries[0].script("GET /blobs/ slow 1")
        it.registries[1].script("GET /blobs/ status 500")
        assert read(it.place, 0, 10) == DATA[:10]
        deadline = time.monotonic() + PATIENCE_S
        while it.states() != ["healthy", "resting"]:  # the other answer is read beside ours
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_both_of_two_fail() -> None:
    with fleet("", "", options=replace(OPTIONS, hedge_share=0.2, retries=0)) as it:
        warm(it)
        before = it.asked()
        it.registries[0].script("GET /blobs/ status 500 x9")
        it.registries[1].script("GET /blobs/ status 500 x9")
        with pytest.raises(TransportError):
            read(it.place, 0, 10)
        assert [n - b for n, b in zip(it.asked(), before, strict=True)] == [1, 1]


def hosts(path: Path, host: str, text: str) -> AccessOptions:
    """Return options with a ``hosts.toml`` for `host`."""
    directory = path / "certs.d" / host.replace(":", "_", 1)
    if ":" in host:
        directory = directory.with_name(directory.name + "_")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hosts.toml").write_text(text)
    return replace(OPTIONS, hosts_dirs=(path / "certs.d",))


def test_hosts_toml_from_the_reference_to_the_request(tmp_path: Path) -> None:
    with ScriptedRegistry() as mirror, ScriptedRegistry() as server:
        mirror.add_blob(DATA)
        options = hosts(
            tmp_path,
            server.host,
            f"""
            [host."http://{mirror.host}/v2/proxy"]
              capabilities = ["pull"]
              override_path = true
              [host."http://{mirror.host}/v2/proxy".header]
                x-tenant = "blue"
            """,
        )
        with open_source(parse_reference(f"{server.host}/a/b"), options) as place:
            assert read(place, 0, 10) == DATA[:10]
        (seen,) = mirror.seen
        assert seen.path == f"/v2/proxy/a/b/blobs/{BLOB.digest}"
        assert seen.query == f"ns={server.host.replace(':', '%3A')}"
        assert seen.headers["X-Tenant"] == "blue"
        assert server.seen == []


def test_only_the_server_is_written_and_asked_by_who_wants_no_mirror(tmp_path: Path) -> None:
    with ScriptedRegistry() as mirror, ScriptedRegistry() as server:
        server.add_blob(DATA)
        options = hosts(tmp_path, "r.io", f'server = "http://{server.host}"\n'
                        f'[host."http://{mirror.host}"]')  # fmt: skip
        with open_destination(parse_reference("r.io/a/b"), options) as place:
            place.put_manifest(MANIFEST, OCI_MANIFEST, "1")
        with open_source(parse_reference("r.io/a/b"), replace(options, mirrors=False)) as place:
            assert read(place, 0, 10) == DATA[:10]
        assert mirror.seen == []
        assert "1" in server.manifests
        options = hosts(tmp_path, "r.io", 'server = "https://r.io"\ncapabilities = ["pull"]')
        with pytest.raises(UsageError, match="written"):
            open_destination(parse_reference("r.io/a/b"), options)


def test_headers_and_credentials_stay_with_their_endpoint(tmp_path: Path) -> None:
    """A mirror redirects to a store elsewhere, and gets nothing that is the server's."""
    with ScriptedRegistry(redirect=True) as mirror, ScriptedRegistry(auth="basic") as server:
        for registry in (mirror, server):
            registry.add_blob(DATA)
        mirror.script("GET /blobs/ status 401 'WWW-Authenticate=Basic realm=\"x\"'")
        options = hosts(tmp_path, server.host, f"""
            [host."http://{mirror.host}".header]
              X-Tenant = "blue"
            """)  # fmt: skip
        login = tmp_path / "login"
        login.mkdir()
        host, port = server.host.split(":")
        (login / f"{host}_{port}_.json").write_text(
            f'{{"username": "{USERNAME}", "password": "{PASSWORD}"}}'
        )
        options = replace(options, credentials_dir=login)
        with open_source(parse_reference(f"{server.host}/a/b"), options) as place:
            assert read(place, 0, 10) == DATA[:10]  # from the server, with its login
        assert [seen.headers["Authorization"] for seen in mirror.seen] == [None]
        assert server.seen[-1].headers["Authorization"]
        with open_source(parse_reference(f"{server.host}/a/b"), options) as place:
            assert read(place, 0, 10) == DATA[:10]
        stored = [seen for seen in mirror.seen if seen.path.startswith("/store/")]
        assert [seen.headers["X-Tenant"] for seen in stored] == [None]
        assert all("ns=" not in seen.query for seen in stored)


def test_a_token_in_a_header_is_not_shown(tmp_path: Path) -> None:
    class Telling(QuietHandler):
        def do_GET(self) -> None:
            word = self.headers["Authorization"].split()[1]
            send(self, refusal(403, "DENIED", f"wrong: {word}"))

    with serving(HTTPServer(("127.0.0.1", 0), Telling)) as server:
        host = f"127.0.0.1:{server.server_port}"
        options = hosts(tmp_path, host, '''
            [header]
              Authorization = "Bearer hunter2secret"
            ''')  # fmt: skip
        source = open_source(parse_reference(f"{host}/a/b"), options)
        with source as place, pytest.raises(SourceError) as caught:
            read(place)
    assert "wrong: ***" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_tls_of_an_endpoint(tmp_path: Path) -> None:
    files = make_certificate(tmp_path / "tls")
    with ScriptedRegistry(tls=files) as mirror, ScriptedRegistry() as server:
        mirror.add_blob(DATA)

        def source(settings: str) -> Repository:
            text = f'[host."https://{mirror.host}"]\n{settings}'
            options = replace(hosts(tmp_path, server.host, text), retries=0)
            return open_source(parse_reference(f"{server.host}/a/b"), options)

        for settings in (f'ca = "{files[0]}"', "skip_verify = true"):
            with source(settings) as place:
                assert read(place, 0, 10) == DATA[:10]
        with source("") as place, pytest.raises(SourceError):
            read(place, 0, 10)
        with pytest.raises(UsageError, match="certificates"):
            source('ca = "missing.pem"')


def test_a_client_shows_its_certificate_and_a_renewed_one(tmp_path: Path) -> None:
    files = make_certificate(tmp_path / "tls")
    mine = make_certificate(tmp_path / "tls", "client")
    with ScriptedRegistry(tls=files, clients=mine[0]) as registry:
        registry.add_blob(DATA)
        other = make_certificate(tmp_path / "tls", "other")
        for path, to in zip(other, ("shown.pem", "shown.key"), strict=True):
            (tmp_path / to).write_bytes(path.read_bytes())
        options = hosts(tmp_path, "r.io", f"""
            server = "https://{registry.host}"
            ca = "{files[0]}"
            client = [["{tmp_path}/shown.pem", "{tmp_path}/shown.key"]]
            """)  # fmt: skip
        with open_source(parse_reference("r.io/a/b"), replace(options, retries=0)) as place:
            with pytest.raises(SourceError):
                read(place, 0, 10)
            for path, to in zip(mine, ("shown.pem", "shown.key"), strict=True):
                (tmp_path / to).write_bytes(path.read_bytes())
            assert read(place, 0, 10) == DATA[:10]


SUBJECT = "sha256:" + "5" * 64
KIND = "application/vnd.example.kind"


def refer(registry: ScriptedRegistry) -> str:
    """Have a manifest that refers to `SUBJECT`; return its digest."""
    layer = {"mediaType": "application/octet-stream", "digest": BLOB.digest, "size": BLOB.size}
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": KIND,
        "config": layer,
        "layers": [],
        "subject": {"mediaType": OCI_MANIFEST, "digest": SUBJECT, "size": 7},
    }
    data = json.dumps(document).encode()
    digest = describe(data, OCI_MANIFEST).digest
    registry.manifests[digest] = (OCI_MANIFEST, data)
    return digest


def test_what_refers_to_a_manifest_comes_from_who_knows_it() -> None:
    with fleet("GET /referrers/ status 500 x9", "GET /referrers/ status 404 x9", "") as it:
        digest = refer(it.registries[2])
        assert [found.digest for found in it.place.referrers(SUBJECT, KIND)] == [digest]
        assert it.place.referrers("sha256:" + "6" * 64, KIND) == []
        assert it.place.referrers(SUBJECT, "application/vnd.example.other") == []


def test_nothing_refers_to_a_manifest_only_if_the_registry_says_so() -> None:
    options = replace(OPTIONS, retries=0)
    with (
        fleet("", "GET /referrers/ status 500 x99", options=options) as it,
        pytest.raises(TransportError),
    ):
        it.place.referrers(SUBJECT, KIND)

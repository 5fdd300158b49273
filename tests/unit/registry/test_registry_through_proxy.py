# SPDX-License-Identifier: Apache-2.0
"""Registries that are reached through a proxy, under names that nobody else knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from firstread.errors import TransportError, UsageError
from firstread.oci.model import OCI_LAYER, describe
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Repository
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.testing.certificates import make_certificate
from firstread.testing.proxy import Proxy
from firstread.testing.scripted import ScriptedRegistry

OPTIONS = AccessOptions(retries=0, read_timeout=20, connect_timeout=2)
DATA = bytes(range(256)) * 40
BLOB = describe(DATA, OCI_LAYER)
PLAIN, TLS = "plain.invalid", "tls.invalid"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def read(host: str, options: AccessOptions) -> bytes:
    place: Repository
    with open_source(parse_reference(f"{host}/a/b"), options) as place:
        return place.read_blob(BLOB, len(DATA))


@pytest.mark.parametrize("login", ["", "me:se cret"])
def test_http_is_forwarded(monkeypatch: pytest.MonkeyPatch, login: str) -> None:
    with (
        ScriptedRegistry() as registry,
        Proxy({f"{PLAIN}:80": registry.host}, login=login) as proxy,
    ):
        registry.add_blob(DATA)
        shown = login.replace(" ", "%20") + "@" if login else ""
        monkeypatch.setenv("HTTP_PROXY", f"http://{shown}{proxy.host}")
        assert read(PLAIN, replace(OPTIONS, plain_http=True)) == DATA
        assert proxy.seen == [f"GET http://{PLAIN}/v2/a/b/blobs/{BLOB.digest}"]
        assert registry.seen[0].headers["Proxy-Authorization"] is None


@pytest.mark.parametrize("login", ["", "me:secret"])
def test_https_is_tunnelled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, login: str) -> None:
    files = make_certificate(tmp_path, "server", TLS)
    with (
        ScriptedRegistry(tls=files) as registry,
        Proxy({f"{TLS}:443": registry.host}, login=login) as proxy,
    ):
        registry.add_blob(DATA)
        monkeypatch.setenv("HTTPS_PROXY", f"http://{login and login + '@'}{proxy.host}")
        assert read(TLS, replace(OPTIONS, ca_file=files[0])) == DATA
        assert proxy.seen == [f"CONNECT {TLS}:443"]  # and nothing of what is asked there


def test_a_proxy_that_speaks_tls_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = make_certificate(tmp_path, "server", TLS)
    with (
        ScriptedRegistry(tls=files) as registry,
        Proxy({f"{TLS}:443": registry.host}, tls=files) as proxy,
    ):
        registry.add_blob(DATA)
        monkeypatch.setenv("HTTPS_PROXY", f"https://{proxy.host}")
        assert read(TLS, replace(OPTIONS, ca_file=files[0])) == DATA
        assert proxy.seen == [f"CONNECT {TLS}:443"]


def test_a_redirect_goes_through_the_proxy_of_its_own_scheme_and_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ScriptedRegistry() as registry, ScriptedRegistry() as store:
        store.add_blob(DATA)
        registry.add_blob(DATA)
        target = f"http://{store.host}/store/{BLOB.digest}?signature=s"
        registry.script(f"GET /blobs/ status 307 'Location={target}'")
        with Proxy({f"{PLAIN}:80": registry.host}) as proxy:
            monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
            assert read(PLAIN, replace(OPTIONS, plain_http=True)) == DATA
            assert len(proxy.seen) == 1  # the store is on the loopback address
            assert store.asked() == [f"GET /store/{BLOB.digest}"]


def test_no_proxy_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy({}) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        monkeypatch.setenv("NO_PROXY", f"other.example,{PLAIN}")
        with pytest.raises(TransportError, match="name is not known"):
            read(PLAIN, replace(OPTIONS, plain_http=True))
        assert proxy.seen == []


@pytest.mark.parametrize("how", ["dead", "wrong login", "no such host"])
def test_a_proxy_that_fails_is_a_failure_that_may_pass(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with Proxy({}, login="me:right" if how == "wrong login" else "") as proxy:
        monkeypatch.setenv("https_proxy", f"http://me:secret-word@{proxy.host}")
        if how == "dead":
            proxy.__exit__(None, None, None)
        with pytest.raises(TransportError, match="proxy") as caught:
            read(TLS, OPTIONS)
        assert "secret-word" not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize("value", ["ftp://proxy", "http://", "http://proxy:port"])
def test_a_proxy_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("https_proxy", value)
    with pytest.raises(UsageError, match="proxy"):
        read(TLS, OPTIONS)

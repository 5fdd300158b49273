# SPDX-License-Identifier: Apache-2.0
"""Addresses, proxies, waits, and what failed exchanges mean."""

from __future__ import annotations

import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from firstread.errors import SourceError, TransportError, UsageError
from firstread.registry.backoff import pause_s
from firstread.registry.endpoint import default_endpoint, follow, is_loopback, origin, shown
from firstread.registry.faults import from_exception, retry_after
from firstread.registry.options import AccessOptions

OPTIONS = AccessOptions()


@pytest.mark.parametrize(
    ("host", "options", "url"),
    [
        ("quay.io", OPTIONS, "https://quay.io/"),
        ("docker.io", OPTIONS, "https://registry-1.docker.io/"),
        ("quay.io", replace(OPTIONS, plain_http=True), "http://quay.io/"),
        ("localhost:5000", OPTIONS, "http://localhost:5000/"),
        ("localhost:5000", replace(OPTIONS, insecure_tls=True), "https://localhost:5000/"),
        ("[::1]:5000", OPTIONS, "http://[::1]:5000/"),
        ("10.0.0.1:5000", OPTIONS, "https://10.0.0.1:5000/"),
    ],
)
def test_where_a_registry_is(host: str, options: AccessOptions, url: str) -> None:
    assert default_endpoint(host, options).base == url


def test_loopback() -> None:
    here = [
        "localhost",
        "localhost:80",
        "a.localhost",
        "127.0.0.1",
        "127.9.9.9:1",
        "[::1]",
        "[::1]:2",
    ]
    there = ["localhost.example", "128.0.0.1", "[::2]", "example.com", "127.0.0.1.example.com"]
    assert [host for host in here + there if is_loopback(host)] == here


@pytest.mark.parametrize(
    ("url", "target", "result"),
    [
        ("https://r.io/v2/a", "/v2/b?x=1", "https://r.io/v2/b?x=1"),
        ("https://r.io/v2/a", "https://s.io/b", "https://s.io/b"),
        ("https://r.io/v2/a", "http://r.io/b", "https://r.io/b"),
        ("https://r.io/v2/a", "http://s.io/b", "http://s.io/b"),
        ("http://r.io/v2/a", "https://r.io/b", "https://r.io/b"),
        ("http://r.io:5000/v2/a", "//s.io/b", "http://s.io/b"),
    ],
)
def test_where_a_location_leads(url: str, target: str, result: str) -> None:
    assert follow(url, target) == result


def test_the_same_place() -> None:
    assert origin("https://r.io/a") == origin("https://R.io:443/b?c")
    assert origin("https://r.io/") != origin("http://r.io/")
    assert origin("http://r.io/") != origin("http://r.io:5000/")
    for url in ("ftp://r.io/", "ftp://r.io:80/", "r.io", "http://r.io:x/", "http://r.io:70000/"):
        with pytest.raises(SourceError):
            origin(url)


def test_a_password_in_an_address_is_not_shown() -> None:
    assert shown("https://me:secret@r.io:5000/v2/?signature=secret") == "r.io:5000"


@pytest.mark.parametrize(
    "wrong",
    [
        {"retries": -1},
        {"connect_timeout": 0},
        {"read_timeout": -1},
        {"retry_base": 0},
    ],
)
def test_options_that_make_no_sense(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        replace(OPTIONS, **wrong)  # type: ignore[arg-type]


def test_waits_double_with_jitter_up_to_the_limit() -> None:
    waits = [pause_s(attempt, 1, 30) or 0 for attempt in range(20)]
    assert all(2**n / 2 <= wait <= 2**n for n, wait in enumerate(waits[:5]))
    assert all(a < b * 2.001 for a, b in pairwise(waits))
    assert max(waits) <= 30
    assert pause_s(10**9, 1, 30) is not None
    assert pause_s(0, 0.1, 30, asked=7) == 7
    assert pause_s(0, 0.1, 30, asked=31) is None


def test_how_long_a_server_asks_to_wait() -> None:
    assert retry_after({}) == 0
    assert retry_after({"Retry-After": " 12 "}) == 12
    assert retry_after({"Retry-After": "soon"}) == 0
    assert retry_after({"Retry-After": "-5"}) == 0
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 95 < retry_after({"Retry-After": date}) <= 100
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0


POOL = urllib3.HTTPConnectionPool("r.io")
CONNECTION = urllib3.connection.HTTPConnection("r.io")


@pytest.mark.parametrize(
    ("exc", "retryable", "said"),
    [
        (NewConnectionError(CONNECTION, "refused"), True, "cannot be reached"),
        (NameResolutionError("r.io", CONNECTION, OSError()), True, "name is not known"),  # type: ignore[arg-type]
        (ConnectTimeoutError(), True, "does not answer"),
        (ReadTimeoutError(POOL, "/?secret", "slow"), True, "stopped answering"),
        (ProtocolError("secret"), True, "hung up"),
        (ProxyError("bad", OSError()), True, "proxy"),
        (LocationParseError("x?secret"), False, "not valid"),
        (HTTPError("secret"), True, "failed"),
        (SSLError(ssl.SSLEOFError(8, "EOF")), True, "TLS connection broke"),
        (SSLError("secret"), True, "TLS connection broke"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_exception_means(exc: HTTPError, retryable: bool, said: str) -> None:
    error = from_exception(exc, "https://r.io/v2/?secret")
    assert error.retryable == retryable
    assert isinstance(error, TransportError) == retryable
    assert said in str(error)
    assert "registry r.io" in str(error)
    assert "secret" not in repr(error.to_dict())

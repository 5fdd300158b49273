# SPDX-License-Identifier: Apache-2.0
"""Which proxy an environment names, by the rules of golang.org/x/net/http/httpproxy."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from firstread.registry.proxies import Proxies

PROXY = "http://proxy.example:3128"


def direct(no_proxy: str, host: str, scheme: str = "https") -> bool:
    proxies = Proxies.of_environment({"ALL_PROXY": PROXY, "NO_PROXY": no_proxy})
    return proxies.of(f"{scheme}://{host}/v2/") == ""


@pytest.mark.parametrize(
    ("no_proxy", "host", "expected"),
    [
        ("", "r.example", False),
        ("*", "r.example", True),
        ("other, *", "10.1.2.3:5000", True),
        ("r.example", "r.example", True),
        ("r.example", "sub.r.example", True),
        ("r.example", "xr.example", False),
        (" R.Example ", "r.EXAMPLE:5000", True),
        (".example", "r.example", True),
        (".r.example", "r.example", False),
        ("*.example", "a.r.example", True),
        ("*.r.example", "r.example", False),
        ("example", "r.example", True),
        ("*r.example", "r.example", False),
        ("*r.example", "xr.example", False),
        ("10.0.0.0/255.0.0.0", "10.1.2.3", False),
        ("r.example:5000", "r.example:5000", True),
        ("r.example:5000", "r.example", False),
        ("r.example:443", "r.example", True),
        (".example:5000", "r.example:5000", True),
        ("10.217.0.0/16", "10.217.3.4:5000", True),
        ("10.217.0.0/16", "10.218.3.4", False),
        ("10.217.0.1/16", "10.217.3.4", True),
        ("10.0.0.0/8", "registry-of-10.example", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:5000", "10.1.2.3:5000", True),
        ("10.1.2.3:5000", "10.1.2.3", False),
        ("10.1.2", "10.1.2.3", False),
        ("10.1.2.3", "[::ffff:10.1.2.3]", True),
        ("fd00::/8", "[fd00::17]:5000", True),
        ("fd00::/8", "[fe80::17]", False),
        ("fd00::17", "[fd00:0:0::17]", True),
        ("[fd00::17]", "[fd00::17]", True),
        ("[fd00::17]:5000", "[fd00::17]:5000", True),
        ("[fd00::17]:5000", "[fd00::17]", False),
        ("", "localhost:5000", True),
        ("", "127.3.2.1", True),
        ("", "[::1]:5000", True),
        ("10.0.0.0/99,:5000,.,*.,,/", "r.example", False),
    ],
)
def test_requests_that_bypass_the_proxy(no_proxy: str, host: str, expected: bool) -> None:
    assert direct(no_proxy, host) == expected


def test_the_port_of_the_scheme_counts() -> None:
    assert direct("r.example:80", "r.example", "http")
    assert not direct("r.example:80", "r.example", "https")


@pytest.mark.parametrize("spelling", [str.lower, str.upper])
def test_each_scheme_has_its_own(spelling: Callable[[str], str]) -> None:
    environment = {spelling("https_proxy"): PROXY}
    proxies = Proxies.of_environment(environment)
    assert proxies.of("https://r.example/") == PROXY
    assert proxies.of("http://r.example/") == ""
    environment[spelling("all_proxy")] = "other.example:80"
    proxies = Proxies.of_environment(environment)
    assert proxies.of("https://r.example/") == PROXY
    assert proxies.of("http://r.example/") == "http://other.example:80"


def test_capitals_go_first() -> None:
    environment = {"HTTPS_PROXY": PROXY, "https_proxy": "http://small.example"}
    environment |= {"NO_PROXY": "a.example", "no_proxy": "b.example"}
    proxies = Proxies.of_environment(environment)
    assert proxies.of("https://b.example/") == PROXY
    assert proxies.of("https://a.example/") == ""


def test_a_header_of_a_request_is_no_proxy() -> None:
    """Of a CGI program, which gets the header "Proxy" as HTTP_PROXY."""
    cgi = {"REQUEST_METHOD": "GET", "HTTP_PROXY": "http://forged.example"}
    assert Proxies.of_environment(cgi).of("http://r.example/") == ""
    cgi["http_proxy"] = PROXY
    assert Proxies.of_environment(cgi).of("http://r.example/") == PROXY

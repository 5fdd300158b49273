# SPDX-License-Identifier: Apache-2.0
"""``hosts.toml`` as containerd reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firstread.errors import NodeError, UsageError
from firstread.registry.hosts import (
    CAPABILITIES,
    MAX_HOSTS_BYTES,
    Endpoint,
    directories,
    parse_hosts,
    read_hosts,
)

HERE = Path("/etc/certs.d/r.io")
DEFAULT = Endpoint("https", "r.io")


def parse(text: str, host: str = "r.io") -> tuple[Endpoint, ...]:
    return parse_hosts(text.encode(), HERE, host, DEFAULT)


def test_mirrors_in_order_and_the_server_last() -> None:
    found = parse(
        """
        server = "https://r.io"
        [host."https://zebra.example"]
          capabilities = ["pull", "Resolve"]
        [host."http://ant.example:5000"]
          capabilities = ["pull"]
        """
    )
    assert [endpoint.base for endpoint in found] == [
        "https://zebra.example/",
        "http://ant.example:5000/",
        "https://r.io/",
    ]
    assert [endpoint.capabilities for endpoint in found] == [
        {"pull", "resolve"},
        {"pull"},
        CAPABILITIES,
    ]
    assert [endpoint.namespace for endpoint in found] == ["r.io", "r.io", ""]


@pytest.mark.parametrize(
    ("url", "override", "base", "path"),
    [
        ("https://m.io", False, "https://m.io/", "/v2"),
        ("m.io", False, "https://m.io/", "/v2"),
        ("m.io:5000/", False, "https://m.io:5000/", "/v2"),
        ("https://m.io/v2", False, "https://m.io/", "/v2"),
        ("https://m.io/a/b/", False, "https://m.io/", "/a/b/v2"),
        ("https://m.io/a/b/", True, "https://m.io/", "/a/b"),
        ("https://m.io/a//../b", True, "https://m.io/", "/b"),
        ("https://m.io", True, "https://m.io/", ""),
        ("https://user:secret@m.io", False, "https://m.io/", "/v2"),
        ("http://[fd00::1]:5000", False, "http://[fd00::1]:5000/", "/v2"),
    ],
)
def test_addresses(url: str, override: bool, base: str, path: str) -> None:
    text = f'[host."{url}"]\noverride_path = {str(override).lower()}'
    assert (parse(text)[0].base, parse(text)[0].path) == (base, path)


def test_without_a_server_the_registry_itself_is_last_with_the_settings_at_the_top() -> None:
    found = parse('skip_verify = true\ncapabilities = ["pull"]\n[host."m.io"]')
    assert found[-1].base == DEFAULT.base
    assert found[-1].skip_verify
    assert found[-1].capabilities == CAPABILITIES  # as containerd has it
    assert not found[0].skip_verify


def test_docker_hub_is_its_own_server() -> None:
    hub = Endpoint("https", "registry-1.docker.io")
    text = b'server = "https://registry-1.docker.io"\n[host."m.io"]'
    found = parse_hosts(text, HERE, "docker.io", hub)
    assert [endpoint.namespace for endpoint in found] == ["docker.io", ""]


def test_certificates_headers_and_times() -> None:
    (mirror, server) = parse(
        """
        ca = "/etc/ca.pem"
        [host."m.io"]
          ca = ["a.pem", "/b.pem"]
          client = ["both.pem", ["cert.pem", "/key.pem"]]
          dial_timeout = "1m0.5s"
        [host."m.io".header]
          x-one = "1"
          X-Many = ["a", "b"]
        """
    )
    assert mirror.ca == (HERE / "a.pem", Path("/b.pem"))
    assert mirror.clients == ((HERE / "both.pem", None), (HERE / "cert.pem", Path("/key.pem")))
    assert mirror.headers == (("x-one", "1"), ("X-Many", "a, b"))
    assert mirror.dial_timeout == 60.5
    assert server.ca == (Path("/etc/ca.pem"),)
    assert parse('[host."m.io"]\nclient = "a.pem"')[0].clients == ((HERE / "a.pem", None),)


def test_a_header_may_be_a_secret() -> None:
    text = '[host."m.io".header]\nauthorization = "Basic c2VjcmV0"'
    assert "c2VjcmV0" not in repr(parse(text))
    with pytest.raises(UsageError) as caught:
        parse('[host."m.io".header]\nauthorization = "c2VjcmV0\\n"')
    assert "c2VjcmV0" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server = ", "TOML"),
        ("server = 5", "server"),
        ('host = "m.io"', "host"),
        ("[host]\nm = 1", "host"),
        ('[host."https://"]', "address"),
        ('[host."https://m.io:port"]', "address"),
        ('[host."ftp://m.io"]', "address"),
        ('[host."m io"]', "address"),
        ('[host."m.io"]\ncapabilities = ["sing"]', "sing"),
        ('[host."m.io"]\ncapabilities = "pull"', "capabilities"),
        ('[host."m.io"]\nca = 7', "ca"),
        ('[host."m.io"]\nca = [[]]', "ca"),
        ('[host."m.io"]\nca = "a\\u0000"', "ca"),
        ('[host."m.io"]\nclient = 1', "client"),
        ('[host."m.io"]\nclient = [["a"]]', "pair"),
        ('[host."m.io"]\nclient = [["a", "b", "c"]]', "pair"),
        ('[host."m.io"]\nskip_verify = "yes"', "skip_verify"),
        ('[host."m.io"]\noverride_path = 1', "override_path"),
        ('[host."m.io"]\nheader = "x"', "header"),
        ('[host."m.io".header]\n"a b" = "x"', "a b"),
        ('[host."m.io".header]\na = 1', "'a'"),
        ('[host."m.io"]\ndial_timeout = "soon"', "dial_timeout"),
        ('[host."m.io"]\ndial_timeout = 3', "dial_timeout"),
        ('[host."m.io"]\ndial_timeout = "0s"', "dial_timeout"),
    ],
)
def test_invalid_files(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text)


def test_what_containerd_does_not_know_is_ignored() -> None:
    assert parse('future = 1\n[host."m.io"]\nfuture = "x"')[0].host == "m.io"


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("r.io", ["r.io", "_default"]),
        ("r.io:5000", ["r.io_5000_", "r.io:5000", "_default"]),
        ("[::1]:5000", ["[::1]_5000_", "[::1]:5000", "_default"]),
    ],
)
def test_directories(host: str, names: list[str]) -> None:
    assert directories(Path("/c"), host) == [Path("/c") / name for name in names]


def put(directory: Path, text: str) -> None:
    directory.mkdir(parents=True)
    (directory / "hosts.toml").write_text(text)


def test_the_first_directory_that_is_there_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert read_hosts([first, second], "r.io", DEFAULT) == (DEFAULT,)
    put(second / "r.io", '[host."specific.example"]')
    assert read_hosts([first, second], "r.io", DEFAULT)[0].host == "specific.example"
    put(first / "_default", '[host."default.example"]')
    assert read_hosts([first, second], "r.io", DEFAULT)[0].host == "default.example"
    put(first / "r.io_5000_", '[host."port.example"]')
    assert read_hosts([first], "r.io:5000", DEFAULT)[0].host == "port.example"


def test_a_directory_of_certificates_as_docker_has_it(tmp_path: Path) -> None:
    directory = tmp_path / "r.io"
    directory.mkdir()
    for name in ("ca.crt", "me.cert", "me.key", "other.txt"):
        (directory / name).touch()
    (found,) = read_hosts([tmp_path], "r.io", DEFAULT)
    assert found.ca == (directory / "ca.crt",)
    assert found.clients == ((directory / "me.cert", directory / "me.key"),)
    (directory / "me.key").unlink()
    with pytest.raises(UsageError, match=r"me\.key"):
        read_hosts([tmp_path], "r.io", DEFAULT)


def test_errors_name_the_file(tmp_path: Path) -> None:
    put(tmp_path / "r.io", "server = 5")
    with pytest.raises(UsageError, match=str(tmp_path)) as caught:
        read_hosts([tmp_path], "r.io", DEFAULT)
    assert caught.value.hint
    (tmp_path / "r.io/hosts.toml").write_text("#" * (MAX_HOSTS_BYTES + 1))
    with pytest.raises(UsageError, match="larger"):
        read_hosts([tmp_path], "r.io", DEFAULT)
    (tmp_path / "r.io/hosts.toml").unlink()
    (tmp_path / "r.io/hosts.toml").mkdir()
    with pytest.raises(NodeError, match="cannot read"):
        read_hosts([tmp_path], "r.io", DEFAULT)


def test_what_an_endpoint_is_called() -> None:
    names: list[Any] = [Endpoint("https", "m.io").name, Endpoint("http", "m.io:1", "/x/v2").name]
    assert names == ["m.io", "m.io:1/x/v2"]

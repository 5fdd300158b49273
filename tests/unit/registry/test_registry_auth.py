# SPDX-License-Identifier: Apache-2.0
"""Credentials, challenges and tokens, without a network."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from firstread.errors import AuthError, NodeError, UsageError
from firstread.registry.auth import look_up
from firstread.registry.bearer import (
    Authorizer,
    Challenge,
    TokenRequest,
    parse_challenge,
    token_request,
)
from firstread.registry.credentials import Credentials

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of its own, and no credentials from outside."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def find_credentials(*place: Any, **more: Any) -> Credentials | None:
    return look_up(*place, **more).credentials


def pair(username: str, password: str = SECRET) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def write(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def helper(directory: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a credential helper."""
    program = directory / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("quay.io", "quay.io"),
        ("https://quay.io", "quay.io"),
        ("https://quay.io/v2/", "quay.io"),
        ("http://localhost:5000/", "localhost:5000"),
        ("https://quay.io/some/ui/", "quay.io"),
        ("https://user@quay.io/some?ui", "quay.io"),
        ("quay.io/v1/", "quay.io"),
        ("[::1]:5000", "[::1]:5000"),
    ],
)
def test_keys(home: Path, key: str, host: str) -> None:
    write(home / ".docker/config.json", {"auths": {key: {"auth": pair("me")}}})
    assert find_credentials(host) == Credentials("me", SECRET)
    assert find_credentials("other.io") is None


def test_the_first_file_has_precedence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def expect(user: str | None) -> None:
        found = find_credentials("r.io")
        assert (found.username if found else None) == user

    def login(path: str, user: str) -> None:
        write(home / path, {"auths": {"r.io": {"auth": pair(user)}}})

    expect(None)
    login(".config/containers/auth.json", "podman")
    expect("podman")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    login("run/containers/auth.json", "podman-run")
    expect("podman-run")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "explicit.json"))
    login("explicit.json", "explicit")
    expect("explicit")
    login(".docker/config.json", "docker")
    expect("docker")
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "elsewhere"))
    login("elsewhere/config.json", "docker-elsewhere")
    expect("docker-elsewhere")
    login("named.json", "named")
    found = find_credentials("r.io", auth_file=home / "named.json")
    assert found is not None
    assert found.username == "named"


def test_a_part_of_a_registry(home: Path) -> None:
    auths = {"r.io": {"auth": pair("all")}, "r.io/team/app": {"auth": pair("app")}}
    write(home / ".config/containers/auth.json", {"auths": auths})
    users = {
        name: (find_credentials("r.io", name) or Credentials("")).username
        for name in ("team/app", "team/app/x", "team/application", "other")
    }
    assert users == {
        "team/app": "app",
        "team/app/x": "app",
        "team/application": "all",
        "other": "all",
    }


def test_the_kinds_of_entries(home: Path) -> None:
    auths = {
        "plain.io": {"username": "me", "password": SECRET},
        "token.io": {"auth": pair("x", ""), "identitytoken": SECRET},
        "colon.io": {"auth": pair("me", "a:b:c")},
        "padded.io": {"auth": pair("me", "x\0\0")},
        "empty.io": {},
    }
    write(home / ".docker/config.json", {"auths": auths, "HttpHeaders": {"x": "y"}})
    assert find_credentials("plain.io") == Credentials("me", SECRET)
    assert find_credentials("token.io") == Credentials("x", "", SECRET)
    assert find_credentials("colon.io") == Credentials("me", "a:b:c")
    assert find_credentials("padded.io") == Credentials("me", "x")
    assert find_credentials("empty.io") is None


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        lambda text: "\r\n".join(text[i : i + 7] for i in range(0, len(text), 7)) + "\r\n",
        lambda text: text.rstrip("="),
    ],
    ids=["76 columns", "7 columns", "no padding"],
)
def test_base64_as_others_write_it(home: Path, broken: Callable[[str], str]) -> None:
    password = "a long password " * 8 + "!"
    auths = {"r.io": {"auth": broken(pair("me", password))}}
    write(home / ".docker/config.json", {"auths": auths})
    assert find_credentials("r.io") == Credentials("me", password)


@pytest.mark.parametrize("own", ["", None])
def test_no_helper_is_a_decision_for_its_host(
    home: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    helper(home, "broken", "exit 1", monkeypatch)
    document = {
        "auths": {"r.io": {"auth": pair("me")}},
        "credHelpers": {"r.io": own},
        "credsStore": "broken",
    }
    write(home / ".docker/config.json", document)
    assert find_credentials("r.io") == Credentials("me", SECRET)
    with pytest.raises(AuthError, match="docker-credential-broken"):
        find_credentials("other.io")


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_keys_of_a_host_the_plain_one_counts(home: Path, order: int) -> None:
    auths = {"https://r.io/ui": {"auth": pair("page")}, "r.io": {"auth": pair("plain")}}
    write(home / ".docker/config.json", {"auths": dict(list(auths.items())[::order])})
    assert find_credentials("r.io") == Credentials("plain", SECRET)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"auths": 1}',
        '{"auths": {"r.io": {"auth": "%hunter2%"}}}',
        '{"auths": {"r.io": {"auth": "\\u00e9==="}}}',
        "\xff" * 3,
    ],
)
def test_a_damaged_file(home: Path, text: str) -> None:
    path = home / ".docker/config.json"
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        find_credentials("r.io")
    assert str(path) in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_file_has_nothing(home: Path, text: str) -> None:
    """As docker reads it; some tools make one beforehand."""
    path = home / ".docker/config.json"
    path.parent.mkdir()
    path.write_text(text)
    assert find_credentials("r.io") is None


@pytest.mark.parametrize(
    "document",
    [
        {"auths": None, "credHelpers": None, "credsStore": None},
        {"auths": {"r.io": None}, "credHelpers": {"r.io": None}},
        {"auths": {"r.io": dict.fromkeys(("auth", "username", "password", "identitytoken"))}},
    ],
)
def test_null_is_as_good_as_nothing(home: Path, document: object) -> None:
    """As with docker: a file that it can read is no error here."""
    write(home / ".docker/config.json", document)
    assert find_credentials("r.io") is None


def test_keys_in_other_letters(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Go reads them; the keys of a map are names of hosts, and stay."""
    helper(home, "test", """echo '{"USERNAME":"me","secret":"hunter2"}'""", monkeypatch)
    auths = {"r.io": {"Auth": pair("file")}, "R.io": {"auth": pair("other")}}
    write(home / ".docker/config.json", {"Auths": auths, "credhelpers": {"h.io": "test"}})
    assert find_credentials("r.io") == Credentials("file", SECRET)
    assert find_credentials("h.io") == Credentials("me", SECRET)
    write(home / ".docker/config.json", {"CredsStore": "test", "auths": {}})
    assert find_credentials("any.io") == Credentials("me", SECRET)
    directory = home / "credentials"
    write(directory / "r.io.json", {"UserName": "dir", "Password": SECRET})
    assert find_credentials("r.io", directory=directory) == Credentials("dir", SECRET)


def test_a_file_that_is_not_there(home: Path) -> None:
    with pytest.raises(NodeError, match="cannot read"):
        find_credentials("r.io", auth_file=home / "missing.json")


def test_helpers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """read host; case $host in
        https://index.docker.io/v1/|r.io) echo '{"Username":"'$host'","Secret":"hunter2"}';;
        token.io) echo '{"Username":"<token>","Secret":"hunter2"}';;
        *) echo "credentials not found in native keychain"; exit 1;; esac"""
    helper(home, "test", script, monkeypatch)
    auths = {"file.io": {"auth": pair("file")}}
    write(home / ".docker/config.json", {"credsStore": "test", "auths": auths})
    assert find_credentials("r.io") == Credentials("r.io", SECRET)
    assert find_credentials("docker.io") == Credentials("https://index.docker.io/v1/", SECRET)
    assert find_credentials("token.io") == Credentials("", "", SECRET)
    assert find_credentials("file.io") == Credentials("file", SECRET)
    assert find_credentials("unknown.io") is None
    config = {"credHelpers": {"r.io": "test", "gone.io": "gone"}}
    write(home / ".docker/config.json", config)
    assert find_credentials("r.io") == Credentials("r.io", SECRET)
    assert find_credentials("token.io") is None
    assert find_credentials("gone.io") is None  # not installed: public images still work
    for key in ("https://index.docker.io/v1/", "index.docker.io", "docker.io"):
        write(home / ".docker/config.json", {"credHelpers": {key: "test"}})
        assert find_credentials("docker.io") == Credentials("https://index.docker.io/v1/", SECRET)


@pytest.mark.parametrize("script", ["exit 3", "echo hunter2", "echo '{}'", "kill -9 $$"])
def test_helpers_that_fail(home: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    helper(home, "test", script, monkeypatch)
    write(home / ".docker/config.json", {"credsStore": "test"})
    with pytest.raises(AuthError) as caught:
        find_credentials("r.io")
    assert SECRET not in str(caught.value)
    write(home / ".docker/config.json", {"credsStore": "../../bin/sh"})
    with pytest.raises(UsageError):
        find_credentials("r.io")


def test_secrets_are_not_shown() -> None:
    shown = repr(Credentials("me", SECRET, SECRET))
    request = token_request(Challenge("bearer", "https://t/"), [], Credentials("me", SECRET))
    assert SECRET not in shown + repr(request)
    assert pair("me") not in shown + repr(request)


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        ("", None),
        ("Negotiate", None),
        ('Basic realm="x"', Challenge("basic", "x")),
        ("BASIC realm=x", Challenge("basic", "x")),
        (
            'Bearer realm="https://t/token",service="s",scope="repository:a:pull,push"',
            Challenge("bearer", "https://t/token", "s", "repository:a:pull,push"),
        ),
        ('Bearer  realm = "https://t/?a=b" , error="x"', Challenge("bearer", "https://t/?a=b")),
        ('Basic realm="x", Bearer realm="https://t/"', Challenge("bearer", "https://t/")),
        ('Negotiate, Basic realm="a \\"b\\""', Challenge("basic", 'a "b"')),
        ("Bearer", Challenge("bearer")),
        ('Basic realm="x, Bearer b"', Challenge("basic", "x, Bearer b")),
        ('Digest realm="d", nonce="Basic realm=x"', None),
        ('Negotiate YII/ab==, Basic realm = "r" , charset=UTF-8', Challenge("basic", "r")),
        (
            'Bearer realm="https://t/?a=\\"b\\"" service=s',
            Challenge("bearer", 'https://t/?a="b"', "s"),
        ),
        ("Bearer realm=https://t/?a=b,service=s", Challenge("bearer", "https://t/?a=b", "s")),
        ('Bearer realm="a", Bearer realm="b",service="s"', Challenge("bearer", "a")),
        ('Bearer realm="without an end', Challenge("bearer", "without an end")),
        ('Bearer error="invalid_token", Bearer realm="b"', Challenge("bearer", "b")),
        ('Bearer realm="", Basic realm="r"', Challenge("basic", "r")),
        ('Bearer realm=""', Challenge("bearer")),
    ],
)
def test_challenges(header: str, challenge: Challenge | None) -> None:
    assert parse_challenge(header) == challenge


def test_how_a_token_is_asked_for() -> None:
    challenge = Challenge("bearer", "https://t/token?x=1", "the service")
    scopes = ["repository:a:pull", "repository:b:pull"]
    anonymous = token_request(challenge, scopes, None)
    assert anonymous == TokenRequest("GET", anonymous.url)
    assert parse_qs(urlsplit(anonymous.url).query) == {
        "x": ["1"],
        "service": ["the service"],
        "scope": scopes,
    }
    known = token_request(challenge, scopes, Credentials("me", SECRET))
    assert (known.url, known.headers) == (anonymous.url, {"Authorization": f"Basic {pair('me')}"})
    renewed = token_request(challenge, scopes, Credentials("", "", SECRET))
    assert (renewed.method, renewed.url) == ("POST", "https://t/token?x=1")
    assert parse_qs((renewed.body or b"").decode())["refresh_token"] == [SECRET]


class TokenServer:
    """Gives ``t1``, ``t2``, … and remembers what it was asked."""

    def __init__(self, **answer: object) -> None:
        self.answer = answer
        self.asked: list[TokenRequest] = []
        self.now = 1000.0
        self.entered = threading.Event()

    def fetch(self, request: TokenRequest) -> bytes:
        self.asked.append(request)
        return json.dumps({"token": f"t{len(self.asked)}"} | self.answer).encode()

    def authorizer(self, credentials: Credentials | None = None) -> Authorizer:
        return Authorizer(
            ["repository:a:pull"], lambda: credentials, self.fetch, clock=lambda: self.now
        )


BEARER = 'Bearer realm="https://t/"'


def test_a_token_lasts() -> None:
    server = TokenServer(expires_in=100)
    authorizer = server.authorizer()
    assert authorizer.header() is None
    assert authorizer.refused(BEARER, None)
    assert authorizer.header() == "Bearer t1"
    server.now += 89
    assert authorizer.header() == "Bearer t1"
    server.now += 2
    assert authorizer.header() == "Bearer t2"
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("expires_in", "lasts"), [(None, 50), (0, 50), (-5, 50), (4, 2), (3600, 3590), (15, 7.5)]
)
def test_how_long(expires_in: float | None, lasts: float) -> None:
    server = TokenServer(expires_in=expires_in)
    authorizer = server.authorizer()
    authorizer.refused(BEARER, None)
    server.now += lasts - 0.01
    assert authorizer.header() == "Bearer t1"
    server.now += 0.02
    assert authorizer.header() == "Bearer t2"


def test_a_token_by_its_other_name() -> None:
    authorizer = TokenServer(token=None, access_token="a", expires_in=None).authorizer()
    assert authorizer.refused(BEARER, None)
    assert authorizer.header() == "Bearer a"


@pytest.mark.parametrize("key", ["Token", "ACCESS_TOKEN", "to\u212aen"])
def test_a_token_in_other_letters(key: str) -> None:
    authorizer = TokenServer(token=None, **{key: "a"}, Expires_In=None).authorizer()
    assert authorizer.refused(BEARER, None)
    assert authorizer.header() == "Bearer a"


def test_a_refused_token_is_replaced_once() -> None:
    server = TokenServer()
    authorizer = server.authorizer()
    authorizer.refused(BEARER, None)
    with ThreadPoolExecutor(8) as threads:
        again = list(threads.map(lambda _: authorizer.refused(BEARER, "Bearer t1"), range(50)))
    assert all(again)
    assert authorizer.header() == "Bearer t2"
    assert len(server.asked) == 2


def test_the_same_answer_again_is_no_other() -> None:
    server = TokenServer(token="same")
    authorizer = server.authorizer(Credentials("me", SECRET))
    assert authorizer.refused(BEARER, None)
    assert not authorizer.refused(BEARER, "Bearer same")
    basic = server.authorizer(Credentials("me", SECRET))
    assert basic.refused("Basic", None)
    assert basic.header() == f"Basic {pair('me')}"
    assert not basic.refused("Basic", basic.header())
    assert not server.authorizer().refused("Basic", None)
    assert not server.authorizer().refused("Negotiate", None)


def test_scopes() -> None:
    server = TokenServer()
    authorizer = server.authorizer()
    scope = 'scope="repository:a:pull,push registry:catalog:*"'
    authorizer.refused(f"{BEARER},{scope}", None)
    asked = parse_qs(urlsplit(server.asked[0].url).query)["scope"]
    assert asked == ["repository:a:pull", "registry:catalog:*"]
    authorizer.widen("repository:b:pull")
    assert authorizer.header() == "Bearer t2"
    assert "repository:b:pull" in parse_qs(urlsplit(server.asked[1].url).query)["scope"]
    authorizer.widen("repository:b:pull")
    assert authorizer.header() == "Bearer t2"


@pytest.mark.parametrize("realm", ["", "t", "ftp://t/", "file:///etc/passwd"])
def test_a_realm_that_is_no_server(realm: str) -> None:
    with pytest.raises(AuthError):
        TokenServer().authorizer().refused(f'Bearer realm="{realm}"', None)

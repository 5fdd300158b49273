# SPDX-License-Identifier: Apache-2.0
"""Credentials that are tried before anybody keeps them, and what is said of those that fail."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from firstread.errors import AuthError, FirstreadError, NotFoundError, TransportError, UsageError
from firstread.oci.reference import parse_reference
from firstread.registry.credentials import Credentials
from firstread.registry.login import try_login
from firstread.registry.logins import Logins
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.testing.scripted import IDENTITY_TOKEN, PASSWORD, USERNAME, ScriptedRegistry

OPTIONS = AccessOptions(retries=0)
GOOD = Credentials(USERNAME, PASSWORD)
WRONG = Credentials(USERNAME, "wrong")


@pytest.mark.parametrize("part", ["", "/team/app"])
@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_wrong_password_is_refused_and_a_right_one_is_not(auth: str, part: str) -> None:
    with ScriptedRegistry(auth=auth) as registry:
        try_login(registry.host + part, GOOD, OPTIONS)
        with pytest.raises(AuthError) as caught:
            try_login(registry.host + part, WRONG, OPTIONS)
        assert "401" in str(caught.value)
        assert "nothing was kept" in (caught.value.hint or "")
        if auth == "token":
            try_login(registry.host + part, Credentials("", "", IDENTITY_TOKEN), OPTIONS)
            with pytest.raises(AuthError):
                try_login(registry.host + part, Credentials("", "", "no such"), OPTIONS)


def test_an_open_registry_is_shown_the_password_all_the_same() -> None:
    with ScriptedRegistry() as registry:
        try_login(registry.host, GOOD, OPTIONS)
        assert [request.headers.get("Authorization") for request in registry.seen] == [
            None,
            GOOD.basic(),
        ]
        registry.script("GET /v2/ slow 0\nGET /v2/ status 401")
        with pytest.raises(AuthError):
            try_login(registry.host, GOOD, OPTIONS)


def test_a_password_does_not_follow_a_redirect_to_another_host() -> None:
    with ScriptedRegistry() as other:
        there = f"GET /v2/ status 302 Location=http://{other.host}/v2/"
        with ScriptedRegistry(f"{there}\n{there}") as registry:
            try_login(registry.host, GOOD, OPTIONS)
            assert registry.seen[1].headers["Authorization"] == GOOD.basic()
        assert [request.headers.get("Authorization") for request in other.seen] == [None, None]


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("GET /v2/ status 404 x9", NotFoundError),
        ("GET /v2/ status 503 x9", TransportError),
        ("GET /v2/ status 403 x9", AuthError),
        ("GET /v2/ hangup 0 x9", TransportError),
    ],
)
def test_a_registry_that_cannot_be_asked_is_no_success(
    script: str, kind: type[FirstreadError]
) -> None:
    with ScriptedRegistry(script) as registry, pytest.raises(kind):
        try_login(registry.host, GOOD, OPTIONS)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(TransportError):
        try_login(host, GOOD, OPTIONS)
    with pytest.raises(UsageError):
        try_login("/a", GOOD, OPTIONS)


def hint_of(host: str, options: AccessOptions) -> str:
    with (
        open_source(parse_reference(f"{host}/a:1"), options) as repository,
        pytest.raises(AuthError) as caught,
    ):
        repository.get_manifest()
    return str(caught.value.hint)


def test_an_error_names_who_has_looked_for_credentials_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    docker, podman = tmp_path / ".docker/config.json", tmp_path / ".config/containers/auth.json"
    daemon = AccessOptions(retries=0, who="the daemon (process 7)", logins=Logins())
    with ScriptedRegistry(auth="basic") as registry:
        assert "looked for" not in hint_of(registry.host, OPTIONS)  # there is nothing to tell
        assert hint_of(registry.host, daemon).endswith(
            f"; the daemon (process 7) looked for credentials of {registry.host} in"
            f" its memory (nothing for it), {docker} (not there), {podman} (not there)"
        )
        docker.parent.mkdir()
        docker.write_text(json.dumps({"auths": {"other.io": {"auth": "eDp5"}}}))
        assert hint_of(registry.host, OPTIONS).endswith(
            f"; this command looked for credentials of {registry.host} in"
            f" {docker} (nothing for it), {podman} (not there)"
        )
        docker.write_text(
            json.dumps({"auths": {registry.host: {"username": "x", "password": "shown-to-nobody"}}})
        )
        for options in (OPTIONS, daemon):
            hint = hint_of(registry.host, options)
            assert hint.endswith(f"{docker} (used)")
            assert "shown-to-nobody" not in hint
        directory = tmp_path / "logins"
        directory.mkdir()
        named = AccessOptions(retries=0, auth_file=docker, credentials_dir=directory)
        assert f"in {docker} (used)" in hint_of(registry.host, named)
        own = AccessOptions(retries=0, credentials_dir=directory)
        assert f"in {directory}/{registry.host.replace(':', '_')}_.json (not there)" in hint_of(
            registry.host, own
        )
    with ScriptedRegistry(auth="token") as registry:
        docker.write_text(
            json.dumps({"auths": {registry.host: {"username": "x", "password": "shown-to-nobody"}}})
        )
        hint = hint_of(registry.host, daemon)
        assert hint.count("looked for credentials") == 1
        assert hint.endswith(f"{docker} (used)")

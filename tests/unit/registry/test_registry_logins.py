# SPDX-License-Identifier: Apache-2.0
"""Credentials that a process was given: for whom they are, and where they may go."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from firstread.errors import UsageError
from firstread.registry.auth import look_up
from firstread.registry.credentials import TOKEN_USER, Credentials
from firstread.registry.logins import Logins

WIDE, NARROW = Credentials.of("me", "wide word"), Credentials.of("you", "narrow word")
HOST = "r.example:5000"


def test_the_most_specific_scope_counts() -> None:
    logins = Logins()
    logins.put(HOST, WIDE)
    logins.put(f"{HOST}/team/app", NARROW)
    assert logins.find(HOST, "team/app") == NARROW
    assert logins.find(HOST, "team/app/part") == NARROW
    assert logins.find(HOST, "team/application") == WIDE
    assert logins.find("other.example", "team/app") is None
    assert logins.put(f"{HOST}/team/app", None) == NARROW
    assert logins.find(HOST, "team/app") == WIDE


def test_they_survive_as_a_document_but_not_as_a_pickle() -> None:
    logins, other = Logins(), Logins()
    logins.put(HOST, WIDE)
    logins.put("r.io", Credentials.of(TOKEN_USER, "identity word"))
    other.load(json.loads(json.dumps(logins.dump())))
    assert other.find(HOST, "a") == WIDE
    assert other.find("r.io", "a") == Credentials("", identity_token="identity word")
    assert b"word" not in pickle.dumps(logins)
    assert "word" not in repr([WIDE, logins])
    assert {"wide word", "identity word"} <= set(logins.secrets())


def entry(directory: Path, name: str, **fields: str) -> None:
    (directory / name).write_text(json.dumps(fields))


def test_a_file_of_one_host_goes_before_dockers_and_after_what_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "config.json"
    docker.write_text(json.dumps({"auths": {HOST: {"username": "docker", "password": "x"}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def found(logins: Logins | None = None, auth_file: Path | None = None) -> str:
        login = look_up(HOST, "a", auth_file, directory=tmp_path, logins=logins).credentials
        return login.username if login else ""

    assert found() == "docker"
    entry(tmp_path, f"{HOST}.json", username="second", password="x")
    assert found() == "second"
    entry(tmp_path, "r.example_5000_.json", username="first", password="x")
    assert found() == "first"
    assert found(auth_file=docker) == "docker"
    given = Logins()
    given.put(HOST, WIDE)
    assert found(given) == "me"


@pytest.mark.parametrize("text", ["", "{", '"a"', '{"username": 3}', '{"auth": "no base64!"}'])
def test_a_file_of_one_host_that_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.io.json").write_text(text)
    with pytest.raises(UsageError, match=r"r\.io\.json"):
        look_up("r.io", directory=tmp_path)

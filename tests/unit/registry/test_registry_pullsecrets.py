# SPDX-License-Identifier: Apache-2.0
"""Credentials of pulls: which comes first, what a refusal changes, and what is forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstread.errors import AuthError
from firstread.oci.model import describe
from firstread.oci.reference import parse_reference
from firstread.registry.auth import look_up
from firstread.registry.credentials import Credentials
from firstread.registry.logins import Logins
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.registry.pullsecrets import MAX_BYTES, MAX_EACH, MAX_WANTED, REFUSED_S, PullSecrets
from firstread.testing.scripted import PASSWORD, USERNAME, ScriptedRegistry

HOST = "r.example:5000"
APP, OTHER = f"{HOST}/team/app", f"{HOST}/team/other"
OLD, NEW, TRIED = (Credentials("me", f"{word} word") for word in ("old", "new", "tried"))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_newest_comes_first_and_counts_for_its_repository_alone() -> None:
    secrets = PullSecrets()
    secrets.keep(APP, OLD)
    secrets.keep(OTHER, OLD)
    secrets.keep(APP, NEW)
    assert secrets.find(APP) == NEW
    assert secrets.find(OTHER) == OLD
    assert secrets.find(f"{APP}/part") is None
    with secrets.trying(APP, [TRIED]):
        assert secrets.find(APP) == TRIED
    assert secrets.find(APP) == NEW
    secrets.keep(APP, OLD)
    assert secrets.find(APP) == OLD


def test_a_refused_one_waits_behind_the_others_for_a_while() -> None:
    clock = Clock()
    secrets = PullSecrets(clock)
    secrets.keep(APP, OLD)
    secrets.keep(APP, NEW)
    secrets.keep(OTHER, NEW)
    secrets.refuse(APP, NEW)
    secrets.refuse(APP, TRIED)  # not ours
    assert secrets.find(APP) == OLD
    assert secrets.find(APP, refused=True) == NEW
    assert secrets.find(OTHER) == NEW
    clock.now = REFUSED_S
    assert secrets.find(APP) == NEW
    secrets.refuse(APP, NEW)
    secrets.keep(APP, NEW)  # a pull has just shown it
    assert secrets.find(APP) == NEW
    assert secrets.find(APP, refused=True) is None


def test_a_file_takes_the_place_of_a_refused_one(tmp_path: Path) -> None:
    def found() -> str:
        looked = look_up(HOST, "team/app", directory=tmp_path, logins=logins)
        return looked.credentials.password if looked.credentials else ""

    logins = Logins()
    logins.pulled.keep(APP, NEW)
    (tmp_path / f"{HOST}.json").write_text('{"username": "a", "password": "of a file"}')
    assert found() == NEW.password
    logins.pulled.refuse(APP, NEW)
    assert found() == "of a file"
    (tmp_path / f"{HOST}.json").unlink()
    assert found() == NEW.password  # better than nothing: registries err
    logins.put(HOST, OLD)
    assert found() == OLD.password


@pytest.mark.parametrize("help_", ["a secret", "a pull without one", "an answer"])
def test_a_refused_repository_wants_a_pull_until_something_helps(help_: str) -> None:
    secrets = PullSecrets()
    secrets.answered(APP, refused=True)
    secrets.answered(OTHER, refused=False)
    assert secrets.is_wanted(APP)
    assert not secrets.is_wanted(OTHER)
    if help_ == "an answer":
        secrets.answered(APP, refused=False)
    else:
        secrets.keep(APP, NEW if help_ == "a secret" else None)
    assert not secrets.is_wanted(APP)


def test_a_refused_pull_of_somebody_else_is_theirs() -> None:
    secrets = PullSecrets()
    with secrets.trying(APP, [TRIED], foretold=True):
        secrets.answered(APP, refused=True)
        secrets.answered(OTHER, refused=True)
        assert secrets.find(APP) == TRIED
    assert not secrets.is_wanted(APP)
    assert secrets.is_wanted(OTHER)
    secrets.answered(APP, refused=True)
    with secrets.trying(APP, [], foretold=True):
        secrets.answered(APP, refused=True)
    assert secrets.is_wanted(APP), "it was before"


def test_only_so_many_repositories_want_a_pull() -> None:
    secrets = PullSecrets()
    for number in range(MAX_WANTED + 1):
        secrets.answered(f"{HOST}/{number}", refused=True)
    assert not secrets.is_wanted(f"{HOST}/0")
    assert secrets.is_wanted(f"{HOST}/{MAX_WANTED}")


def test_too_many_secrets_push_out_the_oldest() -> None:
    secrets = PullSecrets()
    for number in range(MAX_EACH + 1):
        secrets.keep(APP, Credentials("me", f"word {number}"))
    assert len(secrets.all()) == MAX_EACH
    long = "x" * 4000
    for number in range(MAX_BYTES // 4000 + 1):
        secrets.keep(f"{HOST}/{number}", Credentials("é", f"{long}{number}"))
    assert secrets.find(APP) is None
    assert secrets.find(f"{HOST}/{number}") is not None
    assert len(json.dumps(secrets.dump())) <= MAX_BYTES


def test_one_secret_of_many_repositories_takes_no_more_room() -> None:
    secrets = PullSecrets()
    for number in range(1000):
        secrets.keep(f"{HOST}/{number}", Credentials("me", "x" * 4000))
    assert secrets.find(f"{HOST}/0") is not None


def test_they_survive_as_a_document() -> None:
    logins, other = Logins(), Logins()
    logins.put(HOST, OLD)
    for place, credentials in ((APP, OLD), (OTHER, NEW), (APP, NEW)):
        logins.pulled.keep(place, credentials)
    other.load(json.loads(json.dumps(logins.dump())))
    assert other.dump() == logins.dump()
    assert other.exactly(HOST) == OLD
    assert other.pulled.find(APP) == NEW
    other.pulled.refuse(APP, NEW)
    assert other.pulled.find(APP) == OLD
    assert "word" not in repr([logins, other.pulled])
    assert {OLD.password, NEW.password} <= set(logins.secrets())
    Logins().load({HOST: ["me", "word", ""]})  # of an earlier version


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_registry_that_refuses_one_gets_the_next(auth: str) -> None:
    logins = Logins()
    with ScriptedRegistry(auth=auth) as registry:
        reference = parse_reference(f"{registry.host}/team/app:1")
        place = f"{registry.host}/team/app"
        good = Credentials(USERNAME, PASSWORD)
        logins.pulled.keep(place, good)
        logins.pulled.keep(place, NEW)
        if auth == "token":
            registry.script("GET /token status 401")
        registry.add_blob(b"content")
        blob = describe(b"content", "x")
        options = AccessOptions(retries=0, logins=logins)
        with open_source(reference, options) as repository:
            with pytest.raises(AuthError, match="401"):
                repository.has_blob(blob)
            assert logins.pulled.is_wanted(place)
            assert repository.has_blob(blob)
            assert not logins.pulled.is_wanted(place)
            assert logins.pulled.find(place, refused=True) == NEW

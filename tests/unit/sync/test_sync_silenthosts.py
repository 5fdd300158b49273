# SPDX-License-Identifier: Apache-2.0
"""A run asks a registry that does not answer a few times, not once for each image."""

from __future__ import annotations

import pytest

from firstread.convert.conversion import ConvertOptions
from firstread.errors import FirstreadError, NotFoundError, TransportError
from firstread.oci.reference import Reference
from firstread.registry.options import AccessOptions
from firstread.sync.beside import Beside
from firstread.sync.pattern import parse_source
from firstread.sync.silenthosts import IN_A_ROW, SilentHosts
from firstread.sync.sources import Wanted, find_names
from firstread.sync.syncing import LOOKING, Sync
from firstread.testing.scripted import ScriptedRegistry

DEAD = "127.0.0.1:1"
ONCE = AccessOptions(retries=0)


def ask(silent: SilentHosts, host: str, error: FirstreadError | None) -> None:
    with silent.asking(host):
        if error is not None:
            raise error


def test_an_answer_makes_a_host_worth_asking() -> None:
    silent = SilentHosts()
    gone = TransportError("it is gone", hint="look")
    for answer in (None, NotFoundError("no such image")):
        for _ in range(IN_A_ROW - 1):
            with pytest.raises(TransportError, match=r"^it is gone"):
                ask(silent, "a", gone)
        if answer is None:
            ask(silent, "a", None)
        else:
            with pytest.raises(NotFoundError):
                ask(silent, "a", answer)
    for _ in range(IN_A_ROW):
        with pytest.raises(TransportError, match=r"^it is gone"):
            ask(silent, "a", gone)
    with pytest.raises(TransportError) as caught:
        ask(silent, "a", None)
    assert caught.value.message == "not asked, since 16 images failed in a row: it is gone"
    assert caught.value.hint == "look"
    ask(silent, "b", None)


@pytest.mark.parametrize("repositories", [1, 300])
def test_a_run_gives_up_a_registry_that_is_gone(repositories: int) -> None:
    places = [f"app{number % repositories}" for number in range(300)]
    with ScriptedRegistry() as registry:
        names = [
            Reference("docker", host, repository, "", f"v{number}")
            for number, repository in enumerate(places)
            for host in (DEAD, registry.host)
        ]
        rows = Sync(Beside(ConvertOptions(source_options=ONCE)), 4).run(names, dry=True)
        errors = [row.error for row in rows if DEAD in row.image and row.error]
        asked = [error for error in errors if "not asked" not in error.message]
        assert len(errors) == 300
        assert IN_A_ROW <= len(asked) < IN_A_ROW + LOOKING
        assert {error.error for error in errors} == {"TransportError"}
        assert len(registry.asked("/manifests/")) >= 300  # none of these is there


def test_patterns_of_a_registry_that_is_gone() -> None:
    sources = [parse_source(f"{DEAD}/app{number}:*") for number in range(100)]
    faults = find_names(Wanted(sources), ONCE).faults
    asked = [error for _, error in faults if "not asked" not in error.message]
    assert (len(faults), len(asked)) == (100, IN_A_ROW)

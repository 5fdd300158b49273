# SPDX-License-Identifier: Apache-2.0
"""Credentials that are tried for an image, by several at once."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

import pytest

from firstread.config import RegistryTable
from firstread.errors import NotFoundError
from firstread.fetch.stats import Feed
from firstread.mounts.network import Network
from firstread.mounts.secrets import SecretMemory, secret_memory
from firstread.mounts.warm import MOST
from firstread.oci.model import describe
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Repository
from firstread.registry.access import Access
from firstread.registry.credentials import Credentials
from firstread.testing.scripted import PASSWORD, ScriptedRegistry

PLAIN = Access(plain_http=True)
IMAGE, SCOPE = "r.example/app:1", "r.example/app"
OLD, WRONG, OTHER, GOOD = (Credentials("me", word) for word in ("old", "wrong", "other", "good"))


@pytest.fixture
def network() -> Iterator[Network]:
    fd = secret_memory()
    yield Network(RegistryTable(), SecretMemory(fd), Feed())
    os.close(fd)


def given(network: Network) -> Credentials | None:
    return network.given(parse_reference(IMAGE))


@contextlib.contextmanager
def failing(network: Network, credentials: Credentials) -> Iterator[None]:
    with contextlib.suppress(ZeroDivisionError), network.trying(IMAGE, credentials):
        yield
        raise ZeroDivisionError


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("before", [None, OLD, WRONG])
def test_what_fails_leaves_what_was_there_in_any_order(
    network: Network, before: Credentials | None, order: int
) -> None:
    network.login(SCOPE, before)
    tried = [failing(network, WRONG), failing(network, OTHER)]
    for each in tried:
        each.__enter__()
    assert given(network) == OTHER
    for each in tried[::order]:
        each.__exit__(None, None, None)
    assert given(network) == before
    assert not network._tried


def test_what_works_stays_though_others_fail_before_and_after(network: Network) -> None:
    first, last = failing(network, WRONG), failing(network, OTHER)
    first.__enter__()
    with network.trying(IMAGE, GOOD):
        last.__enter__()
        first.__exit__(None, None, None)
        assert given(network) == OTHER
    last.__exit__(None, None, None)
    assert given(network) == GOOD


# Connections.


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry(auth="token") as running:
        yield running


def pull(network: Network, registry: ScriptedRegistry, name: str = "app:1") -> bytes:
    """Read a blob as a pull does."""
    blob = describe(b"metadata", "x")
    registry.add_blob(b"metadata")
    reference = parse_reference(f"{registry.host}/{name}")

    def work(repository: Repository, _: Callable[[], None]) -> bytes:
        return repository.read_blob(blob, 100)

    return network.ask("pull", reference, PLAIN, work)[0]


def tokens(registry: ScriptedRegistry) -> int:
    return sum(seen.path == "/token" for seen in registry.seen)


def open_warm(network: Network, registry: ScriptedRegistry) -> Repository:
    reference = dataclasses.replace(parse_reference(f"{registry.host}/app"), tag=None)
    return network.open_warm(reference, PLAIN)


def test_a_lane_uses_the_connection_and_the_token_of_the_pull(
    network: Network, registry: ScriptedRegistry
) -> None:
    assert pull(network, registry) == b"metadata"
    asked = tokens(registry)
    blob = describe(b"metadata", "x")
    with open_warm(network, registry) as repository:
        assert repository.reference.tag is None
        assert repository.read_blob(blob, 100) == b"metadata"
        assert tokens(registry) == asked == 1
    with open_warm(network, registry) as another:  # the first one has its own by now
        another.read_blob(blob, 100)
    assert tokens(registry) == 2


def test_connections_of_another_login_or_of_a_failed_pull_are_not_used(
    network: Network, registry: ScriptedRegistry
) -> None:
    pull(network, registry)
    network.login(registry.host, Credentials("tester", PASSWORD))
    with open_warm(network, registry) as repository:
        repository.read_blob(describe(b"metadata", "x"), 100)
    assert tokens(registry) == 2
    registry.script("GET /blobs/ status 404 x9")
    with pytest.raises(NotFoundError):
        pull(network, registry)
    registry.script("")
    asked = tokens(registry)
    with open_warm(network, registry) as repository:
        repository.read_blob(describe(b"metadata", "x"), 100)
    assert tokens(registry) == asked + 1


def test_few_repositories_are_kept(network: Network, registry: ScriptedRegistry) -> None:
    for number in range(2 * MOST):
        pull(network, registry, f"app{number}:1")
    assert len(network._warm._kept) == MOST

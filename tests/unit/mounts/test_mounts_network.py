# SPDX-License-Identifier: Apache-2.0
"""Credentials that are tried for an image, by several at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from firstread.config import RegistryTable
from firstread.fetch.stats import Feed
from firstread.mounts.network import Network
from firstread.mounts.secrets import SecretMemory, secret_memory
from firstread.oci.reference import parse_reference
from firstread.registry.logins import Credentials

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

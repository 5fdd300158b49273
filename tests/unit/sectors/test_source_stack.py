# SPDX-License-Identifier: Apache-2.0
"""How deep the way from a source to the HTTP library is: what nobody can follow, nobody mends."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
import urllib3

import firstread
from firstread.oci.reference import parse_reference
from firstread.registry.health import FEWEST_SAMPLES, KnownEndpoints
from firstread.registry.hosts import Endpoint
from firstread.registry.open import open_endpoints
from firstread.registry.options import AccessOptions
from firstread.sectors.native import NativeSource
from firstread.sectors.source import Wanted
from firstread.testing.memorysource import make_sectors
from firstread.testing.scripted import ScriptedRegistry

MOST = 8
TOP = Path(firstread.__file__).parent
SECTORS = make_sectors(1)
OPTIONS = AccessOptions(retries=2, retry_base=0.01, hedge_share=1.0)


class Watched(urllib3.PoolManager):
    """The library, whose callers are noted."""

    stacks: ClassVar[list[list[str]]] = []

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        if "/token" not in url:
            frames = [frame for frame in traceback.extract_stack() if is_ours(frame.filename)]
            self.stacks.append([f"{Path(f.filename).name}:{f.name}" for f in frames])
        return super().request(method, url, *args, **kwargs)


def is_ours(filename: str) -> bool:
    path = Path(filename)
    return path.is_relative_to(TOP) and "testing" not in path.parts


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    monkeypatch.setattr(Watched, "stacks", [])
    monkeypatch.setattr(urllib3, "PoolManager", Watched)
    return Watched.stacks


@pytest.fixture
def registries() -> Iterator[list[ScriptedRegistry]]:
    """A mirror that wants a token and redirects, and the registry itself."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(ScriptedRegistry(auth="token", redirect=True)),
            stack.enter_context(ScriptedRegistry()),
        ]


def sector_of(registries: list[ScriptedRegistry]) -> Wanted:
    for registry in registries:
        registry.add_blob(SECTORS.blob)
    return SECTORS.wanted[0]


def source_of(registries: list[ScriptedRegistry]) -> NativeSource:
    endpoints = [Endpoint("http", registry.host) for registry in registries]
    reference = parse_reference("r.example/a/b")
    return NativeSource(open_endpoints(reference, endpoints, OPTIONS, KnownEndpoints()))


def read(source: NativeSource, sector: Wanted) -> None:
    data = b"".join(bytes(frame.data) for frame in source.frames(sector, range(16)))
    assert data == SECTORS.contents[0]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("", id="redirected"),
        pytest.param("GET /blobs/ status 503 Retry-After=0 x1", id="failover"),
        pytest.param("GET /store/ hangup 5000 x3", id="resumed"),
    ],
)
def test_eight_frames_from_a_source_to_the_library(
    registries: list[ScriptedRegistry], stacks: list[list[str]], script: str
) -> None:
    sector = sector_of(registries)
    source = source_of(registries)
    registries[0].script(script)
    read(source, sector)
    source.close()
    assert len(stacks) > 1
    for stack in stacks:
        # `Source.frames` is for readers without a lane, which has `open` and `decode` instead.
        assert stack[0] == "source.py:frames"
        assert stack[1] in ("source.py:open", "native.py:decode")
        assert len(stack[1:]) <= MOST, stack


def test_a_second_endpoint_is_asked_no_deeper(
    registries: list[ScriptedRegistry], stacks: list[list[str]]
) -> None:
    sector = sector_of(registries)
    source = source_of(registries)
    for _ in range(FEWEST_SAMPLES + 1):
        read(source, sector)
    registries[0].script("GET / slow 3 x*")
    read(source, sector)
    source.close()
    assert any(stack[0] == "hedge.py:_work" for stack in stacks)
    assert max(map(len, stacks)) <= MOST + 1

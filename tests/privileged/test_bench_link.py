# SPDX-License-Identifier: Apache-2.0
"""The emulated link has the promised speed, and leaves nothing behind."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack

import pytest
from benchmarks.link import Link

from firstread.testing.registry import DockerRegistry

pytestmark = [pytest.mark.privileged, pytest.mark.benchmarks]


def ip(what: str) -> str:
    command = ("ip", "-brief", what)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_rate_round_trip_and_connections_match_the_request() -> None:
    before = ip("link")
    with Link(200, 0.010) as link:
        received = link.received_bytes()
        measured = link.measure()
        assert 0.010 <= measured.rtt_s < 0.020
        assert 0.010 <= measured.connect_s < 0.020
        assert 8e6 < measured.bytes_per_s < 25e6
        assert link.received_bytes() - received > 12_000_000
        assert "Mbit/s" in str(measured)
    assert ip("link") == before


def test_a_gigabit_passes_in_segments_of_the_mtu() -> None:
    with Link(1000, 0.001) as link:
        measured = link.measure()
        assert measured.bytes_per_s > 75e6
        assert 0.001 <= measured.rtt_s < 0.010


def test_a_registry_runs_on_the_far_side() -> None:
    with ExitStack() as stack:
        link = stack.enter_context(Link(1000, 0.002))
        with link.far():
            registry = stack.enter_context(DockerRegistry(address=link.address))
        assert registry.host.startswith(link.address)
        assert registry.counts.requests_of() == 0


def test_leaving_returns_from_the_far_side() -> None:
    with Link(1000, 0.002) as link:
        with link.far():
            assert f"{link.address} peer" in ip("address")
        assert f"{link.address} peer" not in ip("address")


def test_a_failed_setup_leaves_nothing() -> None:
    before = ip("link")
    with pytest.raises(subprocess.CalledProcessError), Link(0, 0.0):
        pass
    assert ip("link") == before

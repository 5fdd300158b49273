# SPDX-License-Identifier: Apache-2.0
"""When an endpoint is left alone, probed, and doubled: with a clock that stands still."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.errors import NotFoundError, TransportError
from firstread.registry.backoff import Budget
from firstread.registry.health import (
    FEWEST_SAMPLES,
    LONGEST_REST_S,
    MAX_KNOWN,
    REST_S,
    SAMPLES,
    Breaker,
    EndpointHealth,
    KnownEndpoints,
    Latency,
)
from firstread.registry.hosts import Endpoint


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_one_request_finds_out_whether_an_endpoint_works_again(clock: Clock) -> None:
    health = Breaker(clock)
    assert (health.state, health.ask(), health.ask()) == ("healthy", True, True)
    assert health.fails()
    assert (health.state, health.ask()) == ("resting", False)
    clock.now += REST_S
    assert (health.ask(), health.state) == (True, "probing")
    assert not health.ask()  # somebody is finding out
    assert health.works()
    assert (health.state, health.ask()) == ("healthy", True)
    assert not health.works()


def test_each_failed_probe_makes_the_rest_longer(clock: Clock) -> None:
    health = Breaker(clock)
    rests = []
    for _ in range(8):
        assert health.ask()
        health.fails()
        rests.append(health.rests_until - clock.now)
        clock.now = health.rests_until
    assert rests[:4] == [REST_S, 2 * REST_S, 4 * REST_S, 8 * REST_S]
    assert rests[-1] == LONGEST_REST_S


def test_requests_that_fail_together_count_once(clock: Clock) -> None:
    health = Breaker(clock)
    assert [health.fails() for _ in range(10)] == [True] + [False] * 9
    assert health.failures == 1


def test_a_probe_that_tells_nothing_gives_way_to_another(clock: Clock) -> None:
    health = Breaker(clock)
    health.fails()
    clock.now += REST_S
    assert health.ask()
    health.leaves()
    assert health.ask()


def test_what_an_endpoint_asks_for_is_kept(clock: Clock) -> None:
    health = Breaker(clock)
    health.fails(asked_s=60)
    clock.now += 59
    assert (health.ask(), health.barred_s()) == (False, 1)
    clock.now += 1
    assert health.ask()
    health.fails(asked_s=1e9)
    assert health.barred_s() <= 3600


@given(st.lists(st.sampled_from(["ask", "works", "fails", "leaves", "time"]), max_size=60))
def test_at_most_one_request_probes(steps: list[str]) -> None:
    clock = Clock()
    health = Breaker(clock)
    probes = 0
    for step in steps:
        if step == "time":
            clock.now += 1.5
        elif step == "ask":
            failed = health.failures > 0
            if health.ask() and failed:
                probes += 1
            assert probes <= 1
        else:
            getattr(health, step)()
            probes = 0
        assert health.rests_until <= clock.now + LONGEST_REST_S


@given(st.lists(st.floats(0, 100), min_size=1, max_size=3 * SAMPLES))
def test_a_percentile_is_that_of_the_last_samples(times: list[float]) -> None:
    latency = Latency()
    for seconds in times:
        latency.note(seconds)
    last = sorted(times[-SAMPLES:])
    if len(last) < FEWEST_SAMPLES:
        assert latency.percentile(0.95) is None
    else:
        assert latency.percentile(0.95) == last[int(0.95 * len(last))]
        assert latency.percentile(1.0) == last[-1]


def test_extra_requests_are_a_share_of_all() -> None:
    budget = Budget(0.05, most=10)
    extra = 0
    for _ in range(1000):
        budget.earn()
        extra += budget.take()
    assert extra == 50
    for _ in range(10_000):
        budget.earn()
    assert sum(budget.take() for _ in range(100)) == 10  # no more is saved up


def test_no_share_is_never() -> None:
    budget = Budget(0.0, most=10)
    for _ in range(1000):
        budget.earn()
    assert not budget.take()


def test_the_health_of_an_endpoint_is_shared_and_tells_what_becomes_of_it(clock: Clock) -> None:
    told: list[tuple[str, str, str]] = []
    known = KnownEndpoints(lambda state, at, why: told.append((state, at.name, why)), clock)
    endpoint = Endpoint("https", "m.io", namespace="r.io")
    health = known.of(endpoint)
    assert known.of(Endpoint("https", "m.io", namespace="r.io")) is health
    assert health.ask()
    health.failed(TransportError("it hung up"))
    assert not health.ask()
    assert health.ask(force=True)
    health.answered(0.1)
    assert health.ask(hedge=True)
    health.failed(NotFoundError("there is no such blob"))  # it works, and has less
    assert told == [("rests", "m.io", "it hung up"), ("healthy", "m.io", "")]
    assert known.documents() == [
        {
            "endpoint": "m.io",
            "registry": "r.io",
            "state": "healthy",
            "requests": 3,
            "failures": 2,
            "hedges": 1,
            "first_byte_p95_s": None,
            "last_error": "there is no such blob",
        }
    ]


def test_nothing_forces_an_endpoint_that_asked_for_peace(clock: Clock) -> None:
    health = EndpointHealth(Endpoint("https", "m.io"), clock)
    error = TransportError("too many")
    error.retry_after = 5
    health.failed(error)
    clock.now += 4
    assert not health.ask(force=True)
    clock.now += 1
    assert health.ask(force=True)


def test_endpoints_that_names_of_images_come_with_are_forgotten(clock: Clock) -> None:
    known = KnownEndpoints(clock=clock)
    used = known.of(Endpoint("https", "used.test"))
    for number in range(2 * MAX_KNOWN):
        known.of(Endpoint("https", f"{number}.test"))
        assert known.of(Endpoint("https", "used.test")) is used
    assert len(known.documents()) == MAX_KNOWN

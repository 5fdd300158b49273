# SPDX-License-Identifier: Apache-2.0
"""Links: their names, and how long answers take over them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.errors import UsageError
from firstread.tune.link import FIRST_WINDOW, WIRE, LinkSpeed, Pipe, Transfer, parse_link

RTT = 0.1
LINK = LinkSpeed(80e6, RTT, "test")  # 10 MB/s on the wire: 1 MB in a round trip
RATE = 10e6 * WIRE


def arrive(pipe: Pipe, *transfers: Transfer) -> list[float]:
    """Return when each of `transfers` was whole."""
    done: dict[Transfer, float] = {}
    while len(done) < len(transfers):
        transfer = pipe.step(math.inf)
        assert transfer is not None
        done[transfer] = pipe.now
        pipe.finish(transfer)
    return [done[transfer] for transfer in transfers]


@pytest.mark.parametrize(
    ("text", "bits", "seconds"),
    [
        ("100Mbit/20ms", 100e6, 0.020),
        ("1gbit/1ms", 1e9, 0.001),
        ("2.5Gbit/s/500us", 2.5e9, 0.0005),
        ("56kbit/0.2s", 56e3, 0.2),
        ("10Mbit/0ms", 10e6, 0),
    ],
)
def test_a_link_is_a_rate_and_a_round_trip(text: str, bits: float, seconds: float) -> None:
    link = parse_link(text)
    assert link.bits_per_s == pytest.approx(bits)
    assert link.rtt_s == pytest.approx(seconds)
    assert str(link) == text


def test_loopback_is_a_link() -> None:
    assert parse_link("Loopback").rtt_s < 0.001


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "100Mbit",
        "100/20",
        "100Mbit/20",
        "-1Mbit/20ms",
        "0Mbit/20ms",
        "999kbit/-1ms",
        "nanGbit/1ms",
        "1e9Gbit/1ms",
        "11Tbit/1ms",
        "1Mbit/61s",
        "1Mbit/20ms/3",
        "9" * 100 + "Mbit/1ms",
    ],
)
def test_no_link(text: str) -> None:
    with pytest.raises(UsageError):
        parse_link(text)


def test_a_small_answer_takes_the_connection_and_a_round_trip() -> None:
    for trips in (1, 2):
        pipe = Pipe(LINK, trips)
        (end,) = arrive(pipe, pipe.request(1000))
        assert end == pytest.approx((trips + 1) * RTT + 1000 / RATE)
        (again,) = arrive(pipe, pipe.request(1000, 0.5))
        assert again - end == pytest.approx(0.5 + RTT + 1000 / RATE)


def test_an_answer_grows_by_a_window_in_each_round_trip() -> None:
    pipe = Pipe(LINK)
    (end,) = arrive(pipe, pipe.request(FIRST_WINDOW * 3.5))
    # One window, two windows, and half a window at the full rate.
    assert end == pytest.approx(2 * RTT + 2 * RTT + FIRST_WINDOW / 2 / RATE)


def test_a_large_answer_fills_the_link() -> None:
    size = 100e6
    pipe = Pipe(LINK)
    (end,) = arrive(pipe, pipe.request(size))
    assert size / RATE < end < size / RATE + 12 * RTT


def test_a_pause_makes_a_connection_slow_again() -> None:
    def second(pause_s: float) -> float:
        pipe = Pipe(LINK)
        arrive(pipe, pipe.request(10e6))
        assert pipe.step(pipe.now + pause_s) is None
        began = pipe.now
        return arrive(pipe, pipe.request(1e6))[0] - began

    assert second(0) < second(1) < second(60)
    assert second(60) == pytest.approx(second(600))


def test_two_answers_share_the_link() -> None:
    pipe = Pipe(LINK._replace(rtt_s=0.0))
    ends = arrive(pipe, pipe.request(1e6), pipe.request(3e6))
    assert ends == pytest.approx([2e6 / RATE, 4e6 / RATE])


def test_one_reader_may_be_slower_than_the_link() -> None:
    pipe = Pipe(LINK._replace(rtt_s=0.0), most=1e6)
    assert arrive(pipe, pipe.request(1e6))[0] == pytest.approx(1)


def test_a_step_stops_where_it_should() -> None:
    pipe = Pipe(LINK)
    transfer = pipe.request(10_000)
    transfer.wake = 5000
    assert pipe.step(RTT) is None
    assert pipe.now == RTT
    assert pipe.step(math.inf) is transfer
    assert transfer.arrived == 5000
    transfer.wake = 10_000
    assert pipe.step(math.inf) is transfer


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(1, 3_000_000)),
        min_size=1,
        max_size=8,
    )
)
def test_no_byte_comes_too_early(requests: list[tuple[float, int]]) -> None:
    pipe = Pipe(LINK)
    asked: dict[Transfer, float] = {}
    whole = 0
    for pause_s, size in requests:
        until = pipe.now + pause_s
        while transfer := pipe.step(until):
            pipe.finish(transfer)
            whole += round(transfer.size)
            assert pipe.now >= asked[transfer] + RTT
        asked[pipe.request(size)] = pipe.now
    waiting = [transfer for transfer in asked if transfer.arrived < transfer.size]
    ends = arrive(pipe, *waiting)
    assert all(end >= asked[t] + RTT for end, t in zip(ends, waiting, strict=True))
    assert sum(size for _, size in requests) <= RATE * pipe.now + 1

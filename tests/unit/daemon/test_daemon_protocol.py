# SPDX-License-Identifier: Apache-2.0
"""Messages between supervisor and fetcher over a real socket pair."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from firstread.daemon.protocol import (
    MOST_REQUESTS,
    Order,
    receive_answered,
    receive_requests,
    send_answered,
    send_order,
    send_requests,
)
from firstread.device.base import Read

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The supervisor's and the fetcher's end."""
    supervisor, fetcher = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fetcher.settimeout(5)
    with supervisor, fetcher:
        yield supervisor, fetcher


def request(number: int, fd: int) -> Read:
    return Read(number, 4321, 1 << 40, 4096, fd)


def take(fetcher: socket.socket) -> Read:
    received = receive_requests(fetcher)
    assert isinstance(received, list)
    (read,) = received
    return read


def test_a_request_arrives_with_a_descriptor_of_its_own(pair: Pair) -> None:
    fd = os.memfd_create("sector")
    os.write(fd, b"content")
    send_requests(pair[0], [request(57, fd)])
    os.close(fd)
    received = take(pair[1])
    assert received == request(57, received.fd)
    assert os.pread(received.fd, 7, 0) == b"content"
    assert not os.get_inheritable(received.fd)
    os.close(received.fd)


def test_a_burst_arrives_in_one_message(pair: Pair) -> None:
    fds = [os.memfd_create(str(number)) for number in range(MOST_REQUESTS)]
    sent = [request(fd, fd)._replace(sector_id=bytes([fd]) * 32) for fd in fds]
    send_requests(pair[0], sent)
    received = receive_requests(pair[1])
    assert isinstance(received, list)
    assert [read._replace(fd=read.number) for read in received] == sent
    for fd in (*fds, *(read.fd for read in received)):
        os.close(fd)


def test_orders_come_between_requests(pair: Pair) -> None:
    fd = os.memfd_create("sector")
    send_order(pair[0], "inform", supervisor={"pid": 5})
    send_requests(pair[0], [request(0, fd)])
    send_order(pair[0], "retire")
    assert receive_requests(pair[1]) == Order("inform", {"supervisor": {"pid": 5}})
    os.close(take(pair[1]).fd)
    assert receive_requests(pair[1]) == Order("retire", {})
    os.close(fd)


def test_answers_and_heartbeats(pair: Pair) -> None:
    send_answered(pair[1], [5, 7, 1_000_000])
    send_answered(pair[1])
    assert receive_answered(pair[0]) == [5, 7, 1_000_000]
    assert receive_answered(pair[0]) == []
    pair[1].close()
    assert receive_answered(pair[0]) is None


def test_what_a_dead_supervisor_has_sent_still_arrives(pair: Pair) -> None:
    send_requests(pair[0], [request(1, 0)])
    send_requests(pair[0], [request(2, 0)])
    pair[0].close()
    received = [take(pair[1]), take(pair[1])]
    assert [one.number for one in received] == [1, 2]
    assert receive_requests(pair[1]) is None
    for one in received:
        os.close(one.fd)


def test_it_arrives_also_if_the_supervisor_had_not_read_all_answers(pair: Pair) -> None:
    """Then the kernel reports a reset, once, and before what was sent."""
    send_requests(pair[0], [request(1, 0)])
    send_answered(pair[1], [99])
    pair[0].close()
    received = take(pair[1])
    assert received.number == 1
    assert receive_requests(pair[1]) is None
    os.close(received.fd)


def test_a_read_whose_descriptor_found_no_room_is_sent_again(pair: Pair) -> None:
    send_requests(pair[0], [request(8, 0)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        lost = take(pair[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (lost.number, lost.fd) == (8, -1)
    send_answered(pair[1], [~lost.number])
    assert receive_answered(pair[0]) == [~8]
    send_requests(pair[0], [request(8, 0)])
    received = take(pair[1])
    assert received.number == 8
    os.close(received.fd)


@pytest.mark.parametrize("data", [b"ab", b"abcde", b"x" * 1001])
def test_a_fetcher_that_sends_nonsense_counts_as_gone(pair: Pair, data: bytes) -> None:
    pair[1].send(data)
    assert receive_answered(pair[0]) is None

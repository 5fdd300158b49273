# SPDX-License-Identifier: Apache-2.0
"""A workload is ready once: by an answer or a line; or its time is up."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from firstread.errors import UsageError
from firstread.run.readiness import MAX_LINE, Conditions, Readiness, parse_pattern, parse_url
from firstread.testing.patience import PATIENCE_S
from firstread.testing.serving import serving


class Watched:
    """A wait that a test can wait for."""

    def __init__(self, conditions: Conditions) -> None:
        self._called = threading.Event()
        self.calls = 0
        self.readiness = Readiness(conditions, self._over)
        self.readiness.start()

    def _over(self) -> None:
        self.calls += 1
        self._called.set()

    def end(self) -> bool:
        """Return whether the workload was ready, once it is over."""
        assert self._called.wait(PATIENCE_S)
        self.readiness.close()
        assert self.calls == 1
        assert self.readiness.over_ns is not None
        return self.readiness.ready


def line(pattern: str) -> Watched:
    return Watched(Conditions(line=parse_pattern(pattern)))


def test_a_line_in_pieces_is_one() -> None:
    watched = line("^ready on [0-9]+$")
    watched.readiness.look(1, b"is it ready on 80?\nread")
    watched.readiness.look(2, b"ready on x\n")
    watched.readiness.look(1, b"y on 80")
    assert not watched.readiness.ready
    watched.readiness.look(1, b"80\r\nmore\n")
    assert watched.end()


def test_either_stream_counts() -> None:
    watched = line("up")
    watched.readiness.look(2, b"up\n")
    assert watched.end()


def test_only_the_beginning_of_a_long_line_is_matched() -> None:
    watched = line("needle")
    watched.readiness.look(1, b"x" * MAX_LINE + b"needle\n")
    for _ in range(3):
        watched.readiness.look(1, b"x" * MAX_LINE)
    watched.readiness.look(1, b"needle\n")
    assert not watched.readiness.ready
    watched.readiness.look(1, b"needle\n")
    assert watched.end()


def test_time_that_is_up_is_not_ready() -> None:
    assert not Watched(Conditions(line=parse_pattern("never"), seconds=0.01)).end()


def test_a_workload_that_has_ended_is_not_waited_for() -> None:
    watched = line("x")
    watched.readiness.close()
    watched.readiness.look(1, b"x\n")
    assert (watched.readiness.ready, watched.readiness.over_ns, watched.calls) == (False, None, 0)


class _Handler(http.server.BaseHTTPRequestHandler):
    statuses: Iterator[int]

    def do_GET(self) -> None:
        self.send_response(next(self.statuses))
        self.send_header("Location", "/")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_only_success_is_an_answer() -> None:
    asked = []

    def statuses() -> Iterator[int]:
        for status in (503, 302, 404, 204):
            asked.append(status)
            yield status

    _Handler.statuses = statuses()
    with serving(http.server.HTTPServer(("127.0.0.1", 0), _Handler)) as server:
        assert Watched(Conditions(url=f"http://127.0.0.1:{server.server_port}/")).end()
    assert asked == [503, 302, 404, 204]


@pytest.mark.parametrize("text", ["8080", "ftp://a/", "http://", "http://[", "/healthz"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not the URL of a server"):
        parse_url(text)


@pytest.mark.parametrize("text", ["(", "a**", "\udcff", "a{99999999999}"])
def test_other_patterns_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a regular expression"):
        parse_pattern(text)

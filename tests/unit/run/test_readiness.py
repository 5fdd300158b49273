# SPDX-License-Identifier: Apache-2.0
"""A workload is ready once: by an answer or a line; or its time is up."""

from __future__ import annotations

import http.server
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.errors import UsageError
from firstread.run.probes import parse_command, parse_url
from firstread.run.readiness import MAX_LINE, Conditions, Readiness, parse_pattern
from firstread.testing.patience import PATIENCE_S
from firstread.testing.serving import QuietHandler, serving


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


class _Handler(QuietHandler):
    statuses: Iterator[int]

    def do_GET(self) -> None:
        self.send_response(next(self.statuses))
        self.send_header("Location", "/")
        self.end_headers()


def test_only_success_is_an_answer() -> None:
    asked = []

    def statuses() -> Iterator[int]:
        for status in (503, 302, 404, 204):
            asked.append(status)
            yield status

    _Handler.statuses = statuses()
    with serving(http.server.HTTPServer(("127.0.0.1", 0), _Handler)) as server:
        assert Watched(Conditions(parse_url(f"http://127.0.0.1:{server.server_port}/"))).end()
    assert asked == [503, 302, 404, 204]


def test_a_command_is_run_until_it_exits_with_0(tmp_path: Path) -> None:
    up = tmp_path / "it is up"
    ask = f'sh -c \'echo asked >> "$1"/asked; test -e "$1"/it*up\' sh {shlex.quote(str(tmp_path))}'
    watched = Watched(Conditions(parse_command(ask)))
    asked = tmp_path / "asked"
    while not asked.exists() or len(asked.read_text().splitlines()) < 3:
        time.sleep(0.01)
    assert not watched.readiness.ready
    up.touch()
    assert watched.end()


def test_a_command_that_nobody_waits_for_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.touch()
    ask = f"sh -c 'sleep 1000 & echo $$ $! > {pids}; wait'"
    readiness = Readiness(Conditions(parse_command(ask)), lambda: None)
    readiness.start()
    while not pids.read_text().endswith("\n"):
        time.sleep(0.01)
    readiness.close()
    told = list(map(int, pids.read_text().split()))
    assert len(told) == 2
    until = time.monotonic() + PATIENCE_S  # a process that is killed ends a little later
    while any(map(runs, told)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(runs, told))


def runs(pid: int) -> bool:
    """Return whether a process runs that may be a zombie, because it is not our child."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_time_is_up_for_a_command_that_does_not_end() -> None:
    assert not Watched(Conditions(parse_command("sleep 1000"), seconds=0.05)).end()


@pytest.mark.parametrize("text", ["", " ", "/nosuch/program ping", "'redis-cli", "a\0b"])
def test_other_commands_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no program of this machine|is not a command"):
        parse_command(text)


def test_a_program_that_the_kernel_does_not_run_is_named(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF, or not")
    program.chmod(0o755)
    with pytest.raises(UsageError, match=f"cannot run '{program}': Exec format error"):
        parse_command(str(program)).succeeds(1.0, threading.Event())


@pytest.mark.parametrize("text", ["8080", "ftp://a/", "http://", "http://[", "/healthz"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not the URL of a server"):
        parse_url(text)


@pytest.mark.parametrize("text", ["(", "a**", "\udcff", "a{99999999999}"])
def test_other_patterns_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a regular expression"):
        parse_pattern(text)

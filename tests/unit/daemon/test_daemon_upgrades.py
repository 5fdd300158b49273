# SPDX-License-Identifier: Apache-2.0
"""What a supervisor answers on its private socket, in each phase of an upgrade."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from firstread.daemon import rendezvous, succession, upgrades
from firstread.daemon.rendezvous import Rendezvous
from firstread.daemon.succession import READY, YOURS, accept, claim, connect
from firstread.daemon.upgrades import Phase, Reply, reply_to

REPLACE = {"ask": "replace", "root": "/root"}


def reply(asked: dict[str, Any], phase: Phase = Phase.NONE, *, is_service: bool = False) -> Reply:
    return reply_to(asked, phase, "/root", is_service=is_service)


@pytest.mark.parametrize("asked", [{}, {"ask": "all"}, {"ask": 5}, {"root": "/root"}])
def test_a_question_without_sense_is_not_answered(asked: dict[str, Any]) -> None:
    assert reply(asked) == Reply()


@pytest.mark.parametrize("phase", [Phase.REHEARSES, Phase.LOADS, Phase.GIVES])
@pytest.mark.parametrize("ask", ["reload", "replace"])
def test_one_upgrade_at_a_time(phase: Phase, ask: str) -> None:
    said = reply({"ask": ask, "root": "/root"}, phase)
    assert (said.does, said.error) == ("", "an upgrade is under way already")


def test_a_reload_is_done_also_for_a_service() -> None:
    assert reply({"ask": "reload"}) == Reply(does="reload")
    assert reply({"ask": "reload"}, is_service=True) == Reply(does="reload")


def test_another_process_takes_the_place_of_its_own_root_only_and_of_no_service() -> None:
    assert reply(REPLACE) == Reply(does="replace")
    assert "has the --root /root" in reply(REPLACE | {"root": "/other"}).error
    assert "belongs to a service manager" in reply(REPLACE, is_service=True).error


def test_a_question_during_a_reload_is_heard_by_the_next_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Rendezvous(str(tmp_path))
    assert before.door == -1
    with (tmp_path / "lock").open("w+b") as lock:
        monkeypatch.setattr(rendezvous, "LOCK_FD", lock.fileno())
        first = before.complete()
        assert first is not None
        assert before.complete() is None, "it is given out once"
        knocking = connect(str(tmp_path))
        assert knocking is not None
        after = Rendezvous(str(tmp_path), os.dup(before.door))
        first.close()  # as by execve(2)
        listener = after.complete()
        assert listener is not None
        heard = accept(listener)
    assert heard is not None
    for each in (knocking, heard, listener):
        each.close()


def test_a_fetcher_that_begins_to_serve_does_not_end_a_rehearsal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers commands a moment before its first heartbeat, and one may be a reload."""
    rehearsal = Mock(outcome=Mock(return_value=None))
    monkeypatch.setattr(upgrades, "Rehearsal", lambda _: rehearsal)
    settings, fetchers = Mock(run_dir=str(tmp_path)), Mock(standby=None)
    made = upgrades.Upgrades(settings, Mock(), fetchers, Mock())
    monkeypatch.setattr(made, "listen", lambda: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.setblocking(False)
        made._rehearse(theirs)
        made.conclude()
        made.keep()
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        rehearsal.outcome.return_value = "wrong"
        made.keep()
        assert b"does not start: wrong" in ours.recv(4096)


class Late(socket.socket):
    """A socket on which a message comes just behind the time for it."""

    is_late = True

    def recv(self, *arguments: int) -> bytes:
        if self.is_late:
            self.is_late = False
            raise TimeoutError
        return super().recv(*arguments)


def test_a_successor_that_hears_late_that_it_has_the_place_takes_it() -> None:
    """Its predecessor has ended, so otherwise nobody would serve."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, Late(fileno=ours.detach()) as late:
        theirs.send(YOURS)
        assert claim(late, os.getpid())


def test_a_predecessor_hears_that_its_successor_has_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(succession, "TURN_S", 0.05)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert not claim(ours, os.getpid())
        assert theirs.recv(64) == READY
        with pytest.raises(BrokenPipeError):
            theirs.send(YOURS)

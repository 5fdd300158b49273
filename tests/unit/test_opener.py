# SPDX-License-Identifier: Apache-2.0
"""Opening files that another process holds up; an event stands for it."""

from __future__ import annotations

import queue
import threading
import time

import pytest

from firstread.errors import BusyError, NodeError
from firstread.opener import HeldUpError, Opener
from firstread.testing.patience import PATIENCE_S
from firstread.testing.shortage import no_threads


def fails() -> None:
    raise NodeError("no such file")


def test_opened_files_are_given() -> None:
    opener = Opener("test", PATIENCE_S)
    assert opener.do(lambda: 7) == 7
    with pytest.raises(NodeError, match="no such file"):
        opener.do(fails)
    assert opener.do(lambda: None) is None


def test_a_client_is_held_up_no_longer_than_the_patience() -> None:
    opener, may, late = Opener("test", 0.01, 0.01), threading.Event(), queue.Queue[int]()

    def held_up() -> int:
        assert may.wait(PATIENCE_S)
        return 7

    with pytest.raises(HeldUpError):
        opener.do(held_up, late.put)
    assert opener.is_held_up
    ran: list[int] = []
    with pytest.raises(HeldUpError):  # at once, and it is not done later
        opener.do(lambda: ran.append(1))
    may.set()
    assert late.get(timeout=PATIENCE_S) == 7  # nobody else would close it
    patient = threading.Event()
    while opener.is_held_up:
        patient.wait(0.001)
    assert opener.do(lambda: 8) == 8
    assert ran == []


def test_what_takes_long_though_nobody_is_in_the_way_is_waited_for() -> None:
    """As on a machine that is busy, or was suspended."""
    opener = Opener("test", 0.01)

    def slow() -> int:
        time.sleep(0.1)
        return 7

    assert opener.do(slow) == 7
    assert not opener.is_held_up


def test_without_a_thread_it_is_tried_again() -> None:
    opener = Opener("test")
    with no_threads(), pytest.raises(BusyError, match="no more threads"):
        opener.do(lambda: 7)
    assert opener.do(lambda: 7) == 7

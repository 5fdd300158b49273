# SPDX-License-Identifier: Apache-2.0
"""Which reads have lost their reader, told by real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from firstread.cache.pending import PendingRead
from firstread.fetch.readers import gone, look_at, may_have_read, sees_processes
from firstread.testing.patience import PATIENCE_S

_THREADS = """
import os, sys, threading
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
os.execv(sys.executable, [sys.executable, "-c", "print('again', flush=True); input()"])
"""


class Child:
    """A process with four threads that has one after a line on its stdin."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _THREADS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.line()

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def execute(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.line() == "again"


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.process.kill()
    child.process.communicate(timeout=PATIENCE_S)


def reads(pid: int, count: int, came: float | None = None) -> list[PendingRead]:
    """Return reads of a process, one after the other."""
    first = time.monotonic() if came is None else came
    return [PendingRead(n, pid, 0, 4096, -1, first + n / 1e6) for n in range(count)]


def test_reads_of_a_process_that_lives_are_kept(child: Child) -> None:
    assert gone(reads(child.pid, 4)) == set()


def test_reads_of_a_process_that_was_killed_are_gone_before_it_is_buried(child: Child) -> None:
    waiting = reads(child.pid, 4)
    child.process.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert gone(waiting) == set(waiting)
    child.process.wait(timeout=PATIENCE_S)
    assert gone(waiting) == set(waiting)


def test_no_more_reads_wait_than_there_are_threads(child: Child) -> None:
    """An execve ends the other threads, with the reads in which they waited."""
    waiting = reads(child.pid, 4)
    child.execute()
    later = reads(child.pid, 1)
    assert gone([*later, *waiting]) == set(waiting)


def test_a_process_that_has_the_number_later_is_not_the_reader(child: Child) -> None:
    reader = look_at(child.pid)
    assert reader is not None
    before = reads(child.pid, 2, reader.started - 1.0)
    assert gone(before) == set(before)


def test_an_invisible_reader_lives() -> None:
    assert gone(reads(0, 100)) == set()


def test_the_start_of_a_reader(child: Child) -> None:
    reader = look_at(child.pid)
    assert reader is not None
    assert reader.threads == 4
    assert may_have_read(child.pid, reader.started + 1)
    assert not may_have_read(child.pid, reader.started - 1)
    assert not may_have_read(0, time.monotonic())
    assert sees_processes()

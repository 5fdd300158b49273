# SPDX-License-Identifier: Apache-2.0
"""Children of a supervisor, which handles signals itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstread.daemon import process
from firstread.daemon.process import Process, why_broken
from firstread.testing.patience import PATIENCE_S
from firstread.testing.shortage import few_descriptors

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that this process handles."""
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, before)


def test_a_signal_ends_a_child_that_does_not_execute_yet(
    heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that is told to end ends the fetcher that it has just started."""
    execute = process._execute

    def signalled(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        execute(*arguments)

    monkeypatch.setattr(process, "_execute", signalled)
    child = Process.start(SLEEPS)
    try:
        until = time.monotonic() + PATIENCE_S
        while not child.ended() and time.monotonic() < until:
            time.sleep(0.01)
        assert child.code == -signal.SIGTERM
    finally:
        child.signal(signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]  # ours, and its handler is here still


def test_a_child_that_cannot_be_watched_does_not_stay() -> None:
    """A fetcher without a supervisor would become a second one."""
    before = children()
    with few_descriptors(os.getpid()), pytest.raises(OSError, match="Too many open files"):
        Process.start(SLEEPS)
    assert children() <= before, "those of other tests may end meanwhile"


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


def test_an_installation_is_looked_at_while_processes_are_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert why_broken("firstread.units") == ""
    assert why_broken("firstread.nonsense") == "the installation of firstread is broken"

    def short(*_: Any, **__: Any) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "run", short)
    assert why_broken("firstread.units") == "Resource temporarily unavailable"

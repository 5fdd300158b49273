# SPDX-License-Identifier: Apache-2.0
"""Tells when a workload is ready: a probe succeeds, a line is printed, or a time has passed.

Owns the conditions and the thread that asks; `firstread.run.probes` has the single question. Does
not start or stop a container. Invariant: a workload becomes ready once; a line is cut before it is
matched, so that what a container prints costs bounded time and memory for each byte.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from firstread.errors import UsageError
from firstread.run.probes import POLL_S, Probe

MAX_LINE = 4096  # bytes of a line that are matched
_FOREVER_S = 1e6  # a lock waits no longer than threading.TIMEOUT_MAX
_GIVE_UP_S = 1.0  # for a question that nobody wants answered


@dataclass(frozen=True, slots=True)
class Conditions:
    """The user's wishes for the end of a start; without any the workload's own end is one.

    Args:
        probe: that has to succeed.
        line: that some line of output has to match.
        seconds: after which the start ends in any case.
    """

    probe: Probe | None = None
    line: re.Pattern[bytes] | None = None
    seconds: float | None = None

    @property
    def show_ready(self) -> bool:
        """Whether they say when a workload is ready."""
        return self.probe is not None or self.line is not None

    def __bool__(self) -> bool:
        return self.show_ready or self.seconds is not None


def parse_pattern(text: str) -> re.Pattern[bytes]:
    """Return a pattern for lines of output.

    Raises:
        UsageError: it is not a regular expression.
    """
    try:
        return re.compile(text.encode())
    except (re.error, UnicodeEncodeError, OverflowError, RecursionError) as exc:
        raise UsageError(f"{text!r} is not a regular expression: {exc}") from exc


class Readiness:
    """Waits for one workload.

    Args:
        conditions: at least one.
        on_over: called once, in a thread of its own, when the workload is ready or its time is up.

    Attributes:
        ready: whether it was ready.
        over_ns: when it was ready or its time was up, by `time.monotonic_ns`; None before.
    """

    def __init__(self, conditions: Conditions, on_over: Callable[[], None]) -> None:
        self.ready = False
        self.over_ns: int | None = None
        self._conditions, self._on_over = conditions, on_over
        self._tails = {1: b"", 2: b""}  # of lines that have not ended, by descriptor
        self._lock = threading.Lock()  # of what becomes of the wait
        self._wake = threading.Event()  # it is over, or nobody waits any more
        self._thread = threading.Thread(target=self._wait, name="readiness", daemon=True)

    def start(self) -> None:
        """Begin to ask, since the workload runs."""
        self._thread.start()

    def close(self) -> None:
        """Ask no more, since the workload has ended. If it is over, `on_over` has returned."""
        with self._lock:
            self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_GIVE_UP_S if self.over_ns is None else None)

    def look(self, number: int, content: bytes) -> None:
        """See a piece of output: a `firstread.run.streams.Look`."""
        if self._conditions.line is None or self._wake.is_set():
            return
        *lines, tail = (self._tails[number] + content).split(b"\n")
        self._tails[number] = tail[:MAX_LINE]
        if any(self._conditions.line.search(line[:MAX_LINE].rstrip(b"\r")) for line in lines):
            self._end(ready=True)

    def _end(self, *, ready: bool) -> None:
        with self._lock:
            if not self._wake.is_set():
                self.ready, self.over_ns = ready, time.monotonic_ns()
                self._wake.set()

    def _wait(self) -> None:
        probe, seconds = self._conditions.probe, self._conditions.seconds
        deadline = time.monotonic() + (seconds if seconds is not None else _FOREVER_S)
        while not self._wake.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                self._end(ready=False)
            elif probe is not None and self._succeeds(probe, left):
                self._end(ready=True)
            else:
                self._wake.wait(min(left, POLL_S if probe is not None else left))
        if self.over_ns is not None:
            self._on_over()

    def _succeeds(self, probe: Probe, most_s: float) -> bool:
        try:
            return probe.succeeds(most_s, self._wake)
        except UsageError:  # it could be asked before the container ran
            return False

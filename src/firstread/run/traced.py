# SPDX-License-Identifier: Apache-2.0
"""A container on a traced mount, from its start until it is ready.

Owns what ends the start, and what the trace says of it. Invariant: the container and the traced
mount are gone when `trace_container` returns or raises.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from firstread.errors import FirstreadError
from firstread.readable import is_readable
from firstread.run.containers import ContainerStore, Record
from firstread.run.control import stop_container
from firstread.run.lifecycle import run_container
from firstread.run.options import RunOptions
from firstread.run.processes import open_process
from firstread.run.readiness import Conditions, Readiness
from firstread.run.tracer import Tracer
from firstread.traces.sectorreads import SectorRead

_log = logging.getLogger(__name__)

STOP_SECONDS = 2.0  # between the stop signal and SIGKILL: the container is thrown away
INTERRUPTIONS = {1, 2, 3, 15}  # SIGHUP, SIGINT, SIGQUIT, SIGTERM


class TracedStart(NamedTuple):
    """A start that was traced.

    Args:
        reads: until it was over.
        read_ahead_kib: of the mount.
        ready_us: when the workload was ready; None if it was not, or nobody can say.
        code: exit code of the container.
        stopped: its conditions have ended it, rather than its own end.
        signal: that interrupted it, or None.
    """

    reads: list[SectorRead]
    read_ahead_kib: int
    ready_us: int | None
    code: int
    stopped: bool
    signal: int | None


def trace_container(
    tracer: Tracer,
    config: Mapping[str, object],
    options: RunOptions,
    store: ContainerStore,
    record: Record,
    conditions: Conditions,
    on_unused: Callable[[], None],
) -> TracedStart:
    """Run a container on a traced mount until its conditions hold, or it ends.

    Args:
        tracer: of a mount below the container's directory, so that ``rm`` would unmount it; closed
            afterwards.
        config: the image's OCI configuration, decoded.
        options: of the user; the container is not detached, and removed.
        store: of the container.
        record: of the container.
        conditions: perhaps none.
        on_unused: as for `run_container`.

    Raises:
        FirstreadError: as `run_container`; or the reads could not be traced.
    """
    course = _Course(store, record, conditions)

    def unused() -> None:
        tracer.close()
        on_unused()

    tracer.begin()
    try:
        code = run_container(
            tracer.mountpoint,
            config,
            options,
            store.state_dir,
            record=record,
            on_start=course.started,
            on_output=course.readiness.look,
            on_signal=course.interruption.note,
            on_unused=unused,
        )
    finally:
        course.readiness.close()
    return course.traced(tracer, code)


class _Course:
    """The way of a container from its start to its end.

    Args:
        store: of the container.
        record: of the container.
        conditions: that end its start; perhaps none.
    """

    def __init__(self, store: ContainerStore, record: Record, conditions: Conditions) -> None:
        self._store, self._record, self._conditions = store, record, conditions
        self.readiness = Readiness(conditions, self._stop)
        self.interruption = _Interruption(self._stop)
        self._ended_ns: int | None = None
        self._watch = threading.Thread(target=self._note_end, daemon=True)

    def started(self, record: Record) -> None:
        """Note that the container runs."""
        self._record = record
        self.interruption.started()
        self._watch.start()
        if self._conditions:
            self.readiness.start()

    def _stop(self) -> None:
        try:
            stop_container(self._store, self._record, STOP_SECONDS)
        except FirstreadError as exc:
            _log.warning("%s", exc)

    def _note_end(self) -> None:
        """Note when the container's first process ends: the cleanup takes longer."""
        process = self._record.process
        pidfd = open_process(process) if process else None
        if pidfd is not None:
            is_readable(pidfd, None)
            self._ended_ns = time.monotonic_ns()
            os.close(pidfd)

    def traced(self, tracer: Tracer, code: int) -> TracedStart:
        """Return what the trace says of the container, which has ended with `code`."""
        self._watch.join()
        over_ns, signal = self.readiness.over_ns, self.interruption.signal
        ready = self.readiness.ready
        if over_ns is None:
            ready = not code and signal is None and not self._conditions.show_ready
        end_us = tracer.since_us(over_ns or self._ended_ns or time.monotonic_ns())
        return TracedStart(
            reads=tracer.reads(end_us),
            read_ahead_kib=tracer.read_ahead_kib,
            ready_us=end_us if ready else None,
            code=code,
            stopped=over_ns is not None,
            signal=signal,
        )


class _Interruption:
    """The first signal that interrupts the command: it stops the container, which may ignore it.

    Args:
        stop: stops the container; called once, in a thread of its own, when there is one.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self.signal: int | None = None
        self._stop = stop
        self._is_running = False

    def note(self, number: int) -> None:
        if self.signal is None and number in INTERRUPTIONS:
            self.signal = number
            self._act()

    def started(self) -> None:
        self._is_running = True
        self._act()

    def _act(self) -> None:
        if self._is_running and self.signal is not None:
            threading.Thread(target=self._stop, daemon=True).start()

# SPDX-License-Identifier: Apache-2.0
"""Keeps a fetcher alive, and replaces it by another one.

Owns the fetcher that has the reads, the one that stands by, the channels to both, and our view of
their tables of readable sizes. `firstread.daemon.life` decides what happens to them, and when.
Invariant: one fetcher at a time has the reads, and it gets all that wait.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Protocol

from firstread import __version__
from firstread.daemon.events import Events
from firstread.daemon.handover import FIXED, Handover, Settings, write_document
from firstread.daemon.kept import Kept
from firstread.daemon.life import RETIRE_S, Life, Stage, Starts, Step, next_step
from firstread.daemon.loop import Loop
from firstread.daemon.process import Process
from firstread.daemon.protocol import (
    WIRE_VERSION,
    Drop,
    Keep,
    receive_answered,
    send_held,
    send_order,
    send_requests,
)
from firstread.device.base import Read
from firstread.device.sizes import Looks, make_table

log = logging.getLogger("supervisor")

_END_S = 10.0  # for a fetcher to end when the daemon does
_SOON_S = 0.01  # for one to end that has hung up
_CALM_S = 1.0


class Witness(Protocol):
    """Hears what becomes of fetchers."""

    def fetcher_serves(self) -> None:
        """The fetcher that has the reads works."""

    def standby_lost(self, reason: str) -> None:
        """The standby fetcher has ended or could not start."""


class FetcherProcess:
    """A fetcher, our end of the channel to it, and its table of readable sizes.

    Args:
        process: it.
        channel: a SOCK_SEQPACKET socket; see `firstread.daemon.protocol`.
        life: of it.
        looks: our view of its table; None for a fetcher that we have adopted.
    """

    def __init__(
        self, process: Process, channel: socket.socket, life: Life, looks: Looks | None = None
    ) -> None:
        self.process = process
        self.channel: socket.socket | None = channel  # None once it has hung up
        self.life = life
        self.looks = looks
        channel.setblocking(False)

    def send(self, reads: Sequence[Read]) -> bool:
        """Give it reads; False if it has no room for them now, or will never have."""
        if self.channel is None:
            return False
        try:
            send_requests(self.channel, reads)
        except OSError:
            return False  # the channel is full, or it is dead and the next one gets it
        return True

    def tell(self, what: str, **details: object) -> bool:
        """Give it an order; False if there is no room for it now."""
        if self.channel is not None:
            try:
                send_order(self.channel, what, **details)
            except OSError:
                return False
        return True

    def pass_on(self, word: Keep | Drop) -> bool:
        """Tell it of a mount's descriptors; False if there is no room for that now."""
        if self.channel is not None:
            try:
                send_held(self.channel, word)
            except OSError:
                return False
        return True


class Fetchers:
    """The fetcher that has the reads, and the one that stands by.

    Args:
        settings: for both.
        loop: watches their channels.
        events: get answered by them.
        handover: of the previous supervisor.
        witness: hears what becomes of them.
    """

    def __init__(
        self, settings: Settings, loop: Loop, events: Events, handover: Handover, witness: Witness
    ) -> None:
        self.starts = Starts(handover.restarts)
        self.current: FetcherProcess | None = None
        self.standby: FetcherProcess | None = None
        self.heard = time.monotonic()  # from any of them
        self._settings, self._loop, self._events, self._witness = settings, loop, events, witness
        self.upgrades = handover.upgrades
        self.kept = Kept(handover.kept)

    def identity(self) -> dict[str, str | int]:
        """Return what ``firstread status --json`` tells of the supervisor."""
        return {"pid": os.getpid(), "version": __version__, "upgrades": self.upgrades}

    def own_pids(self) -> set[int]:
        """Return the process numbers whose own reads nobody has to answer."""
        both = (self.current, self.standby)
        return {os.getpid(), *(fetcher.process.pid for fetcher in both if fetcher)}

    def are_answering(self) -> bool:
        """Return whether there is one that may answer what it has."""
        return self.current is not None and self.current.channel is not None

    def patience_s(self) -> float:
        """Return how long nothing needs to be done."""
        if self.current is None:
            return self.starts.pause_s
        return _CALM_S if self.current.channel is not None else _SOON_S

    def excuse(self, late_s: float) -> None:
        """Forgive both a silence during which we did not run."""
        for fetcher in (self.current, self.standby):
            if fetcher is not None:
                fetcher.life.beat += late_s

    # -- steps that `life` decides -------------------------------------------------------------

    def keep(self) -> None:
        """Do whatever is due."""
        while (step := self._next_step()) is not None:
            if not self._do(step):
                return

    def _next_step(self) -> Step | None:
        for fetcher in (self.current, self.standby):
            if fetcher is not None:
                fetcher.life.ended = fetcher.process.ended()
        current, standby = (f.life if f else None for f in (self.current, self.standby))
        return next_step(time.monotonic(), current, standby, self.starts, self._settings.health_s)

    def _do(self, step: Step) -> bool:
        """Do one step; return whether another one may follow at once."""
        current, standby = self.current, self.standby
        if step is Step.GIVE_UP:
            log.critical("no fetcher starts: giving up")
            self._loop.stopping = True
            return False
        if step is Step.START:
            return self._start()
        if step is Step.BURY and current is not None:
            self._bury(current)
        elif step is Step.PROMOTE and standby is not None:
            self._promote(standby)
        elif step is Step.DISMISS and standby is not None:
            self._dismiss(standby)
        elif step is Step.KILL_STANDBY and standby is not None:
            standby.process.signal(signal.SIGKILL)
            return False
        elif step is Step.KILL and current is not None:
            log.error("fetcher %d does not answer: ending it", current.process.pid)
            current.process.signal(signal.SIGKILL)
            current.life.note_kill(time.monotonic())
            return False
        elif step is Step.RETIRE and current is not None:
            if current.tell("retire"):
                current.life.retire(time.monotonic() + RETIRE_S)
            return False
        return True

    def _start(self) -> bool:
        now = time.monotonic()
        self.starts.note_start(now)
        try:
            self.current = self._launch(Stage.STARTS)
        except OSError as exc:
            log.critical("cannot start a fetcher: %s", exc)
            self.starts.note_impossible()
            return False
        self._hand_over_all()
        return True

    def _bury(self, fetcher: FetcherProcess) -> None:
        while self._hear(fetcher):
            pass  # it may have told of a mount
        self.current = None
        self._hang_up(fetcher)
        if fetcher.life.stage is Stage.RETIRES:
            log.info("fetcher %d has retired", fetcher.process.pid)
            return
        log.error("fetcher %d ended with %s", fetcher.process.pid, fetcher.process.code)
        self.starts.note_end(fetcher.life, time.monotonic())

    def _promote(self, fetcher: FetcherProcess) -> None:
        """Give the reads to the fetcher that has waited for its turn."""
        self.current, self.standby = fetcher, None
        now = time.monotonic()
        fetcher.life.promote(now)
        self.starts.note_promotion(now)
        fetcher.tell("start", supervisor=self.identity(), restarts=self.starts.restarts)
        self._hand_over_all()

    def _dismiss(self, fetcher: FetcherProcess) -> None:
        self.standby = None
        self._hang_up(fetcher)
        code = fetcher.process.code
        self._witness.standby_lost(f"the new fetcher ended with {code}: the one before goes on")

    def end(self) -> None:
        """End both."""
        for fetcher in (self.standby, self.current):
            if fetcher is not None:
                fetcher.process.end(timeout_s=_END_S)

    # -- processes -----------------------------------------------------------------------------

    def _launch(self, stage: Stage) -> FetcherProcess:
        with contextlib.ExitStack() as given:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            given.enter_context(theirs)
            table, kept = make_table(), write_document("kept", self.kept.pairs)
            for fd in (table, kept):
                given.callback(os.close, fd)
            arguments = {
                "settings": vars(self._settings),
                "channel": theirs.fileno(),
                "sizes": table,
                "supervisor": self.identity(),
                "restarts": self.starts.restarts,
                "standby": stage is Stage.LOADS,
                "kept": kept,
            }
            command = [sys.executable, "-m", "firstread.daemon.serve", json.dumps(arguments)]
            looks = Looks(table)  # first: nobody would end a fetcher that is not known
            fds = (*FIXED.values(), theirs.fileno(), table, kept, *self.kept.numbers())
            process = Process.start(command, fds=fds)
        fetcher = FetcherProcess(process, ours, Life.begin(stage, time.monotonic()), looks)
        self.watch(fetcher)
        return fetcher

    def stand_by(self) -> None:
        """Start a standby fetcher."""
        try:
            self.standby = self._launch(Stage.LOADS)
        except OSError as exc:
            self._witness.standby_lost(f"the new fetcher cannot be started: {exc}")

    def adopt(self, handover: Handover) -> None:
        """Keep the fetcher of the previous supervisor, if it lives."""
        channel = socket.socket(fileno=handover.channel)
        try:
            process = Process(handover.fetcher)
        except OSError:
            channel.close()  # it has died meanwhile
            return
        life = Life.begin(Stage.SERVES, time.monotonic())
        self.current = fetcher = FetcherProcess(process, channel, life)
        self.starts.note_ready()
        self.watch(fetcher)
        if handover.wire != WIRE_VERSION:
            log.warning("the fetcher of firstread %s cannot be spoken with", handover.version)
            life.retire(-1.0)
        else:
            fetcher.tell("inform", supervisor=self.identity())

    # -- channels ------------------------------------------------------------------------------

    def watch(self, fetcher: FetcherProcess | None) -> None:
        """Listen to a fetcher; while reads are queued, also for room in its channel."""
        if fetcher is None or fetcher.channel is None:
            return
        has_more = fetcher is self.current and self._events.has_unsent()
        on_channel = functools.partial(self._on_channel, fetcher)
        self._loop.watch(fetcher.channel, on_channel, writes=has_more)

    def pause(self) -> None:
        """Stop listening to the fetcher: a successor may get the channel."""
        if self.current is not None and self.current.channel is not None:
            self._loop.forget(self.current.channel)

    def resume(self) -> None:
        """Listen again after `pause`."""
        if self.current is not None:
            self.current.life.beat = time.monotonic()
            self.watch(self.current)

    def _hand_over_all(self) -> None:
        self._events.send_all(self.current)
        self.watch(self.current)

    def _on_channel(self, fetcher: FetcherProcess, mask: int) -> None:
        if mask & selectors.EVENT_READ:
            self._hear(fetcher)
        if mask & selectors.EVENT_WRITE and fetcher is self.current:
            self._events.send(fetcher)
            self.watch(fetcher)

    def _hear(self, fetcher: FetcherProcess) -> bool:
        """Take a message; return whether there was one."""
        if fetcher.channel is None:
            return False
        try:
            said = receive_answered(fetcher.channel)
        except BlockingIOError:
            return False
        except OSError:
            said = None
        if said is None:
            self._hang_up(fetcher)
            self._loop.wake()
            return False
        self.heard = time.monotonic()
        if fetcher.life.speak(self.heard):
            self._loop.wake()
            if fetcher.life.stage is Stage.SERVES:
                self.starts.note_ready()
                self._witness.fetcher_serves()
        if isinstance(said, Keep | Drop):
            self._keep(said)
            return True
        self._events.answered(said)
        if self._events.has_unsent():
            self.watch(fetcher)
        return True

    def _keep(self, word: Keep | Drop) -> None:
        """Hold descriptors of a mount or close them, and tell a fetcher that stands by."""
        standby = self.standby
        if isinstance(word, Drop):
            self.kept.drop(word.device)
        elif word.pair is None:
            log.critical("a mount does not outlive its fetcher: too many files are open")
            self.kept.drop(word.device)
        elif self.kept.add(word.device, word.pair):
            word = Keep(word.device, self.kept.pairs[word.device])
        is_lost = isinstance(word, Keep) and word.device not in self.kept.pairs
        if standby is not None and (is_lost or not standby.pass_on(word)):
            log.critical("the new fetcher misses a mount: ending it")
            standby.process.signal(signal.SIGKILL)  # it would not serve it

    def _hang_up(self, fetcher: FetcherProcess) -> None:
        if fetcher.channel is not None:
            self._loop.forget(fetcher.channel)
            fetcher.channel.close()
            fetcher.channel = None
        if fetcher.looks is not None and fetcher is not self.current:
            fetcher.looks.close()
            fetcher.looks = None

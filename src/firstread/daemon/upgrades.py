# SPDX-License-Identifier: Apache-2.0
"""An upgrade: another version, or another process, takes over from this supervisor.

Owns its phase, and the connection that asked for it. `firstread.daemon.succession` has the
conversation, `firstread.daemon.handover` the document. Invariant: until the successor says that it
runs, this supervisor can continue as if nobody had asked.

=============  =========================================================================
``NONE``       no upgrade is under way
``REHEARSES``  the installed version tries itself; then this process executes it
``LOADS``      this process is the new version; its fetcher loads beside the old one
``GIVES``      a successor has everything; this process reads no more events
=============  =========================================================================
"""

from __future__ import annotations

import enum
import functools
import logging
import signal
import socket
import time
from typing import Any, NamedTuple

from firstread import __version__
from firstread.daemon import systemd
from firstread.daemon.events import Events
from firstread.daemon.fetchers import Fetchers
from firstread.daemon.handover import SIGNALS, Handover, Settings, hold_signals
from firstread.daemon.loop import Loop
from firstread.daemon.rehearsal import Rehearsal, become_next_version
from firstread.daemon.rendezvous import Rendezvous
from firstread.daemon.succession import READY, TURN_S, YOURS, accept, give, hear, say

log = logging.getLogger("supervisor")


class Phase(enum.Enum):
    """How far an upgrade is."""

    NONE = "none"
    REHEARSES = "rehearses"
    LOADS = "loads"
    GIVES = "gives"


class Reply(NamedTuple):
    """The decision about a question.

    Args:
        does: ``reload``, ``replace``, or "" for nothing.
        error: the answer; "" for none. Without both the connection is closed.
        hint: for the user.
    """

    does: str = ""
    error: str = ""
    hint: str | None = None


def reply_to(asked: dict[str, Any], phase: Phase, root: str, *, is_service: bool) -> Reply:
    """Decide about a question on the private socket.

    Args:
        asked: the question.
        phase: of the upgrade under way.
        root: of the store.
        is_service: a service manager runs this process.
    """
    if asked.get("ask") not in ("reload", "replace"):
        return Reply()
    if phase is not Phase.NONE:
        return Reply(error="an upgrade is under way already", hint="wait a moment")
    if asked["ask"] == "reload":
        return Reply(does="reload")
    if asked.get("root") != root:
        return Reply(error=f"the daemon here has the --root {root}")
    if is_service:
        return Reply(
            error="the daemon belongs to a service manager, which would lose it",
            hint="upgrade it in place: systemctl reload, or firstread daemon --reload",
        )
    return Reply(does="replace")


class Upgrades:
    """The upgrade under way, if any.

    Args:
        settings: of the daemon.
        loop: of the supervisor.
        fetchers: of the supervisor.
        events: of the supervisor.
        door: see `Handover`.
    """

    def __init__(
        self, settings: Settings, loop: Loop, fetchers: Fetchers, events: Events, door: int = -1
    ) -> None:
        self._settings, self._loop = settings, loop
        self._fetchers, self._events = fetchers, events
        self._rendezvous = Rendezvous(settings.run_dir, door)
        self._rehearsal: Rehearsal | None = None
        self._asker: socket.socket | None = None  # waits for the outcome of a reload
        self._successor: socket.socket | None = None
        self._until = 0.0  # that the successor may take

    @property
    def phase(self) -> Phase:
        """How far an upgrade is."""
        if self._rehearsal is not None:
            return Phase.REHEARSES
        if self._successor is not None:
            return Phase.GIVES
        return Phase.NONE if self._fetchers.standby is None else Phase.LOADS

    def listen(self) -> None:
        """Be found by others, as far as there is room for that by now."""
        listener = self._rendezvous.complete()
        if listener is not None:
            self._loop.watch(listener, functools.partial(self._on_connection, listener))

    def keep(self) -> None:
        """Do whatever is due."""
        self.listen()
        if self._loop.hangup and self.phase is Phase.NONE:
            self._loop.hangup = False
            self._rehearse(None)
        if self._rehearsal is not None:
            self._follow(self._rehearsal)
        if self._successor is not None and time.monotonic() > self._until:
            self._go_on("it has not become ready")

    # -- questions -----------------------------------------------------------------------------

    def _on_connection(self, listener: socket.socket, _: int) -> None:
        connection = accept(listener)
        if connection is not None:
            self._loop.watch(connection, functools.partial(self._on_question, connection))

    def _on_question(self, connection: socket.socket, _: int) -> None:
        self._loop.forget(connection)
        self._loop.wake()
        root, is_service = self._settings.root, systemd.listens()
        reply = reply_to(hear(connection), self.phase, root, is_service=is_service)
        if reply.does == "reload":
            self._rehearse(connection)
        elif reply.does == "replace":
            self._give(connection)
        elif reply.error:
            say(connection, error=reply.error, hint=reply.hint)
        else:
            connection.close()

    def _leave(self, cause: str, asker: socket.socket | None) -> Handover:
        fetcher = self._fetchers.current
        channel = fetcher.channel if fetcher is not None else None
        return Handover(
            held=self._events.waiting(),
            unsent=self._events.unsent(),
            cause=cause,
            restarts=self._fetchers.starts.restarts,
            upgrades=self._fetchers.upgrades + 1,
            fetcher=fetcher.process.pid if fetcher is not None and channel is not None else 0,
            channel=channel.fileno() if channel is not None else -1,
            asker=asker.fileno() if asker is not None else -1,
            kept=dict(self._fetchers.kept.pairs),
            door=self._rendezvous.door if cause == "reload" else -1,
        )

    # -- the installed version in this process -------------------------------------------------

    def _rehearse(self, asker: socket.socket | None) -> None:
        """Have the installed version try itself, while this one serves."""
        log.info("reloading: firstread %s asks what is installed now to try itself", __version__)
        self._asker = asker
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._rehearsal = Rehearsal(self._settings)
        except OSError as exc:
            self.conclude(f"the installed version cannot be started: {exc}")

    def _follow(self, rehearsal: Rehearsal) -> None:
        wrong = rehearsal.outcome()
        if wrong is None:
            return
        self._rehearsal = None
        if wrong:
            self.conclude(f"the installed version does not start: {wrong}")
            return
        hold_signals()  # a reload that was asked for until now begins here
        try:
            if not self._loop.stopping:
                become_next_version(self._settings, self._leave("reload", self._asker))
        except OSError as exc:
            self.conclude(f"the installed version cannot be executed: {exc}")
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def adopt(self, handover: Handover) -> None:
        """Continue an upgrade as the new version."""
        if handover.cause == "reload" and handover.asker >= 0:
            self._asker = socket.socket(fileno=handover.asker)

    def conclude(self, error: str = "") -> None:
        """Report how a reload has ended, if it has: a fetcher may begin to serve meanwhile."""
        if not error and self._rehearsal is not None:
            return
        asker, self._asker = self._asker, None
        if error:
            log.error("no upgrade: %s", error)
            systemd.notify("READY=1")
        if asker is not None and error:
            say(asker, error=f"no upgrade: {error}", hint="the daemon goes on as it was")
        elif asker is not None:
            say(asker, **self._fetchers.identity())

    # -- another process -----------------------------------------------------------------------

    def _give(self, successor: socket.socket) -> None:
        """Give everything to a successor; read no more events unless it gives up."""
        self._fetchers.pause()
        self._successor, self._until = successor, time.monotonic() + TURN_S
        self._loop.watch(successor, self._on_successor)
        try:
            give(successor, self._settings, self._leave("replace", None))
        except OSError as exc:
            self._go_on(str(exc))

    def _on_successor(self, _: int) -> None:
        self._loop.wake()
        if self._successor is None:
            return
        try:
            if self._successor.recv(64) != READY:
                self._go_on("it has given up")
                return
            self._successor.send(YOURS)
        except OSError as exc:
            self._go_on(str(exc))
        else:
            log.info("another process has taken the place of this one")
            self._loop.stopping = True

    def _go_on(self, reason: str) -> None:
        log.error("another process wanted to take the place of this one, but %s", reason)
        if self._successor is not None:
            self._loop.forget(self._successor)
            self._successor.close()
            self._successor = None
        self._fetchers.resume()

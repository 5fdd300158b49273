# SPDX-License-Identifier: Apache-2.0
"""The supervisor: holds the kernel's descriptors, and keeps a fetcher alive.

Owns the fanotify group, the control socket and the lock of the store, and composes the parts that
work on them: `Events` (the reads that wait), `Fetchers` (the processes that answer them),
`Upgrades` (successors of this process) and `AnchorKeeper`. When a fetcher dies or stops sending
heartbeats, the next one gets every read that was not answered, so a read only ever waits. The
supervisor allows events of our own processes (they write and truncate sector files) at once, so
that no lock of the fetcher can ever wait for an event.

Does not look into images, sectors or requests. It stays small: it imports nothing that the fetcher
needs, and blocks nowhere but in its loop.

A process becomes a supervisor by executing this module, with its state in a file without a name
(`firstread.daemon.handover`): ``firstread daemon`` does so to give back the memory of its imports,
the fetcher when its supervisor dies, and the next version. Meanwhile the fetcher of the previous
supervisor keeps serving. Once a fetcher of the new version has loaded, the old one finishes its
commands and ends.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from pathlib import Path

from firstread import __version__
from firstread.control.daemonlog import daemon_log
from firstread.daemon import systemd
from firstread.daemon.anchorkeeper import AnchorKeeper
from firstread.daemon.events import Events
from firstread.daemon.fetchers import Fetchers
from firstread.daemon.handover import (
    FIXED,
    Handover,
    Settings,
    numbered,
    raise_fd_limit,
    read_handover,
)
from firstread.daemon.journal import most_waiting
from firstread.daemon.logs import configure_logging
from firstread.daemon.loop import Loop
from firstread.daemon.protocol import GROUP_FD
from firstread.daemon.succession import claim
from firstread.daemon.upgrades import Phase, Upgrades
from firstread.device.fanotify import is_group
from firstread.device.scanners import is_scanner

log = logging.getLogger("supervisor")

UNHEARD_S = 3.0  # without a word of a fetcher, before reads of a scanner fail; and between looks
GRACE_S = 2.0  # for reads that wait when the daemon is told to end


class Supervisor:
    """The parts of a supervisor, and its loop. All descriptors in `FIXED` are open already.

    Args:
        settings: of the daemon.
        handover: of the previous supervisor, `numbered`.
    """

    def __init__(self, settings: Settings, handover: Handover) -> None:
        self._settings = settings
        self._has_group = is_group(GROUP_FD)
        self._is_reading = False  # events of the group
        self._denied = 0.0  # when reads of scanners were
        self._loop = Loop()
        most = most_waiting(raise_fd_limit())
        self._events = Events(handover.held, handover.unsent, most)
        self._fetchers = Fetchers(settings, self._loop, self._events, handover, self)
        self._upgrades = Upgrades(settings, self._loop, self._fetchers, self._events, handover.door)
        self._anchor = AnchorKeeper(settings)
        self._loop.take_signals()
        self._upgrades.listen()  # a reload begins no sooner than a standby of this one is there
        if handover.channel >= 0:
            self._upgrades.adopt(handover)
            self._fetchers.adopt(handover)
        if self._fetchers.current is not None:
            systemd.notify("READY=1", f"MAINPID={os.getpid()}")
            self._fetchers.stand_by()

    def fetcher_serves(self) -> None:
        """See `Witness`."""
        systemd.notify("READY=1", f"MAINPID={os.getpid()}")
        self._upgrades.conclude()

    def standby_lost(self, reason: str) -> None:
        """See `Witness`."""
        self._upgrades.conclude(reason)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or until another takes our place; return the exit code."""
        while not self._loop.stopping:
            self._keep()
            late_s = self._loop.wait(self._fetchers.patience_s())
            self._fetchers.excuse(late_s)
        if self._upgrades.phase is not Phase.GIVES:
            self._shut_down()
        return 1 if self._fetchers.starts.are_hopeless else 0

    def _keep(self) -> None:
        """Do whatever is due, apart from handling what comes in."""
        is_ours = self._upgrades.phase is not Phase.GIVES
        if is_ours:
            self._anchor.keep()  # before the first event is read, and the first fetcher is made
            self._fetchers.keep()
        self._listen_to_group(self._has_group and is_ours and self._events.has_room())
        self._upgrades.keep()
        self._free_from_scanners()

    def _listen_to_group(self, wanted: bool) -> None:
        """Listen to the group, or stop: unread events wait in the kernel."""
        if wanted and not self._is_reading:
            self._loop.watch(GROUP_FD, self._read_events)
        elif self._is_reading and not wanted:
            self._loop.forget(GROUP_FD)
        self._is_reading = wanted

    def _read_events(self, _: int) -> None:
        self._events.read(self._fetchers.own_pids(), self._fetchers.current)
        if self._events.has_unsent():
            self._fetchers.watch(self._fetchers.current)
        if not self._events.has_room():
            self._loop.wake()

    def _free_from_scanners(self) -> None:
        """Fail reads of scanners while no fetcher answers: it may be waiting for a scanner.

        A fetcher that starts opens files by name, and a scanner may hold that up until its own read
        returns.
        """
        now = time.monotonic()
        if now - max(self._fetchers.heard, self._denied) < UNHEARD_S or not self._events:
            return
        self._denied = now
        if count := self._events.deny_of(is_scanner):
            log.error("%d reads of a scanner fail: a fetcher may be waiting for it", count)

    def _shut_down(self) -> None:
        if self._events and systemd.listens():
            log.warning("stopping while %d reads wait: systemd has them", len(self._events))
        elif self._events and not self._settings.waits_on_stop:
            self._listen_to_group(False)
            until = time.monotonic() + GRACE_S
            while self._events and self._fetchers.are_answering():
                if not self._loop.handle_until(until):
                    break
        self._fetchers.end()
        if systemd.listens():
            return  # if this is a restart, they wait for the next one; else systemd lets them fail
        if self._settings.waits_on_stop and self._anchor.is_there():
            log.info("reads wait for another daemon for %g s", self._settings.anchor_s)
            return
        if self._events:
            log.warning("stopping while %d reads wait: they fail", len(self._events))
        self._events.deny()
        self._anchor.end()


def main(state: int) -> int:
    """Run as the supervisor with what `firstread.daemon.handover` has written to `state`."""
    handover, settings = read_handover(state)
    handover = numbered(handover)
    configure_logging(settings.log_level, daemon_log(Path(settings.run_dir)))
    if handover.cause == "replace":
        connection = socket.socket(fileno=handover.asker)
        if not claim(connection, handover.supervisor):
            log.critical("the daemon before has not left its place: it goes on")
            return 1
        connection.close()
    _announce(handover)
    for name, fd in FIXED.items():
        systemd.keep(name, fd)
    return Supervisor(settings, handover).run()


def _announce(handover: Handover) -> None:
    words = {
        "fetcher": "the supervisor is gone: process %d takes its place",
        "reload": "reloaded: process %d goes on",
        "replace": "process %d has taken the place of the supervisor before",
        "restored": "process %d goes on with what was kept while no daemon lived",
    }
    if handover.cause in words:
        level = logging.ERROR if handover.cause == "fetcher" else logging.INFO
        more = f" (firstread {handover.version}, then {__version__})"
        log.log(level, words[handover.cause] + more, os.getpid())


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

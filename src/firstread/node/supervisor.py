# SPDX-License-Identifier: Apache-2.0
"""The supervisor: holds the kernel's descriptors, and keeps a fetcher alive.

Owns the fanotify group, the control socket, the lock of the store, and every event until it is
answered. It reads events and hands them to the fetcher; when the fetcher dies or stops sending
heartbeats it starts another and hands over again what was not answered, so a read only ever waits.
Events of our own processes (they write and truncate sector files) are let through at once, from
here, so that no lock of the fetcher can ever wait for an event.

Does not look into images, sectors or requests. It stays small: it imports nothing that the fetcher
needs, and nothing here can block but the loop itself.

A process becomes a supervisor by executing this module, with what it holds in a file without a
name (`firstread.node.handover`): ``firstread daemon``, to give back the memory of what it has
imported, the fetcher, when its supervisor dies, and the next version. The fetcher of the supervisor
before serves on meanwhile, and until a fetcher of the new version has loaded all it needs; then it
answers the commands that it has, and ends.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path

from firstread import __version__
from firstread.device.scanners import is_scanner
from firstread.node import systemd
from firstread.node.anchor import cast, is_anchor, retire
from firstread.node.events import Events
from firstread.node.handover import (
    FIXED,
    SIGNALS,
    Handover,
    Settings,
    hold_signals,
    numbered,
    raise_fd_limit,
    read_handover,
)
from firstread.node.journal import most_waiting
from firstread.node.logfile import daemon_log
from firstread.node.logs import configure_logging
from firstread.node.place import Place
from firstread.node.process import FetcherProcess, Process
from firstread.node.rehearsal import Rehearsal, become_next_version
from firstread.node.succession import (
    READY,
    TURN_S,
    YOURS,
    claim,
    give,
    hear,
    let_in,
    say,
)
from firstread.node.wire import (
    GROUP_FD,
    WIRE_VERSION,
    Request,
    receive_answered,
    send_order,
    send_request,
)

log = logging.getLogger("supervisor")

START_S = 120.0  # for the first heartbeat: it may have thousands of mounts to look at
MIN_LIFE_S = 2.0  # a fetcher that lives shorter is started again only after a pause
MAX_PAUSE_S = 5.0
MAX_PAUSE_READY_S = 0.2  # after one that has worked: reads may wait for the next
MAX_FAILURES = 5  # of a daemon that never had a fetcher that was ready; then it ends
RETIRE_S = 40.0  # for a fetcher to answer the commands that it has; see `serve`
ANCHOR_S = 10.0  # between two looks for the anchor
UNHEARD_S = 3.0  # without a word of a fetcher, before reads of a scanner fail; and between looks
CROWDED_S = 10.0  # between lines in the log that there is no room for events
GRACE_S = 2.0  # for reads that wait when the daemon is told to end


class Supervisor:
    """The loop. All descriptors of `wire` are open already.

    Args:
        settings: passed on to the fetcher.
        handover: of the supervisor before, `numbered`.
    """

    def __init__(self, settings: Settings, handover: Handover) -> None:
        self._settings = settings
        self._anchor = 0  # process number of ours
        self._anchor_due = 0.0  # when it is looked for again
        self._events = Events(handover.held, most_waiting(raise_fd_limit()))
        self._backlog: deque[Request] = deque()
        self._selector = selectors.DefaultSelector()
        self._fetcher: FetcherProcess | None = None
        self._next: FetcherProcess | None = None  # loads, to take the place of the other
        self._retire_until = math.inf  # which the other is ended, if it has been told to
        self._started = -math.inf
        self._woke = time.monotonic()  # when we last knew what there was to do
        self._failures = 0.0  # to start, before any fetcher was ready
        self._restarts = handover.restarts
        self._upgrades = handover.upgrades
        self._pause = 0.0
        self._stopping = False
        self._hangup = False  # SIGHUP has come
        self._reads = False  # events of the group
        self._heard = self._freed = time.monotonic()  # from a fetcher; reads of scanners denied
        self._crowded = -math.inf  # when it was said last that there is no room for events
        self._rehearsal: Rehearsal | None = None
        self._asker: socket.socket | None = None  # waits for the outcome of a reload
        self._heir: tuple[socket.socket, float] | None = None  # is about to take our place
        self._place = Place(settings.run_dir)
        self._listen()
        self._keep_place()
        self._adopt(handover)

    def _listen(self) -> None:
        """Take signals, those too that came while nobody did; a child must not hold them."""
        waker, wakee = socket.socketpair()
        waker.setblocking(False)
        wakee.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._hang_up)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._wakers = waker, wakee
        self._selector.register(wakee, selectors.EVENT_READ, lambda _: wakee.recv(64))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or until another takes our place; return the exit code."""
        self._keep_anchor()
        while not self._stopping:
            self._keep_reading(self._heir is None and self._has_room())
            if self._heir is None:
                self._keep_fetcher()
                self._keep_next()
            self._keep_place()
            self._keep_anchor()
            self._keep_succession()
            self._keep_from_scanners()
            patience = self._patience()
            found = self._selector.select(timeout=patience)
            self._excuse(patience)
            for key, mask in found:
                key.data(mask)
        if self._heir is None:
            self._shut_down()
        return 1 if self._failures >= MAX_FAILURES else 0

    def _keep_reading(self, reads: bool) -> None:
        """Listen to the group, or do not: what is not read waits in the kernel."""
        if reads and not self._reads:
            self._selector.register(GROUP_FD, selectors.EVENT_READ, lambda _: self._read_events())
        elif self._reads and not reads:
            self._selector.unregister(GROUP_FD)
        self._reads = reads

    def _keep_from_scanners(self) -> None:
        """Let reads of scanners fail while no fetcher answers: it may be waiting for them.

        It opens files by name when it starts, and they may not let it until they have read theirs.
        """
        now = time.monotonic()
        if now - max(self._heard, self._freed) < UNHEARD_S or not self._events:
            return
        self._freed = now
        if count := self._events.deny_of(is_scanner):
            log.error("%d reads of a scanner fail: a fetcher may be waiting for it", count)

    def _has_room(self) -> bool:
        has_room = self._events.has_room()
        if not has_room and time.monotonic() > self._crowded + CROWDED_S:
            log.warning("%d reads wait: no more are taken until some go on", len(self._events))
            self._crowded = time.monotonic()
        return has_room

    def _patience(self) -> float:
        if self._fetcher is None:
            return self._pause
        return 1.0 if self._fetcher.channel is not None else 0.01  # it will have ended in a moment

    def _excuse(self, patience: float) -> None:
        """Blame no fetcher for a time in which we did not run: stopped, frozen or starved."""
        woke, self._woke = self._woke, time.monotonic()
        late = self._woke - woke - patience
        for fetcher in (self._fetcher, self._next):
            if fetcher is not None and late > 0:
                fetcher.beat += late

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _hang_up(self, *_: object) -> None:
        self._hangup = True

    def _keep_anchor(self) -> None:
        """See to it that there is an anchor, and that it is ours."""
        now = time.monotonic()
        if now < self._anchor_due or self._heir is not None:
            return
        settings, first = self._settings, not self._anchor_due
        self._anchor_due = now + ANCHOR_S
        try:
            if settings.anchor_s and not is_anchor(self._anchor):
                self._anchor = cast(settings.root, settings.anchor_s)
        except (OSError, ValueError) as exc:
            log.warning("there is no anchor: reads fail if all processes die now: %s", exc)
        if first:
            # Also if there is none of ours: one before would deny what waits when its time is up.
            try:
                retire(settings.root, but=self._anchor)
            except OSError as exc:
                log.warning("an anchor of before may still be there: %s", exc)

    def _shut_down(self) -> None:
        if self._events and systemd.listens():
            log.warning("stopping while %d reads wait: systemd has them", len(self._events))
        elif self._events and not self._settings.waits_on_stop:
            self._keep_reading(False)
            until = time.monotonic() + GRACE_S
            while self._events and self._fetcher and self._fetcher.channel:
                left = until - time.monotonic()
                for key, mask in self._selector.select(timeout=max(0.0, left)):
                    key.data(mask)
                if left <= 0:
                    break
        for fetcher in (self._next, self._fetcher):
            if fetcher is not None:
                fetcher.process.end(timeout_s=10)
        if systemd.listens():
            return  # if this is a restart, they wait for the next one; else systemd lets them fail
        if self._settings.waits_on_stop and is_anchor(self._anchor):
            log.info("reads wait for another daemon for %g s", self._settings.anchor_s)
            return
        if self._events:
            log.warning("stopping while %d reads wait: they fail", len(self._events))
        self._events.deny()
        retire(self._settings.root)

    # -- events --------------------------------------------------------------------------------

    def _read_events(self) -> None:
        if not self._reads:  # since this turn of the loop
            return
        fetchers = (self._fetcher, self._next)
        own = {os.getpid(), *(fetcher.process.pid for fetcher in fetchers if fetcher)}
        self._events.read(own, self._hand_over)

    def _hand_over(self, request: Request) -> None:
        fetcher = self._fetcher
        if self._backlog or fetcher is None or fetcher.channel is None:
            self._backlog.append(request)
            return
        try:
            send_request(fetcher.channel, request)
        except OSError:
            # The channel is full, or the fetcher is dead and the next one gets it.
            self._backlog.append(request)
            self._watch(fetcher)

    def _on_channel(self, fetcher: FetcherProcess, mask: int) -> None:
        if mask & selectors.EVENT_READ:
            self._on_answered(fetcher)
        if mask & selectors.EVENT_WRITE and fetcher is self._fetcher:
            backlog, self._backlog = self._backlog, deque()
            for request in backlog:
                self._hand_over(request)
            self._watch(fetcher)

    def _on_answered(self, fetcher: FetcherProcess) -> None:
        if fetcher.channel is None:
            return
        try:
            numbers = receive_answered(fetcher.channel)
        except BlockingIOError:
            return
        except OSError:
            numbers = None
        if numbers is None:
            self._close_channel(fetcher)
            return
        fetcher.beat = self._heard = time.monotonic()
        if not fetcher.ready:
            fetcher.ready = True
            if fetcher is self._fetcher:
                self._on_ready()
        self._events.answered(numbers)

    # -- the fetcher ---------------------------------------------------------------------------

    def _keep_fetcher(self) -> None:
        """Start a fetcher if there is none; end one that hangs."""
        now = time.monotonic()
        fetcher = self._fetcher
        if fetcher is not None:
            patience = self._settings.health_s if fetcher.ready else START_S
            if fetcher.process.ended():
                self._bury(fetcher, now)
            elif now - fetcher.beat > patience or now > self._retire_until:
                log.error("fetcher %d does not answer: ending it", fetcher.process.pid)
                fetcher.process.signal(signal.SIGKILL)
                fetcher.beat = now
        if self._fetcher is not None:
            return
        if self._next is not None:
            self._promote(self._next)
        elif self._failures >= MAX_FAILURES:
            log.critical("no fetcher starts: giving up")
            self._stopping = True
        elif now - self._started >= self._pause:
            try:
                self._restarts += 1
                self._started = now
                self._fetcher = self._start_fetcher()
            except OSError as exc:
                log.critical("cannot start a fetcher: %s", exc)
                self._pause = MAX_PAUSE_S
            else:
                self._hand_over_all()

    def _bury(self, fetcher: FetcherProcess, now: float) -> None:
        self._fetcher = None
        self._close_channel(fetcher)
        if self._retire_until < math.inf:
            log.info("fetcher %d has retired", fetcher.process.pid)
            return
        log.error("fetcher %d ended with %s", fetcher.process.pid, fetcher.process.code)
        long = now - fetcher.started > MIN_LIFE_S
        limit = MAX_PAUSE_READY_S if fetcher.ready else MAX_PAUSE_S
        self._pause = 0.0 if long else min(max(self._pause * 2, 0.05), limit)
        self._failures += 1

    def _start_fetcher(self, *, standby: bool = False) -> FetcherProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = {
            "settings": vars(self._settings),
            "channel": theirs.fileno(),
            "supervisor": self._identity(),
            "restarts": self._restarts,
            "standby": standby,
        }
        with theirs:
            process = Process.start(
                [sys.executable, "-m", "firstread.node.serve", json.dumps(arguments)],
                fds=(*FIXED.values(), theirs.fileno()),
            )
        fetcher = FetcherProcess(process, ours)
        self._watch(fetcher)
        return fetcher

    def _identity(self) -> dict[str, str | int]:
        """Return what ``firstread status --json`` tells of us."""
        return {"pid": os.getpid(), "version": __version__, "upgrades": self._upgrades}

    def _hand_over_all(self) -> None:
        self._backlog = deque()
        for request in self._events.waiting():
            self._hand_over(request)

    def _on_ready(self) -> None:
        """The fetcher serves."""
        self._failures = -math.inf
        systemd.notify("READY=1", f"MAINPID={os.getpid()}")
        self._conclude()

    def _watch(self, fetcher: FetcherProcess) -> None:
        """Listen to a fetcher; if its channel had no room for all there is, see when it has."""
        if fetcher.channel is None:
            return
        has_more = fetcher is self._fetcher and self._backlog
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if has_more else 0)
        on_channel = functools.partial(self._on_channel, fetcher)
        try:
            self._selector.modify(fetcher.channel, mask, on_channel)
        except KeyError:
            self._selector.register(fetcher.channel, mask, on_channel)

    def _close_channel(self, fetcher: FetcherProcess) -> None:
        if fetcher.channel is not None:
            self._selector.unregister(fetcher.channel)
            fetcher.channel.close()
            fetcher.channel = None

    # -- another fetcher in place of one that serves -------------------------------------------

    def _adopt(self, handover: Handover) -> None:
        """Go on with the fetcher of the supervisor before, and start one of our own beside it."""
        if handover.channel < 0:
            return
        channel = socket.socket(fileno=handover.channel)
        if handover.cause == "reload" and handover.asker >= 0:
            self._asker = socket.socket(fileno=handover.asker)
        try:
            fetcher = FetcherProcess(Process(handover.fetcher), channel, ready=True)
        except OSError:
            channel.close()  # it has died meanwhile
            return
        self._fetcher = fetcher
        self._backlog.extend(r for r in handover.held if r.number in handover.unsent)
        self._watch(fetcher)
        systemd.notify("READY=1", f"MAINPID={os.getpid()}")
        self._failures = -math.inf
        try:
            self._next = self._start_fetcher(standby=True)
        except OSError as exc:
            self._conclude(f"the new fetcher cannot be started: {exc}")
        if handover.wire != WIRE_VERSION:
            log.warning("the fetcher of firstread %s cannot be spoken with", handover.version)
            self._retire_until = -math.inf
        else:
            self._tell(fetcher, "inform", supervisor=self._identity())

    def _tell(self, fetcher: FetcherProcess, what: str, **details: object) -> bool:
        try:
            if fetcher.channel is not None:
                send_order(fetcher.channel, what, **details)
        except OSError:
            return False  # it is full, and will be tried again, or the fetcher is dead
        return True

    def _keep_next(self) -> None:
        """Have the fetcher retire once the next one has loaded; forget one that does not start."""
        following, now = self._next, time.monotonic()
        if following is None:
            return
        if following.process.ended():
            self._next = None
            self._close_channel(following)
            code = following.process.code
            self._conclude(f"the new fetcher ended with {code}: the one before goes on")
        elif not following.ready:
            if now - following.started > START_S:
                following.process.signal(signal.SIGKILL)
        elif (
            self._fetcher is not None
            and self._retire_until == math.inf
            and self._tell(self._fetcher, "retire")
        ):
            self._retire_until = now + RETIRE_S

    def _promote(self, following: FetcherProcess) -> None:
        """Give the events to the fetcher that has waited for its turn."""
        self._fetcher, self._next = following, None
        self._retire_until = math.inf
        following.ready = False
        following.beat = self._started = time.monotonic()
        self._tell(following, "start", supervisor=self._identity(), restarts=self._restarts)
        self._hand_over_all()

    # -- another supervisor in our place -------------------------------------------------------

    def _keep_place(self) -> None:
        door = self._place.take()
        if door is not None:
            on_door = functools.partial(self._on_door, door)
            self._selector.register(door, selectors.EVENT_READ, on_door)

    def _on_door(self, door: socket.socket, _: int) -> None:
        connection = let_in(door)
        if connection is not None:
            hearing = functools.partial(self._on_asked, connection)
            self._selector.register(connection, selectors.EVENT_READ, hearing)

    def _on_asked(self, connection: socket.socket, _: int) -> None:
        self._selector.unregister(connection)
        asked = hear(connection)
        if asked.get("ask") not in ("reload", "replace"):
            connection.close()
        elif self._rehearsal or self._next or self._heir:
            say(connection, error="an upgrade is under way already", hint="wait a moment")
        elif asked["ask"] == "reload":
            self._rehearse(connection)
        elif asked.get("root") != self._settings.root:
            say(connection, error=f"the daemon here has the --root {self._settings.root}")
        elif systemd.listens():
            say(
                connection,
                error="the daemon belongs to a service manager, which would lose it",
                hint="upgrade it in place: systemctl reload, or firstread daemon --reload",
            )
        else:
            self._give(connection)

    def _keep_succession(self) -> None:
        """See what has become of a rehearsal, or of an heir; begin a reload."""
        now = time.monotonic()
        if self._hangup and not (self._rehearsal or self._next or self._heir):
            self._hangup = False
            self._rehearse(None)
        if self._rehearsal is not None:
            self._watch_rehearsal(self._rehearsal)
        if self._heir is not None and now > self._heir[1]:
            self._go_on("it has not become ready")

    def _leave(self, cause: str, asker: socket.socket | None) -> Handover:
        fetcher = self._fetcher
        serving = fetcher is not None and fetcher.channel is not None
        return Handover(
            held=self._events.waiting(),
            unsent=[request.number for request in self._backlog],
            cause=cause,
            restarts=self._restarts,
            upgrades=self._upgrades + 1,
            fetcher=fetcher.process.pid if fetcher and serving else 0,
            channel=fetcher.channel.fileno() if fetcher and fetcher.channel else -1,
            asker=asker.fileno() if asker else -1,
        )

    def _rehearse(self, asker: socket.socket | None) -> None:
        """Have the installed version try all that it will need, while this one serves."""
        log.info("reloading: firstread %s asks what is installed now to try itself", __version__)
        self._asker = asker
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._rehearsal = Rehearsal(self._settings)
        except OSError as exc:
            self._conclude(f"the installed version cannot be started: {exc}")

    def _watch_rehearsal(self, rehearsal: Rehearsal) -> None:
        wrong = rehearsal.outcome()
        if wrong is None:
            return
        self._rehearsal = None
        if wrong:
            self._conclude(f"the installed version does not start: {wrong}")
            return
        hold_signals()  # a reload that was asked for until now begins here
        try:
            if not self._stopping:
                become_next_version(self._settings, self._leave("reload", self._asker))
        except OSError as exc:
            self._conclude(f"the installed version cannot be executed: {exc}")
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _conclude(self, error: str = "") -> None:
        """Tell how a reload has ended."""
        asker, self._asker = self._asker, None
        if error:
            log.error("no upgrade: %s", error)
            systemd.notify("READY=1")
        if asker is not None and error:
            say(asker, error=f"no upgrade: {error}", hint="the daemon goes on as it was")
        elif asker is not None:
            say(asker, **self._identity())

    def _give(self, heir: socket.socket) -> None:
        """Give all we have to another process; read nothing more, unless it gives up."""
        fetcher = self._fetcher
        if fetcher is not None and fetcher.channel is not None:
            self._selector.unregister(fetcher.channel)
        self._heir = heir, time.monotonic() + TURN_S
        self._keep_reading(False)
        self._selector.register(heir, selectors.EVENT_READ, lambda _: self._on_heir(heir))
        try:
            give(heir, self._settings, self._leave("replace", None))
        except OSError as exc:
            self._go_on(str(exc))

    def _on_heir(self, heir: socket.socket) -> None:
        try:
            if heir.recv(64) != READY:
                self._go_on("it has given up")
                return
            heir.send(YOURS)
        except OSError as exc:
            self._go_on(str(exc))
        else:
            log.info("another process has taken the place of this one")
            self._stopping = True

    def _go_on(self, reason: str) -> None:
        log.error("another process wanted to take the place of this one, but %s", reason)
        if self._heir is not None:
            self._selector.unregister(self._heir[0])
            self._heir[0].close()
            self._heir = None
        if self._fetcher is not None:
            self._fetcher.beat = time.monotonic()  # nobody has listened to it meanwhile
            self._watch(self._fetcher)


def main(state: int) -> int:
    """Run as the supervisor with what `firstread.node.handover` has written to `state`."""
    handover, settings = read_handover(state)
    handover = numbered(handover)
    configure_logging(settings.log_level, daemon_log(Path(settings.run_dir)))
    if handover.cause == "replace":
        connection = socket.socket(fileno=handover.asker)
        if not claim(connection, handover.supervisor):
            log.critical("the daemon before has not left its place: it goes on")
            return 1
        connection.close()
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
    for name, fd in FIXED.items():
        systemd.keep(name, fd)
    return Supervisor(settings, handover).run()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

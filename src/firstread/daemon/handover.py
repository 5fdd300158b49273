# SPDX-License-Identifier: Apache-2.0
"""The handover from one supervisor to the next, and how a process becomes the next one.

Owns the document that passes between them, by whichever route, and the rule that descriptors of
events keep their numbers: the kernel knows an event by nothing else. Starts no process and reads no
event. This module stays small, because it is in the supervisor's memory.

The successor can be of another version. `FORMAT` says how to read the document: it changes only
when a reader of the previous version would get it wrong. A reader refuses an unknown format, and
the old supervisor continues. Fields can be added at any time: a reader ignores an unknown field,
and gives a missing one its default.
"""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from firstread import __version__
from firstread.daemon import systemd
from firstread.daemon.journal import Journal, path_of
from firstread.daemon.protocol import (
    BUFFER_FD,
    GROUP_FD,
    LISTENER_FD,
    LOCK_FD,
    SECRETS_FD,
    WIRE_VERSION,
)
from firstread.device.base import WHOLE_SECTOR, Pair, Read, sector_of
from firstread.device.fanotify import NO_FD, Group, is_group, parse_events
from firstread.errors import NodeError
from firstread.userdirs import configuration

log = logging.getLogger("supervisor")

FORMAT = 1
OTHERS_FORMAT = 3  # of a node with another device than fanotify: its mounts need what is `kept`
# Format 2 had `Watches` without the ids of the sectors.
FORMATS = (FORMAT, OTHERS_FORMAT)  # that are read

FIXED = {
    "group": GROUP_FD,
    "listener": LISTENER_FD,
    "lock": LOCK_FD,
    "events": BUFFER_FD,
    "secrets": SECRETS_FD,
}
"""Names of the descriptors that every supervisor has, and their numbers."""

LEAST_FDS = 1024
"""The limit of open files below which a daemon does not start: it has room for those numbers."""

WANTED_FDS = 65_536
"""The limit of open files where the one that it finds is too low."""

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""Signals to a supervisor from outside."""


@dataclass(frozen=True)
class Settings:
    """Settings of both processes, from the command line.

    Args:
        root: of store, images and mount table.
        run_dir: of the control socket.
        config: `firstread.config.Config`, as JSON knows it, whole.
        arguments: of ``firstread daemon``, to start the next version with.
    """

    root: str
    run_dir: str
    config: dict[str, Any]
    arguments: list[str] = field(default_factory=list)

    @property
    def log_level(self) -> str:
        """Return the name of a level of the logging module."""
        return str(self.config["node"]["log_level"])

    def config_file(self) -> str | None:
        """Return the configuration that was read; None if there was none."""
        named = dict(itertools.pairwise(self.arguments)).get("--config")
        default = configuration()
        return named or (str(default) if default.exists() else None)

    @property
    def health_s(self) -> float:
        """Return after how long without a heartbeat a fetcher counts as hung."""
        return float(self.config["node"]["health_s"])

    @property
    def waits_on_stop(self) -> bool:
        """Return whether reads wait for another daemon when this one is told to end."""
        return str(self.config["node"]["on_stop"]) == "wait"

    @property
    def anchor_s(self) -> float:
        """Return how long an anchor waits for another daemon; 0 for none, as below systemd."""
        return 0.0 if systemd.listens() else float(self.config["node"]["anchor_s"])


@dataclass
class Handover:
    """The state that a supervisor leaves, beside the descriptors in `FIXED`.

    Args:
        held: unanswered events, with descriptors of their files.
        cause: ``start``: no supervisor before · ``fetcher``: it died, this was its fetcher ·
            ``reload``: the same process · ``replace``: another process · ``restored``: all
            processes died, systemd or an anchor has kept the rest.
        restarts: of the fetcher so far; -1 before the first one.
        upgrades: times that a supervisor was replaced while its fetcher went on.
        fetcher: process number of the fetcher that serves; 0 for none.
        channel: descriptor of our end of the channel to it.
        wire: version of the messages on it.
        asker: descriptor of the connection of who has asked for this, or -1.
        supervisor: process number of the one before.
        version: of firstread that it was.
        unsent: numbers of those `held` that the fetcher was not sent, its channel being full.
        kept: descriptors of mounts that we serve, by device number, see `firstread.daemon.kept`.
        door: descriptor on which it listens for successors, in a reload, or -1: who has knocked is
            heard by the next version.
    """

    held: list[Read] = field(default_factory=list)
    cause: str = "start"
    restarts: int = -1
    upgrades: int = 0
    fetcher: int = 0
    channel: int = -1
    wire: int = WIRE_VERSION
    asker: int = -1
    supervisor: int = field(default_factory=os.getpid)
    version: str = __version__
    unsent: list[int] = field(default_factory=list)
    kept: dict[int, Pair] = field(default_factory=dict)
    door: int = -1

    def descriptors(self) -> list[int]:
        """Return all descriptors that are named here."""
        kept = (fd for pair in self.kept.values() for fd in pair)
        events = (request.fd for request in self.held)
        return [fd for fd in (self.channel, self.asker, self.door, *events, *kept) if fd >= 0]

    def write(self, settings: Settings) -> int:
        """Write this and `settings` to a file without a name; return its descriptor."""
        document = {
            "format": own_format(),
            "settings": dataclasses.asdict(settings),
            **dataclasses.asdict(self),
            "held": [(r.number, r.pid, r.offset, r.length, r.fd) for r in self.held],
        }
        return write_document("handover", document)


def write_document(name: str, document: object) -> int:
    """Return the descriptor of a file without a name that has a document as JSON.

    For another process: a word of a command line has room for 128 KiB (MAX_ARG_STRLEN).
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(json.dumps(document).encode())
    return fd


def read_document(fd: int) -> Any:
    """Return what `write_document` has written, and close it."""
    with open(fd, "rb") as file:
        file.seek(0)
        return json.load(file)


def own_format() -> int:
    """Return the format of this daemon's state: a version that knows fanotify alone refuses it."""
    try:
        return FORMAT if is_group(GROUP_FD) else OTHERS_FORMAT
    except OSError:  # there is no daemon
        return FORMAT


def read_handover(fd: int) -> tuple[Handover, Settings]:
    """Read what `Handover.write` has written, and close it.

    Raises:
        NodeError: it is of a version that cannot be understood.
    """
    document = read_document(fd)
    if document["format"] not in FORMATS:
        raise NodeError(
            f"firstread {document.get('version')} leaves its state in the format"
            f" {document['format']}, but {__version__} reads {' and '.join(map(str, FORMATS))}",
            hint="stop the daemon and start the other version",
        )
    handover = Handover(**_known(Handover, document))
    handover.held = [Read(*fields[:5]) for fields in handover.held]
    handover.kept = {int(device): (pair[0], pair[1]) for device, pair in handover.kept.items()}
    return handover, Settings(**_known(Settings, document["settings"]))


def _known(kind: type[Any], document: dict[str, Any]) -> dict[str, Any]:
    names = {each.name for each in dataclasses.fields(kind)}
    return {name: value for name, value in document.items() if name in names}


def become_supervisor(settings: Settings, handover: Handover) -> NoReturn:
    """Become the supervisor by executing its module; the descriptors in `FIXED` are open.

    Raises:
        OSError: it cannot be executed; nothing has changed.
    """
    state = handover.write(settings)
    execute([sys.executable, "-m", "firstread.daemon.supervisor", str(state)], state, handover)


def execute(command: list[str], state: int, handover: Handover) -> NoReturn:
    """Execute a program that finds every descriptor of a supervisor as it is here.

    Raises:
        OSError: it cannot be executed; nothing has changed.
    """
    passed = [*FIXED.values(), state, *handover.descriptors()]
    before = hold_signals()
    try:
        for fd in passed:
            os.set_inheritable(fd, True)
        os.execv(command[0], command)
    except OSError:
        for fd in passed:
            os.set_inheritable(fd, False)
        os.close(state)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise


def hold_signals() -> set[int]:
    """Block the signals in `SIGNALS`, so that the next supervisor gets them.

    Their default action would end a process that is not yet a supervisor, and its fetcher would
    become one. Returns the previous mask.
    """
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS))


def numbered(handover: Handover) -> Handover:
    """Give each file that is held the number of its event, and move what is in the way.

    One after the other: there may be room for no more than one descriptor besides.
    """
    now = {fd: fd for fd in handover.descriptors()}  # where each is that we were given
    given = dict(now)  # and the reverse
    for fd in (*FIXED.values(), *now):
        os.set_inheritable(fd, False)
    for request in handover.held:
        here, number = now[request.fd], request.number
        if here == number:
            continue
        if number in given:
            other, aside = given.pop(number), fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
            now[other], given[aside] = aside, other
        move_descriptor(here, number)
        del given[here]
        now[request.fd], given[number] = number, request.fd
    held = [
        request._replace(fd=request.number, sector_id=sector_of(path_of(request.number)))
        for request in handover.held
    ]
    others = (handover.channel, handover.asker, handover.door)
    channel, asker, door = (now.get(fd, -1) for fd in others)
    kept = {device: (now[pair[0]], now[pair[1]]) for device, pair in handover.kept.items()}
    return dataclasses.replace(
        handover, held=held, channel=channel, asker=asker, door=door, kept=kept
    )


def all_events(
    held: Iterable[Read], group: Group, journal: Journal, files: dict[int, int]
) -> list[Read]:
    """Return all events that wait after a supervisor has died.

    Those are `held`, the ones that only the journal knows, and those that only the anchor holds.
    Without an anchor an event fails that was read and not yet recorded: nobody knows its file.

    Args:
        held: by the fetcher of the dead supervisor.
        group: that the events are of.
        journal: of the dead supervisor.
        files: sector files that its anchor holds, by the number of the event, but for those that
            are `held`; owned from now on.
    """
    events = {request.number: request for request in held}
    found, lost = journal.reopen(set(events), files)
    events.update((request.number, request) for request in found)
    for event in parse_events(journal.buffer):
        if event.fd in files:
            fd = files.pop(event.fd)
            events[event.fd] = Read(event.fd, event.pid, event.offset, event.count, fd)
        elif event.fd != NO_FD and event.fd not in events:
            lost.append(event.fd)
    for number, fd in files.items():  # there was no room to record it
        events[number] = Read(number, 0, 0, WHOLE_SECTOR, fd)
    for number in lost:
        if group.answer(number, allow=False):
            log.error("a read fails: the supervisor died before it had noted what it is about")
    journal.clear_buffer()
    return list(events.values())


def move_descriptor(fd: int, number: int) -> None:
    """Move a descriptor to another number."""
    if fd != number:
        os.dup2(fd, number, inheritable=False)
        os.close(fd)


def reserve(fds: dict[str, int]) -> None:
    """Occupy the numbers in `FIXED` until their descriptors come.

    Args:
        fds: descriptors that this process was given; those with such a number get another one.
    """
    for name, fd in fds.items():
        if fd in FIXED.values():
            fds[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(FIXED.values()) + 1)
    with open(os.devnull, "rb") as empty:
        for number in FIXED.values():
            os.dup2(empty.fileno(), number, inheritable=False)


def raise_fd_limit(least: int = LEAST_FDS) -> int:
    """Allow as many descriptors as we may, and return how many: each waiting read holds one.

    Args:
        least: that there must be: numbers of events can be higher than what we were given.

    Raises:
        NodeError: there is no room for the numbers in `FIXED` or those, and we may not make any.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit, least = hard, max(least, LEAST_FDS)
    if hard < least and hard != resource.RLIM_INFINITY:
        limit = max(least, WANTED_FDS if hard < LEAST_FDS else 0)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    except (ValueError, OSError) as exc:  # no CAP_SYS_RESOURCE, or fs.nr_open is less
        raise NodeError(
            f"a process may open {hard} files here, but a daemon needs {least}",
            hint=f"raise the hard limit: ulimit -n {limit}, or LimitNOFILE= of its service",
        ) from exc
    return limit

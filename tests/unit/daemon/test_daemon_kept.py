# SPDX-License-Identifier: Apache-2.0
"""The descriptors of FUSE mounts that a supervisor holds, and how it hears of them."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from firstread.daemon.fetchers import FetcherProcess, Fetchers
from firstread.daemon.handover import FIXED, Handover, Settings
from firstread.daemon.kept import Kept, of_systemd, release
from firstread.daemon.life import Life, Stage, Step
from firstread.daemon.loop import Loop
from firstread.daemon.process import Process
from firstread.daemon.protocol import (
    SECRETS_FD,
    Drop,
    Keep,
    receive_answered,
    receive_requests,
    send_answered,
    send_held,
)
from firstread.readable import is_readable
from firstread.testing.patience import PATIENCE_S
from firstread.testing.shortage import few_descriptors

Pair = tuple[int, int]


def pair() -> Pair:
    return os.memfd_create("connection"), os.memfd_create("watches")


def names(fds: Pair | None) -> list[str]:
    return [os.readlink(f"/proc/self/fd/{fd}").split()[0] for fd in fds or ()]


def count() -> int:
    return len(os.listdir("/proc/self/fd"))


BOTH = ["/memfd:connection", "/memfd:watches"]


def test_watches_have_the_next_number() -> None:
    before = count()
    kept = Kept({5: pair()})
    taken = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, kept.pairs[5][1] + 2)  # every second one
    assert kept.add(6, pair())
    assert kept.add(5, pair())  # the number is another mount's now
    for connection, watches in kept.pairs.values():
        assert connection > SECRETS_FD
        assert watches == connection + 1
        assert names((connection, watches)) == BOTH
    os.close(taken)
    again = Kept(dict(kept.pairs))
    assert again.pairs == kept.pairs
    again.drop(5)
    again.drop(6)
    again.drop(7)
    assert count() == before


def test_few_open_files_are_enough_for_some() -> None:
    """The hard limit may be as low as that of a daemon without FUSE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = count()
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        kept = Kept({})
        added = [kept.add(device, pair()) for device in range(20)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert added[0]
    assert not added[-1]
    assert len(kept.pairs) == sum(added) > 5
    release(kept.pairs)
    assert count() == before


def test_systemd_gives_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        before = count()
        group, (first, second), (third, _) = os.memfd_create("group"), pair(), pair()
        os.close(third + 1)
        kept = {"group": group, "fuse-5": first, "watches-5": second, "watches-6": third}
        found = of_systemd(kept)
        assert found == {5: (first, second)}
        assert kept == {"group": group}
        assert manager.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=watches-6"
        release(found)
        assert manager.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=fuse-5"
        os.close(group)
        assert count() == before


RESERVE = """
import fcntl, os, sys
from firstread.daemon.handover import FIXED, reserve
fds = {str(n): os.memfd_create(str(n)) for n in range(1010)}
kept = dict(fds)
reserve(fds)
for name, fd in fds.items():
    assert fd not in FIXED.values()
    assert os.readlink(f"/proc/self/fd/{fd}").startswith(f"/memfd:{name} ")
assert set(map(os.readlink, (f"/proc/self/fd/{n}" for n in FIXED.values()))) == {os.devnull}
assert not any(map(os.get_inheritable, FIXED.values()))
moved = [name for name in fds if fds[name] != kept[name]]
assert len(moved) == len(FIXED), moved
"""


def test_descriptors_from_systemd_leave_fixed_numbers_free() -> None:
    """It gives descriptors from 3 on, and two of each mount."""
    assert set(FIXED.values()) == set(range(1000, 1005))
    subprocess.run([sys.executable, "-c", RESERVE], check=True, timeout=PATIENCE_S)


# -- words about them ------------------------------------------------------------------------------

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The supervisor's and the fetcher's end."""
    supervisor, fetcher = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fetcher.settimeout(PATIENCE_S)
    with supervisor, fetcher:
        yield supervisor, fetcher


def close(fds: Pair | None) -> None:
    for fd in fds or ():
        os.close(fd)


def test_words_about_descriptors_go_both_ways(ends: Ends) -> None:
    ours = pair()
    for sender, receive, receiver in (
        (ends[1], receive_answered, ends[0]),
        (ends[0], receive_requests, ends[1]),
    ):
        send_held(sender, Keep(48, ours))
        send_held(sender, Drop(48))
        came = cast(Any, receive)(receiver)
        assert isinstance(came, Keep)
        assert came.device == 48
        assert names(came.pair) == BOTH
        assert came.pair is not None
        assert not any(map(os.get_inheritable, came.pair))
        close(came.pair)
        assert cast(Any, receive)(receiver) == Drop(48)
    close(ours)


@pytest.mark.parametrize("spare", [0, 1])
def test_descriptors_without_room_are_no_end_of_a_mount(ends: Ends, spare: int) -> None:
    ours = pair()
    before = count()
    send_held(ends[1], Keep(48, ours))
    with few_descriptors(os.getpid(), spare):
        came = receive_answered(ends[0])
    assert came == Keep(48, None)
    assert count() == before
    close(ours)


# -- the supervisor --------------------------------------------------------------------------------


def await_end(fetcher: FetcherProcess) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not fetcher.process.ended():
        assert time.monotonic() < deadline


class NoEvents:
    """The reads of a node without fanotify."""

    def has_unsent(self) -> bool:
        return False

    def answered(self, _: list[int]) -> None:
        pass


class Nobody:
    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)


class Supervisor:
    """A supervisor of fetchers that sleep; its end closes all."""

    def __init__(self) -> None:
        settings = Settings("/root", "/run", {"node": {"health_s": 9.0}})
        events, witness = cast(Any, NoEvents()), cast(Any, Nobody())
        self.fetchers = Fetchers(settings, Loop(), events, Handover(), witness)
        self.made: list[tuple[FetcherProcess, socket.socket]] = []

    def fetcher(self, stage: Stage) -> tuple[FetcherProcess, socket.socket]:
        """Return a fetcher, and its end of the channel."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.settimeout(PATIENCE_S)
        process = Process.start([sys.executable, "-c", "import time; time.sleep(600)"])
        made = FetcherProcess(process, ours, Life.begin(stage, time.monotonic()))
        self.fetchers.watch(made)
        self.made.append((made, theirs))
        return made, theirs

    def close(self) -> None:
        for made, theirs in self.made:
            made.process.end(timeout_s=PATIENCE_S)
            theirs.close()
            if made.channel is not None:
                made.channel.close()
        release(self.fetchers.kept.pairs)


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = Supervisor()
    yield made
    made.close()


def test_the_last_words_of_a_fetcher_are_heard(supervisor: Supervisor) -> None:
    """The next one would not know of a mount that it has made."""
    fetchers, ours = supervisor.fetchers, pair()
    fetchers.current, theirs = current, _ = supervisor.fetcher(Stage.SERVES)
    for device in (48, 49):
        send_answered(theirs)
        send_held(theirs, Keep(device, ours))
    send_held(theirs, Drop(48))
    theirs.close()
    current.process.end(timeout_s=PATIENCE_S)
    fetchers._do(Step.BURY)
    assert fetchers.current is None
    assert list(fetchers.kept.pairs) == [49]
    close(ours)


@pytest.mark.parametrize("is_dead", [True, False])
def test_a_standby_that_cannot_be_told_of_a_mount_ends(
    supervisor: Supervisor, is_dead: bool
) -> None:
    """And the supervisor goes on."""
    fetchers, ours = supervisor.fetchers, pair()
    fetchers.current, theirs = current, _ = supervisor.fetcher(Stage.SERVES)
    fetchers.standby, other = standby, _ = supervisor.fetcher(Stage.LOADS)
    if is_dead:
        other.close()
        assert standby.channel is not None
        assert is_readable(standby.channel, PATIENCE_S)  # a child that executes had it, too
    else:
        while standby.pass_on(Drop(1)):
            pass  # until its channel is full
    send_held(theirs, Keep(48, ours))
    assert fetchers._hear(current)
    assert names(fetchers.kept.pairs[48]) == BOTH
    await_end(standby)
    assert standby.process.code == -9
    close(ours)


def test_a_standby_is_told_of_mounts(supervisor: Supervisor) -> None:
    fetchers, ours = supervisor.fetchers, pair()
    fetchers.current, theirs = current, _ = supervisor.fetcher(Stage.SERVES)
    fetchers.standby, other = supervisor.fetcher(Stage.LOADS)
    send_held(theirs, Keep(48, ours))
    send_held(theirs, Drop(48))
    assert fetchers._hear(current)
    assert fetchers._hear(current)
    came = receive_requests(other)
    assert isinstance(came, Keep)
    assert names(came.pair) == BOTH
    assert receive_requests(other) == Drop(48)
    assert not fetchers.kept.pairs
    for fds in (ours, came.pair):
        close(fds)


def test_a_fetcher_starts_however_many_mounts_are_kept(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One word of a command line has room for those of some 5,000 mounts."""
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    monkeypatch.setattr("firstread.daemon.fetchers.FIXED", {})
    fetchers, ours = supervisor.fetchers, pair()
    fetchers.kept.pairs = dict.fromkeys(range(1 << 20, (1 << 20) + 10_000), ours)
    made = fetchers._launch(Stage.STARTS)
    fetchers.kept.pairs = {}
    await_end(made)
    assert made.process.code == 0
    fetchers._hang_up(made)
    close(ours)

# SPDX-License-Identifier: Apache-2.0
"""The facts about pre-content events that firstread/device/fanotify.py states, one test each."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstread.device.base import Read
from firstread.device.fanotify import Group
from firstread.errors import NodeError
from firstread.mountinfo import filesystem_of
from firstread.sectors.sectorstore import PRE_CONTENT_FILESYSTEMS
from firstread.testing.lazymount import SECTOR_BYTES, LazyMount, output, summary
from firstread.testing.patience import PATIENCE_S

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(60)]

EIO = "errno 5"


@pytest.fixture
def lazy(tmp_path: Path) -> Iterator[LazyMount]:
    if os.geteuid():
        pytest.skip("mounts: needs root")
    if filesystem_of(tmp_path) not in PRE_CONTENT_FILESYSTEMS:
        pytest.skip("needs a temporary directory on ext4, xfs or btrfs")
    with LazyMount(tmp_path) as mounted:
        yield mounted


def part(lazy: LazyMount, sector: int, offset: int = 0, count: int = 4096) -> str:
    return summary(lazy.data[sector][offset : offset + count])


def one_event(lazy: LazyMount) -> Read:
    (event,) = lazy.reads()
    return event


def wait_queued(lazy: LazyMount) -> None:
    """Wait until there is an event, and leave it in the queue."""
    assert select.select([lazy.group], [], [], PATIENCE_S)[0]


# Events and their causes.


def test_absent_sector_raises_one_event_and_none_once_unmarked(lazy: LazyMount) -> None:
    read, events = lazy.serve(lazy.read(0, 0, SECTOR_BYTES), lazy.complete)
    assert read == part(lazy, 0, 0, SECTOR_BYTES)
    assert len(events) == 1

    drop_caches()
    read, events = lazy.serve(lazy.read(0, 0, SECTOR_BYTES), lazy.complete)
    assert (read, events) == (part(lazy, 0, 0, SECTOR_BYTES), [])


@pytest.mark.parametrize("how", ["read", "random", "mmap", "sendfile"])
def test_verified_prefix_up_to_the_end_of_the_event_is_enough(lazy: LazyMount, how: str) -> None:
    read, events = lazy.serve(lazy.read(1, 500_000, 300_000, how), lazy.fill)
    assert read == part(lazy, 1, 500_000, 300_000)
    assert len(events) > 1
    assert all(count for *_, count in events)


@pytest.mark.parametrize("short", [1, 4096])
def test_prefix_that_ends_before_the_event_fails_and_is_never_zeros(
    lazy: LazyMount, short: int
) -> None:
    reader = lazy.read(2, 0, 8192, "random")
    read, events = lazy.serve(reader, lambda event: lazy.fill(event, short=short))
    assert events[0] == (2, 0, 8192)
    assert read == part(lazy, 2, 0, 4096)  # a short read up to the verified prefix

    assert lazy.serve(lazy.read(2, 4096, 4096, "random"), lazy.fill)[0] == part(lazy, 2, 4096)


def test_readahead_reads_at_most_128_kib_behind_what_was_asked(lazy: LazyMount) -> None:
    _, events = lazy.serve(lazy.read(0, 0, SECTOR_BYTES), lazy.fill)
    assert max(count for *_, count in events) == 128 * 1024


def test_exec_of_an_absent_program_waits_for_it(lazy: LazyMount) -> None:
    script = b"#!/bin/sh\necho it ran\nexit 0\n"
    lazy.data[3] = script + b"#" * (SECTOR_BYTES - len(script))
    # By a shell: Popen itself would wait for the exec, and so for us.
    command = ["sh", "-c", str(lazy.mountpoint / "3")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    read, events = lazy.serve(child, lazy.fill)
    assert read == "it ran"
    assert events


def test_denied_read_always_fails_with_eio(lazy: LazyMount) -> None:
    read, events = lazy.serve(lazy.read(0), lazy.deny)
    assert read == EIO
    # Failed readahead is not the end: the kernel asks once more for the single page.
    assert [count for *_, count in events] == [16384, 4096]


def test_denied_page_fault_kills_with_sigbus(lazy: LazyMount) -> None:
    reader = lazy.read(0, how="mmap")
    lazy.serve(reader, lazy.deny)
    assert reader.returncode == -signal.SIGBUS


def test_denied_read_can_be_repeated(lazy: LazyMount) -> None:
    assert lazy.serve(lazy.read(0), lazy.deny)[0] == EIO
    assert lazy.serve(lazy.read(0), lazy.fill)[0] == part(lazy, 0)


# Waiting readers.


def test_waiting_reader_can_be_killed_and_another_one_gets_the_page(lazy: LazyMount) -> None:
    first, event = lazy.read(0), one_event(lazy)
    second = lazy.read(0)
    assert lazy.events(timeout=0.3) == []  # this one waits for the page, not for us

    first.kill()
    assert first.wait(timeout=PATIENCE_S) == -signal.SIGKILL
    assert lazy.serve(second, lazy.fill)[0] == part(lazy, 0)
    assert lazy.group.answer(event.fd)  # no reader is left
    os.close(event.fd)


def test_event_of_a_killed_reader_leaves_the_queue(lazy: LazyMount) -> None:
    reader = lazy.read(0)
    wait_queued(lazy)
    reader.kill()
    reader.wait()
    assert lazy.events(timeout=0.2) == []


def test_reader_that_waits_when_the_mark_goes_still_waits(lazy: LazyMount) -> None:
    reader, event = lazy.read(1), one_event(lazy)
    lazy.group.unmark(event.fd)
    with pytest.raises(subprocess.TimeoutExpired):
        reader.wait(timeout=0.3)
    lazy.fill(event)
    assert output(reader) == part(lazy, 1)


def test_unmarked_absent_sector_fails_and_is_never_zeros(lazy: LazyMount) -> None:
    lazy.group.unmark_names(lazy.store.fileno(), lazy.store.names(lazy.ids))
    for how in ("read", "random", "sendfile"):
        assert output(lazy.read(0, how=how)) == EIO
    assert output(lazy.read(0, how="mmap")) == ""


def test_answer_to_an_unknown_number_is_reported(lazy: LazyMount) -> None:
    assert not lazy.group.answer(4999)


def test_reading_an_event_without_a_free_descriptor_denies_it(lazy: LazyMount) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    reader = lazy.read(0, how="random")
    wait_queued(lazy)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(NodeError, match="Too many open files") as caught:
            lazy.group.read(memoryview(bytearray(4096)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "limit of open files" in str(caught.value.hint)
    read, events = lazy.serve(reader, lazy.fill)
    assert (read, len(events)) == (part(lazy, 0), 1)  # its second attempt, see above


# Our own operations.


def own_events(lazy: LazyMount, action: Callable[[], object]) -> list[tuple[int, int]]:
    """Return (offset, count) of the events of this process while a thread does `action`."""
    thread = threading.Thread(target=action)
    thread.start()
    seen = []
    while thread.is_alive():
        for event in lazy.events(timeout=0.02):
            assert event.pid == os.getpid()
            seen.append((event.offset, event.count))
            lazy.group.finish([event.fd])
    return seen


def test_our_own_reads_writes_and_truncates_raise_events(lazy: LazyMount) -> None:
    path = lazy.path(0)
    fd = os.open(path, os.O_RDWR)
    assert own_events(lazy, lambda: os.pwrite(fd, b"x" * 5000, 0)) == [(0, 8192)]  # whole pages
    assert own_events(lazy, lambda: os.pread(fd, 100, 10)) == [(0, 4096)]
    assert own_events(lazy, lambda: os.ftruncate(fd, 0)) == [(0, 0)]
    assert own_events(lazy, lambda: os.truncate(path, 0)) == [(0, 0)]
    assert own_events(lazy, lambda: lazy.store.empty(lazy.ids[0])) == [(0, 0)]
    os.close(fd)


def test_operations_without_data_raise_no_event(lazy: LazyMount) -> None:
    path = lazy.path(0)
    fd = os.open(path, os.O_RDWR)
    actions: list[Callable[[], object]] = [
        lambda: os.stat(path),
        lambda: os.fdatasync(fd),
        lambda: path.chmod(0o400),
        lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
        path.unlink,
    ]
    assert [own_events(lazy, action) for action in actions] == [[]] * len(actions)
    os.close(fd)


def test_descriptor_opened_before_the_first_mark_raises_no_event_of_data(lazy: LazyMount) -> None:
    lazy.group.unmark_names(lazy.store.fileno(), lazy.store.names(lazy.ids[:1]))
    fd = os.open(lazy.path(0), os.O_RDWR)
    lazy.group.mark(fd)
    assert own_events(lazy, lambda: os.pwrite(fd, b"x", 0)) == []
    os.close(fd)


def test_files_opened_by_way_of_a_quiet_mount_raise_no_event_and_others_do(lazy: LazyMount) -> None:
    quiet = lazy.group.mark_mount(lazy.store.directory, ignore=True)
    fd = os.open(lazy.store.names(lazy.ids[:1])[0], os.O_RDWR, dir_fd=quiet)
    actions: list[Callable[[], object]] = [
        lambda: os.pwrite(fd, b"x", 0),
        lambda: os.pread(fd, 1, 0),
        lambda: os.ftruncate(fd, 0),
    ]
    assert [own_events(lazy, action) for action in actions] == [[]] * len(actions)
    reader = lazy.read(0)
    event = one_event(lazy)
    os.pwrite(fd, lazy.data[0], 0)
    lazy.group.finish([event.fd])
    assert output(reader) == part(lazy, 0)
    os.close(quiet)  # the mount stays as long as a file of it is open
    assert own_events(lazy, lambda: os.pwrite(fd, b"x", 0)) == []
    os.close(fd)


# Handing the group over.


def test_event_descriptor_can_be_sent_to_another_process_that_fills_and_answers(
    lazy: LazyMount,
) -> None:
    reader, event = lazy.read(0), one_event(lazy)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(ours, [b"."], [event.fd])
        child = os.fork()
        if child == 0:
            os.close(event.fd)
            _, (fd,), _, _ = socket.recv_fds(theirs, 1, 1)
            os.pwrite(fd, lazy.data[0], 0)  # this would wait for itself if it raised an event
            lazy.group.answer(event.fd)
            os._exit(0)
        os.waitpid(child, 0)
    assert output(reader) == part(lazy, 0)
    os.close(event.fd)
    assert lazy.events(timeout=0) == []


def test_event_that_a_dead_process_has_read_is_answered_by_its_number(lazy: LazyMount) -> None:
    reader = lazy.read(0)
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(sink, b"%d" % one_event(lazy).fd)
        signal.pause()
    number = int(os.read(source, 16))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(source)
    os.close(sink)

    assert lazy.events(timeout=0.2) == []  # the kernel does not deliver it again
    assert reader.poll() is None
    lazy.group.unmark_names(lazy.store.fileno(), lazy.store.names(lazy.ids[:1]))
    lazy.path(0).write_bytes(lazy.data[0])
    assert lazy.group.answer(number)
    assert output(reader) == part(lazy, 0)


ADOPTER = """
import sys
from firstread.device.fanotify import Group
group = Group.adopt(int(sys.argv[1]), int(sys.argv[2]))
print("adopted", flush=True)
sys.stdin.read()
"""


def adopter(lazy: LazyMount) -> subprocess.Popen[str]:
    """Return a process that has taken the group with pidfd_getfd, and exits on command."""
    process = subprocess.Popen(
        [sys.executable, "-c", ADOPTER, str(os.getpid()), str(lazy.group.fileno())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "adopted\n"
    return process


def test_reader_waits_until_the_last_holder_of_the_group_is_gone(lazy: LazyMount) -> None:
    reader = lazy.read(0)
    wait_queued(lazy)
    holder = adopter(lazy)
    lazy.group.close()
    with pytest.raises(subprocess.TimeoutExpired):
        reader.wait(timeout=0.3)

    holder.kill()
    holder.communicate()
    assert output(reader) == EIO  # the kernel lets the read through, and there are no bytes


def test_group_goes_to_another_process_and_back_while_a_reader_waits(lazy: LazyMount) -> None:
    reader = lazy.read(0)
    holder = adopter(lazy)
    lazy.group.close()
    lazy.group = Group.adopt(holder.pid, number_of_group(holder.pid))
    holder.kill()
    holder.communicate()
    assert lazy.serve(reader, lazy.fill)[0] == part(lazy, 0)


def number_of_group(pid: int) -> int:
    """Return the descriptor number of the fanotify group of a process."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if "fanotify" in os.readlink(entry):
            return int(entry.name)
    raise AssertionError(f"process {pid} holds no group")


def test_adopting_from_a_missing_process_is_a_node_error() -> None:
    with pytest.raises(NodeError, match="process 4194303"):
        Group.adopt(4194303, 3)


def test_after_the_death_of_all_holders_the_same_mount_heals(lazy: LazyMount) -> None:
    present, _ = lazy.serve(lazy.read(0, 0, SECTOR_BYTES), lazy.complete)
    filling, _ = lazy.serve(lazy.read(1, 0, 4096, "random"), lazy.fill)
    assert (present, filling) == (part(lazy, 0, 0, SECTOR_BYTES), part(lazy, 1))
    lazy.group.close()
    drop_caches()

    assert output(lazy.read(0, 0, SECTOR_BYTES)) == part(lazy, 0, 0, SECTOR_BYTES)
    assert output(lazy.read(1)) == part(lazy, 1)  # within the verified prefix
    assert output(lazy.read(1, 0, 8192)) == part(lazy, 1)  # across its end: short
    assert output(lazy.read(1, 4096)) == EIO
    assert output(lazy.read(2)) == EIO

    lazy.group = Group.open()
    lazy.group.mark_names(lazy.store.fileno(), lazy.store.names(lazy.ids[1:]))
    for sector in range(4):
        read, _ = lazy.serve(lazy.read(sector, 0, SECTOR_BYTES), lazy.complete)
        assert read == part(lazy, sector, 0, SECTOR_BYTES)


# Eviction.


def test_sectors_are_evicted_under_readers_that_never_fail(lazy: LazyMount) -> None:
    """Mark, wait, empty; every later read raises an event and fills the sector again.

    A read that passed the hook before the mark existed may stay in the kernel for as long as a busy
    machine delays it: hence the wait, here as in `firstread.cache.clock`.
    """
    loop = (
        "import os, sys\n"
        "while not os.path.exists(sys.argv[2]):\n"
        "    for name in '0123':\n"
        "        fd = os.open(sys.argv[1] + '/' + name, os.O_RDONLY)\n"
        "        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)\n"
        "        data = bytearray()\n"
        "        while block := os.read(fd, 65536): data += block\n"
        "        assert data == open(sys.argv[2] + name, 'rb').read(), name\n"
        "        os.close(fd)\n"
        "print('right')\n"
    )
    for sector, data in enumerate(lazy.data):
        (lazy.metadata.parent / f"expected{sector}").write_bytes(data)
    expected = str(lazy.metadata.parent / "expected")
    command = [sys.executable, "-I", "-S", "-c", loop, str(lazy.mountpoint), expected]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    evictions, marked, held = 0, dict[bytes, float](), list[Read]()
    while any(reader.poll() is None for reader in readers):
        held += lazy.reads(timeout=0.002)
        for event in held[:]:
            if event.sector_id not in marked:
                lazy.complete(event)
                held.remove(event)
        for victim in lazy.ids:
            if victim not in marked and lazy.store.size(victim) == SECTOR_BYTES:
                lazy.group.mark_names(lazy.store.fileno(), lazy.store.names([victim]))
                marked[victim] = time.monotonic()
            elif victim in marked and time.monotonic() - marked[victim] > 0.5:
                del marked[victim]
                os.close(os.open(lazy.store.path(victim), os.O_WRONLY | os.O_TRUNC))
                evictions += 1
        if evictions >= 16:
            Path(expected).touch()
    assert [output(reader) for reader in readers] == ["right"] * 2


def drop_caches() -> None:
    """Drop clean pages of the mount and of the sector files."""
    Path("/proc/sys/vm/drop_caches").write_text("3")

# SPDX-License-Identifier: Apache-2.0
"""The memory of a FUSE mount that outlives who serves it: its watches, and its journal."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.device.fusejournal import JOURNAL_BYTES, RECORDS, FuseJournal, Unanswered
from firstread.device.watches import (
    Watches,
    device_of,
    is_any_watched,
    lent_by,
    make_watches,
    note_device,
)

IDS = [b"a" * 32, b"b" * 32, b"a" * 32]


@pytest.fixture
def fd() -> Iterator[int]:
    made = make_watches(IDS)
    yield made
    os.close(made)


def read(unique: int) -> Unanswered:
    return Unanswered(unique, 9, 1 << 40, 1 << 20, 4711)


def test_the_next_process_finds_watched_sectors(fd: int) -> None:
    watches = Watches(fd, IDS)
    assert not is_any_watched(fd)
    watches.set([IDS[0], b"another"], on=True)
    assert is_any_watched(fd)
    again = Watches(fd, IDS)
    assert [again[slot] for slot in range(3)] == [True, False, True]
    again.set([IDS[0]], on=False)
    assert not watches.exist()
    assert not is_any_watched(fd)


def test_files_that_are_lent_are_noted_beside_watches(fd: int) -> None:
    watches = Watches(fd, IDS)
    watches.lend([IDS[0], b"another"])
    assert not watches.exist()
    assert not is_any_watched(fd)
    watches.set(IDS, on=True)
    assert is_any_watched(fd)
    watches.set([IDS[1]], on=False)
    assert [watches[slot] for slot in range(3)] == [True, False, True]
    assert watches.exist()
    watches.set(IDS, on=False)
    assert not watches.exist()
    assert Watches(fd, IDS).lent() == {IDS[0]}
    assert lent_by(fd) == {IDS[0]}  # for who cannot open the image


def test_watches_know_their_mount(fd: int) -> None:
    Watches(fd, IDS).set(IDS, on=True)
    assert device_of(fd) == 0
    note_device(fd, 48)
    assert device_of(fd) == 48
    assert is_any_watched(fd)


@pytest.mark.parametrize("content", [b"", b"frwatch", bytes(100), b"another!" + bytes(8)])
def test_another_file_is_of_no_mount(content: bytes) -> None:
    other = os.memfd_create("watches")
    os.write(other, content)
    assert device_of(other) == 0
    assert not is_any_watched(other)
    os.close(other)


def test_journals_leave_watches_alone(fd: int) -> None:
    watches = Watches(fd, IDS)
    for unique in range(2, 2 * RECORDS + 2, 2):
        watches.journal.add(read(unique))
    watches.journal.message[:] = b"\xff" * len(watches.journal.message)
    assert not watches.exist()
    assert device_of(fd) == 0
    assert len(Watches(fd, IDS).journal.records()) == RECORDS


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12))))
def test_the_next_process_finds_waiting_reads(steps: list[tuple[bool, int]]) -> None:
    memory = memoryview(bytearray(JOURNAL_BYTES))
    journal = FuseJournal(memory)
    waiting: dict[int, Unanswered] = {}
    for adds, unique in steps:
        if adds:
            journal.add(waiting.setdefault(unique, read(unique)))
        else:
            journal.remove(unique)
            waiting.pop(unique, None)
        if unique == 12:
            journal = FuseJournal(memory)
    assert sorted(FuseJournal(memory).records()) == sorted(waiting.values())
    journal.clear()
    assert FuseJournal(memory).records() == []


def test_a_journal_says_when_it_is_full() -> None:
    memory = memoryview(bytearray(JOURNAL_BYTES))
    journal = FuseJournal(memory)
    for unique in range(1, RECORDS + 1):
        assert journal.has_room()
        journal.add(read(unique))
    journal = FuseJournal(memory)
    assert not journal.has_room()
    journal.add(read(RECORDS))  # it is there
    journal.remove(1)
    assert journal.has_room()
    journal.add(read(1 << 63))
    assert read(1 << 63) in FuseJournal(memory).records()
    assert not journal.has_room()


def test_a_journal_takes_no_memory_before_it_is_used(fd: int) -> None:
    for _ in range(2):
        Watches(fd, IDS).journal.add(read(2))
    assert os.fstat(fd).st_blocks * 512 <= 9 * 4096
    assert len(Watches(fd, IDS).journal.records()) == 1


def test_the_watches_of_another_mount_are_refused(fd: int) -> None:
    with pytest.raises(OSError, match="of another mount"):
        Watches(fd, IDS[:2])

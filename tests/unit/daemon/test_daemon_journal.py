# SPDX-License-Identifier: Apache-2.0
"""The journal of events that wait, as a process finds it whose predecessor has died."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.daemon.journal import (
    EVENT_BUFFER_BYTES,
    RECORDS,
    Journal,
    is_journal,
    make_journal,
    most_waiting,
)
from firstread.device.base import Read


@pytest.fixture
def fd() -> Iterator[int]:
    fd = make_journal()
    yield fd
    os.close(fd)


def request(number: int, path: Path) -> Read:
    """Return an event about a file that is made, with a descriptor of it."""
    path.write_bytes(b"%d" % number)
    return Read(number, 4321, number * 7, 4096, os.open(path, os.O_RDWR))


def found(fd: int, known: set[int] | None = None) -> tuple[dict[int, bytes], list[int]]:
    """Return what another process finds: contents of the files by number, and what is lost."""
    journal = Journal(fd)
    events, lost = journal.reopen(known or set(), {})
    contents = {}
    for event in events:
        assert (event.pid, event.offset, event.length) == (4321, event.number * 7, 4096)
        assert not os.get_inheritable(event.fd)
        contents[event.number] = os.pread(event.fd, 10, 0)
        os.close(event.fd)
    journal.close()
    return contents, lost


def test_what_waits_is_found_with_its_file(fd: int, tmp_path: Path) -> None:
    journal = Journal(fd)
    held = [request(number, tmp_path / f"f{number}") for number in (5, 9, 700_000)]
    for event in held:
        journal.add(event)
        os.close(event.fd)
    journal.remove(9)
    journal.remove(9)
    assert found(fd) == ({5: b"5", 700_000: b"700000"}, [])
    assert found(fd, {5}) == ({700_000: b"700000"}, [])
    (tmp_path / "f5").unlink()
    assert found(fd) == ({700_000: b"700000"}, [5])
    journal.close()


def test_a_path_that_is_too_long_is_lost_and_nothing_else(fd: int, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True)
    journal = Journal(fd)
    for event in (request(3, deep / ("f" * 200)), request(4, tmp_path / "f")):
        journal.add(event)
        os.close(event.fd)
    assert found(fd) == ({4: b"4"}, [3])
    journal.close()


def test_more_events_than_records_do_no_harm(fd: int, tmp_path: Path) -> None:
    file = request(1, tmp_path / "f")
    journal = Journal(fd)
    for number in range(RECORDS + 5):
        journal.add(file._replace(number=number))
    for number in range(RECORDS + 5):
        journal.remove(number)
    journal.add(file)
    assert found(fd) == ({1: b"1"}, [])
    os.close(file.fd)
    journal.close()


def test_damaged_journals(tmp_path: Path) -> None:
    old = os.memfd_create("old")
    assert not is_journal(old)
    os.ftruncate(old, EVENT_BUFFER_BYTES)
    assert not is_journal(old)
    fd = make_journal()
    assert is_journal(fd)
    os.pwrite(fd, b"frevent2", EVENT_BUFFER_BYTES)
    assert not is_journal(fd)
    os.close(fd)
    os.close(old)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(3, 30)),
            st.tuples(st.just("remove"), st.integers(3, 30)),
            st.tuples(st.just("keep"), st.sets(st.integers(3, 30), max_size=8)),
            st.tuples(st.just("another process"), st.none()),
        ),
        max_size=40,
    )
)
def test_it_has_what_was_added_and_not_removed(steps: list[tuple[str, object]]) -> None:
    file = os.memfd_create("file")  # cannot be opened again by its name: all are lost
    fd = make_journal()
    journal = Journal(fd)
    expected: set[int] = set()
    for what, argument in steps:
        if what == "add" and argument not in expected:
            assert isinstance(argument, int)
            journal.add(Read(argument, 1, 2, 3, file))
            expected.add(argument)
        elif what == "remove":
            assert isinstance(argument, int)
            journal.remove(argument)
            expected.discard(argument)
        elif what == "keep":
            assert isinstance(argument, set)
            journal.keep([Read(number, 1, 2, 3, file) for number in argument])
            expected = set(argument)
        elif what == "another process":
            journal.close()
            journal = Journal(fd)
    assert sorted(journal.reopen(set(), {})[1]) == sorted(expected)
    journal.close()
    os.close(fd)
    os.close(file)


@pytest.mark.parametrize(
    ("open_files", "most"),
    [(1024, 768), (1300, 975), (20_000, 15_000), (1_000_000, RECORDS), (-1, RECORDS), (100, 1)],
)
def test_no_more_events_wait_than_have_a_descriptor_and_a_record(
    open_files: int, most: int
) -> None:
    assert most_waiting(open_files) == most

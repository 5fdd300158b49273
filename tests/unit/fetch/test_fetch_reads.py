# SPDX-License-Identifier: Apache-2.0
"""How many events an image may have waiting, and how many descriptors that takes."""

from __future__ import annotations

import os
from pathlib import Path

from firstread.device.base import Read
from firstread.fetch.reads import LEAST, Reads


class Events:
    """Events without files, of images."""

    def __init__(self, most: int) -> None:
        self.reads = Reads(most)
        self.count = 0

    def comes(self, image: str) -> bool:
        """Take an event; return whether its image may have it waiting."""
        self.count += 1
        read = self.reads.take(Read(self.count, 1, 0, 4096, -1), float(self.count))
        return self.reads.charge(read, image)

    def fills(self, image: str) -> None:
        """Let an image have all that it may, and deny what others have too much then."""
        while self.comes(image):
            pass
        for other in self.reads.crowding():
            for read in self.reads.of(other)[-self.reads.excess(other) :]:
                self.reads.release(read)


def test_an_image_leaves_as_much_room_as_it_takes() -> None:
    events = Events(1000)
    events.fills("hangs")
    assert events.reads.waiting("hangs") == 500
    assert all(events.comes("good") for _ in range(100))


def test_however_many_images_hang_there_is_room_for_another() -> None:
    events = Events(1000)
    for _ in range(50):  # until nothing changes any more
        for number in range(9):
            events.fills(f"hangs {number}")
    free = 1000 - len(events.reads)
    assert max(events.reads.waiting(f"hangs {number}") for number in range(9)) <= free
    assert free > 1000 / 11
    assert all(events.comes("good") for _ in range(40))


def test_the_excess_is_as_much_as_has_to_go() -> None:
    events = Events(1000)
    for _ in range(900):
        events.comes("hangs")
    assert events.reads.crowding() == ["hangs"]
    waiting, excess = events.reads.of("hangs"), events.reads.excess("hangs")
    assert [read.came for read in waiting] == sorted(read.came for read in waiting)
    for read in waiting[-excess:]:
        events.reads.release(read)
    assert events.reads.waiting("hangs") == 500
    assert events.reads.excess("hangs") == 0
    assert events.reads.crowding() == []


def test_few_reads_of_an_image_are_never_too_many() -> None:
    events = Events(100)
    for number in range(20):
        for _ in range(LEAST):
            events.comes(f"image {number}")
    assert len(events.reads) > 100
    assert events.reads.crowding() == []


def test_events_of_a_file_share_one_descriptor_until_the_last_is_answered(tmp_path: Path) -> None:
    reads = Reads(100)
    path = tmp_path / "sector"
    path.write_bytes(b"x")
    fds = [os.open(path, os.O_RDONLY) for _ in range(5)]
    taken = [reads.take(Read(n, 1, 0, 1, fd), 0.0) for n, fd in enumerate(fds)]
    assert {read.fd for read in taken} == {fds[0]}
    assert not any(is_open(fd) for fd in fds[1:])
    for read in taken[:4]:
        reads.release(read)
    assert os.pread(fds[0], 1, 0) == b"x"
    reads.release(taken[4])
    assert not is_open(fds[0])


def test_another_file_of_the_same_name_is_another(tmp_path: Path) -> None:
    reads, path = Reads(100), tmp_path / "sector"
    path.write_bytes(b"old")
    first = reads.take(Read(1, 1, 0, 1, os.open(path, os.O_RDONLY)), 0.0)
    path.unlink()
    path.write_bytes(b"new")
    second = reads.take(Read(2, 1, 0, 1, os.open(path, os.O_RDONLY)), 0.0)
    assert os.pread(first.fd, 3, 0) == b"old"
    assert os.pread(second.fd, 3, 0) == b"new"
    reads.release(first)
    reads.release(second)


def test_each_event_is_handed_on_with_a_descriptor_of_its_own(tmp_path: Path) -> None:
    reads, path = Reads(100), tmp_path / "sector"
    path.write_bytes(b"x")
    for number in range(3):
        reads.take(Read(number, 1, 0, 1, os.open(path, os.O_RDONLY)), 0.0)
    reads.take(Read(9, 1, 0, 1, -1), 0.0)  # there was no descriptor left: the journal has it
    handed = reads.hand_on()
    assert [request.number for request in handed] == [0, 1, 2]
    assert len({request.fd for request in handed}) == 3
    assert [os.pread(request.fd, 1, 0) for request in handed] == [b"x"] * 3
    for request in handed:
        os.close(request.fd)


def test_all_events_have_their_turn() -> None:
    events = Events(1000)
    for _ in range(10):
        events.comes("image")
    seen = {read for _ in range(4) for read in events.reads.some(3)}
    assert len(seen) == 10


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True

# SPDX-License-Identifier: Apache-2.0
"""How many events an image may have waiting, and how many descriptors that takes."""

from __future__ import annotations

import os
from pathlib import Path

from firstread.node.held import LEAST, Held
from firstread.node.wire import Request


class Events:
    """Events without files, of images."""

    def __init__(self, most: int) -> None:
        self.held = Held(most)
        self.count = 0

    def comes(self, image: str) -> bool:
        """Take an event; return whether its image may have it waiting."""
        self.count += 1
        self.held.take(Request(self.count, 1, 0, 4096, -1), float(self.count))
        return self.held.charge(self.count, image)

    def fills(self, image: str) -> None:
        """Let an image have all that it may, and deny what others have too much then."""
        while self.comes(image):
            pass
        for other in self.held.crowding():
            for request, _ in self.held.waiters(other)[-self.held.excess(other) :]:
                self.held.release(request.number)


def test_an_image_leaves_as_much_room_as_it_takes() -> None:
    events = Events(1000)
    events.fills("hangs")
    assert events.held.waiting("hangs") == 500
    assert all(events.comes("good") for _ in range(100))


def test_however_many_images_hang_there_is_room_for_another() -> None:
    events = Events(1000)
    for _ in range(50):  # until nothing changes any more
        for number in range(9):
            events.fills(f"hangs {number}")
    free = 1000 - len(events.held)
    assert max(events.held.waiting(f"hangs {number}") for number in range(9)) <= free
    assert free > 1000 / 11
    assert all(events.comes("good") for _ in range(40))


def test_what_is_too_much_is_as_much_as_has_to_go() -> None:
    events = Events(1000)
    for _ in range(900):
        events.comes("hangs")
    assert events.held.crowding() == ["hangs"]
    waiters, excess = events.held.waiters("hangs"), events.held.excess("hangs")
    assert [waiter[1] for waiter in waiters] == sorted(waiter[1] for waiter in waiters)
    for request, _ in waiters[-excess:]:
        events.held.release(request.number)
    assert events.held.waiting("hangs") == 500
    assert events.held.excess("hangs") == 0
    assert events.held.crowding() == []


def test_few_reads_of_an_image_are_never_too_many() -> None:
    events = Events(100)
    for number in range(20):
        for _ in range(LEAST):
            events.comes(f"image {number}")
    assert len(events.held) > 100
    assert events.held.crowding() == []


def test_events_of_a_file_share_one_descriptor_until_the_last_is_answered(tmp_path: Path) -> None:
    held = Held(100)
    path = tmp_path / "sector"
    path.write_bytes(b"x")
    fds = [os.open(path, os.O_RDONLY) for _ in range(5)]
    waiters = [held.take(Request(n, 1, 0, 1, fd), 0.0) for n, fd in enumerate(fds)]
    assert {request.fd for request, _ in waiters} == {fds[0]}
    assert not any(is_open(fd) for fd in fds[1:])
    for number in range(4):
        held.release(number)
    assert os.pread(fds[0], 1, 0) == b"x"
    held.release(4)
    assert not is_open(fds[0])


def test_another_file_of_the_same_name_is_another(tmp_path: Path) -> None:
    held, path = Held(100), tmp_path / "sector"
    path.write_bytes(b"old")
    first = held.take(Request(1, 1, 0, 1, os.open(path, os.O_RDONLY)), 0.0)[0]
    path.unlink()
    path.write_bytes(b"new")
    second = held.take(Request(2, 1, 0, 1, os.open(path, os.O_RDONLY)), 0.0)[0]
    assert os.pread(first.fd, 3, 0) == b"old"
    assert os.pread(second.fd, 3, 0) == b"new"
    held.release(1)
    held.release(2)


def test_each_event_is_handed_on_with_a_descriptor_of_its_own(tmp_path: Path) -> None:
    held, path = Held(100), tmp_path / "sector"
    path.write_bytes(b"x")
    for number in range(3):
        held.take(Request(number, 1, 0, 1, os.open(path, os.O_RDONLY)), 0.0)
    held.take(Request(9, 1, 0, 1, -1), 0.0)  # there was no descriptor left: the journal has it
    handed = held.hand_on()
    assert [request.number for request in handed] == [0, 1, 2]
    assert len({request.fd for request in handed}) == 3
    assert [os.pread(request.fd, 1, 0) for request in handed] == [b"x"] * 3
    for request in handed:
        os.close(request.fd)


def test_all_events_have_their_turn() -> None:
    events = Events(1000)
    for _ in range(10):
        events.comes("image")
    seen = {waiter for _ in range(4) for waiter in events.held.some(3)}
    assert len(seen) == 10


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True

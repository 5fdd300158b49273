# SPDX-License-Identifier: Apache-2.0
"""Every read is answered once, whatever happens to it. A list is the kernel, files are real."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from firstread.cache.pending import Awaits, PendingRead
from firstread.device.base import Read
from firstread.fetch.answers import MOST_TOLD, Answers
from firstread.fetch.reads import Reads

IMAGES = ("a", "b")
NUMBERS = range(4)
PLACES = [Awaits.MOUNT, Awaits.RETRY, Awaits.FETCH, Awaits.CHECK, Awaits.EMPTYING]


class Kernel:
    """Takes answers, and knows which numbers wait for one."""

    def __init__(self) -> None:
        self.waiting: set[int] = set()
        self.answered: list[tuple[int, bool]] = []

    def answer(self, number: int, *, allow: bool = True) -> bool:
        assert number in self.waiting, "it would be the answer to another read"
        self.waiting.discard(number)
        self.answered.append((number, allow))
        return True


class Lives(RuleBasedStateMachine):
    """Reads come, wait in several places, and are answered; the kernel uses numbers again."""

    @initialize()
    def start(self) -> None:
        self.directory = TemporaryDirectory()
        self.kernel = Kernel()
        self.told: list[int] = []
        self.is_deaf = False
        self.reads = Reads(8)
        self.answers = Answers(self.reads, self.kernel, self.tell)
        self.taken: list[PendingRead] = []  # all that ever were
        self.pending: list[PendingRead] = []  # those that should be in the table, oldest first
        self.waits: list[float] = []
        self.came = 0.0

    def tell(self, numbers: Sequence[int]) -> None:
        if self.is_deaf:
            raise BlockingIOError
        self.told += numbers

    def file(self, number: int) -> int:
        path = Path(self.directory.name) / str(number % 2)  # two sector files
        return os.open(path, os.O_RDWR | os.O_CREAT)

    @rule(number=st.sampled_from(NUMBERS), has_file=st.booleans())
    def take(self, number: int, has_file: bool) -> None:
        if number in self.kernel.waiting or number in {*self.answered_untold()}:
            return  # the supervisor has its descriptor still
        self.kernel.waiting.add(number)
        fd = self.file(number) if has_file else -1
        self.came += 1.0
        read = self.reads.take(Read(number, 1, 0, 4096, fd), self.came)
        read.note_wait = self.waits.append
        self.taken.append(read)
        self.pending.append(read)

    def answered_untold(self) -> list[int]:
        answered = [number for number, _ in self.kernel.answered]
        return answered[len(self.told) :]

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), allow=st.booleans())
    def answer(self, data: st.DataObject, allow: bool) -> None:
        """Some that wait, some that were answered long ago, some twice."""
        some = data.draw(st.lists(st.sampled_from(self.taken), max_size=4))
        before, waits = len(self.kernel.answered), len(self.waits)
        self.answers.give(some, allow=allow)
        due = [read for read in dict.fromkeys(some) if read in self.pending]
        assert self.kernel.answered[before:] == [(read.number, allow) for read in due]
        assert len(self.waits) - waits == (len(due) if allow else 0)
        self.pending = [read for read in self.pending if read not in due]

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), place=st.sampled_from(PLACES))
    def park(self, data: st.DataObject, place: Awaits) -> None:
        self.reads.park(data.draw(st.sampled_from(self.pending)), place)

    @rule(places=st.lists(st.sampled_from(PLACES), min_size=1, max_size=2, unique=True))
    def recall(self, places: list[Awaits]) -> None:
        expected = [read for read in self.pending if read.awaits in places]
        assert self.reads.recall(*places) == expected
        assert self.reads.recall(*places) == []

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), image=st.sampled_from(IMAGES))
    def charge(self, data: st.DataObject, image: str) -> None:
        self.reads.charge(data.draw(st.sampled_from(self.pending)), image)

    @rule(deaf=st.booleans())
    def supervisor(self, deaf: bool) -> None:
        self.is_deaf = deaf

    @invariant()
    def the_table_has_just_what_waits(self) -> None:
        assert len(self.reads) == len(self.pending)
        assert all((read in self.reads) == (read in self.pending) for read in self.taken)
        assert {read.number for read in self.pending} == self.kernel.waiting

    @invariant()
    def quotas_are_counted(self) -> None:
        for image in IMAGES:
            its = [read for read in self.pending if read.charged == image]
            assert self.reads.of(image) == its
            assert self.reads.waiting(image) == len(its)

    @invariant()
    def a_file_is_open_as_long_as_a_read_of_it_waits(self) -> None:
        open_files = {read.fd for read in self.pending if read.fd >= 0}
        assert len(open_files) == len({read.file for read in self.pending if read.file})
        for fd in open_files:
            os.fstat(fd)

    @invariant()
    def nobody_is_told_what_is_not_so(self) -> None:
        answered = [number for number, _ in self.kernel.answered]
        assert answered[: len(self.told)] == self.told

    def teardown(self) -> None:
        if not hasattr(self, "reads"):
            return
        handed = self.answers.freeze()
        assert [event.number for event in handed] == [r.number for r in self.pending if r.fd >= 0]
        assert len({event.fd for event in handed}) == len(handed)
        before = list(self.kernel.answered)
        self.answers.give(self.pending, allow=True)
        assert self.kernel.answered == before, "another process answers them"
        for event in handed:
            os.close(event.fd)
        self.directory.cleanup()


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_threads_that_answer_the_same_reads_answer_each_once() -> None:
    kernel, reads, told = Kernel(), Reads(1000), list[int]()
    answers = Answers(reads, kernel, told.extend)
    kernel.waiting = set(range(500))
    taken = [reads.take(Read(number, 1, 0, 4096, -1), 0.0) for number in range(500)]
    threads = [
        threading.Thread(target=answers.give, args=(taken,), kwargs={"allow": allow})
        for allow in (True, False, True, False)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [number for number, _ in kernel.answered] == told == list(range(500))
    assert len(reads) == 0


def test_an_answer_that_the_kernel_does_not_take_is_given_again() -> None:
    """A write that was interrupted by an error must not lose the read."""

    class Broken(Kernel):
        def answer(self, number: int, *, allow: bool = True) -> bool:
            raise OSError("the group is gone")

    reads = Reads(10)
    read = reads.take(Read(1, 1, 0, 4096, -1), 0.0)
    with pytest.raises(OSError, match="gone"):
        Answers(reads, Broken(), lambda _: None).give([read], allow=True)
    assert read in reads


def test_a_message_has_a_bounded_size() -> None:
    sizes: list[int] = []
    kernel, reads = Kernel(), Reads(10_000)
    kernel.waiting = set(range(MOST_TOLD + 1))
    taken = [reads.take(Read(number, 1, 0, 4096, -1), 0.0) for number in range(MOST_TOLD + 1)]
    answers = Answers(reads, kernel, lambda numbers: sizes.append(len(numbers)))
    answers.give(taken, allow=False)
    assert sizes == [MOST_TOLD, 1]

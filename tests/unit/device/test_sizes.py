# SPDX-License-Identifier: Apache-2.0
"""The table of readable sizes: both sides, also if one stops in the middle."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstread.device import sizes as module
from firstread.device.sizes import PROBES, SLOTS, Looks, Sizes, make_table
from firstread.testing.patience import PATIENCE_S

Both = tuple[Sizes, Looks]


@pytest.fixture
def both() -> Iterator[Both]:
    fd = make_table()
    writer, reader = Sizes(fd), Looks(fd)
    os.close(fd)
    yield writer, reader
    writer.close()
    reader.close()


def ids(count: int, seed: int = 0) -> list[bytes]:
    draw = random.Random(seed).randbytes
    return [draw(32) for _ in range(count)]


def colliding(count: int) -> list[bytes]:
    """Sectors that all want the same slot."""
    return [bytes(4) + sector_id[4:] for sector_id in ids(count)]


def test_a_read_is_covered_up_to_the_size_that_was_published(both: Both) -> None:
    sizes, looks = both
    one, other = ids(2)
    assert not looks.covers(one, 1)
    sizes.publish(one, 8192)
    assert looks.covers(one, 8192)
    assert not looks.covers(one, 8193)
    assert not looks.covers(other, 1)
    sizes.publish(one, 0)
    assert not looks.covers(one, 1)


def test_the_writer_looks_for_its_own_threads(both: Both) -> None:
    sizes, looks = both
    one, other = ids(2)
    assert not sizes.covers(one, 1)
    sizes.publish(one, 8192)
    assert sizes.covers(one, 8192)
    assert looks.covers(one, 8192)
    assert not sizes.covers(one, 8193)
    assert not sizes.covers(other, 1)
    assert sizes.answered() == {one: 2}
    sizes.publish(one, 0)
    assert not sizes.covers(one, 1)


def test_slots_that_were_taken_back_cover_nothing(both: Both) -> None:
    sizes, _ = both
    crowd = colliding(PROBES + 1)
    for sector_id in crowd:
        sizes.publish(sector_id, 4096)
    assert [sizes.covers(sector_id, 4096) for sector_id in crowd] == [True] * PROBES + [False]
    sizes.tidy()
    assert not any(sizes.covers(sector_id, 1) for sector_id in crowd)
    assert sizes.answered() == dict.fromkeys(crowd[:PROBES], 1)


def test_a_sector_that_nobody_knows_is_not_covered(both: Both) -> None:
    sizes, looks = both
    sizes.publish(ids(1)[0], 4096)
    assert not looks.covers(b"", 1)
    assert not looks.covers(bytes(32), 1)


def test_large_sizes_arrive_whole(both: Both) -> None:
    sizes, looks = both
    (one,) = ids(1)
    sizes.publish(one, 1 << 40)
    assert looks.covers(one, 1 << 40)
    assert not looks.covers(one, (1 << 40) + 1)


def test_reads_that_were_answered_are_counted_once(both: Both) -> None:
    sizes, looks = both
    one, other = ids(2)
    for sector_id in (one, other):
        sizes.publish(sector_id, 4096)
    for end in (1, 4096, 4097):
        looks.covers(one, end)
    assert sizes.answered() == {one: 2}
    assert sizes.answered() == {}


def test_a_sector_that_finds_no_slot_is_asked_about(both: Both) -> None:
    sizes, looks = both
    crowd = colliding(PROBES + 1)
    for sector_id in crowd:
        sizes.publish(sector_id, 4096)
    assert [looks.covers(sector_id, 4096) for sector_id in crowd] == [True] * PROBES + [False]


def test_a_crowded_table_is_taken_back_and_used_again(both: Both) -> None:
    sizes, looks = both
    crowd = colliding(PROBES + 1)
    for sector_id in crowd:
        sizes.publish(sector_id, 4096)
    assert looks.covers(crowd[0], 4096)
    sizes.tidy()
    assert not any(looks.covers(sector_id, 1) for sector_id in crowd)
    assert sizes.answered() == {crowd[0]: 1}
    sizes.publish(crowd[-1], 4096)
    assert looks.covers(crowd[-1], 4096)
    assert sizes.answered() == {crowd[-1]: 1}


def test_a_table_with_room_is_left_alone(both: Both) -> None:
    sizes, looks = both
    (one,) = ids(1)
    sizes.publish(one, 4096)
    sizes.tidy()
    assert looks.covers(one, 4096)


def test_nothing_is_settled_while_a_look_is_under_way(both: Both) -> None:
    sizes, looks = both
    assert sizes.is_settled()
    looks.begin()
    assert not sizes.is_settled()
    looks.end()
    assert sizes.is_settled()


def test_slots_that_a_look_may_be_at_are_not_given_to_other_sectors(both: Both) -> None:
    sizes, looks = both
    crowd = colliding(PROBES + 1)
    for sector_id in crowd:
        sizes.publish(sector_id, 4096)
    looks.begin()
    sizes.tidy()
    sizes.publish(crowd[-1], 4096)
    assert not looks.covers(crowd[-1], 4096)
    looks.end()
    sizes.tidy()
    sizes.publish(crowd[-1], 4096)
    assert looks.covers(crowd[-1], 4096)


LOOKS_ALWAYS = """
import sys
from firstread.device.sizes import Looks
looks = Looks(int(sys.argv[1]))
looks.begin()
print("looks", flush=True)
while True:
    looks.begin()
"""


@pytest.fixture
def busy() -> Iterator[tuple[Sizes, subprocess.Popen[str]]]:
    """A reader in another process that begins one look after the other."""
    fd = make_table()
    command = [sys.executable, "-c", LOOKS_ALWAYS, str(fd)]
    with subprocess.Popen(command, pass_fds=[fd], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "looks\n"
        yield Sizes(fd), reader
        reader.kill()
    os.close(fd)


def test_one_look_after_the_other_settles(busy: tuple[Sizes, subprocess.Popen[str]]) -> None:
    assert busy[0].is_settled()


def test_a_reader_that_is_suspended_in_a_look_does_not_settle(
    busy: tuple[Sizes, subprocess.Popen[str]],
) -> None:
    sizes, reader = busy
    reader.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, reader.pid, os.WSTOPPED)
    assert not sizes.is_settled()
    reader.send_signal(signal.SIGCONT)
    assert any(sizes.is_settled() for _ in range(int(PATIENCE_S / module.SETTLE_S)))


def test_a_reader_that_was_killed_in_a_look_does_not_settle(
    busy: tuple[Sizes, subprocess.Popen[str]],
) -> None:
    sizes, reader = busy
    reader.kill()
    reader.wait()
    assert not sizes.is_settled()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, 30), st.integers(0, 3)),
        st.tuples(st.just("look"), st.integers(0, 30), st.integers(1, 3)),
        st.tuples(st.just("tidy"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=50)
@given(STEPS)
def test_no_look_ever_finds_more_than_was_published_last(steps: list[tuple[str, int, int]]) -> None:
    fd = make_table()
    sizes, looks = Sizes(fd), Looks(fd)
    names = colliding(31)
    published: dict[int, int] = {}
    for what, number, size in steps:
        if what == "publish":
            sizes.publish(names[number], size)
            published[number] = size
        elif what == "look":
            looks.begin()
            covered = looks.covers(names[number], size)
            looks.end()
            assert not covered or published.get(number, 0) >= size
        else:
            sizes.tidy()
    for side in (sizes, looks):
        side.close()
    os.close(fd)


def test_a_table_is_small() -> None:
    fd = make_table()
    assert os.fstat(fd).st_size == 64 + SLOTS * 48
    assert os.fstat(fd).st_blocks == 0
    os.close(fd)

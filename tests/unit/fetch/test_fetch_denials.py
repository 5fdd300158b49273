# SPDX-License-Identifier: Apache-2.0
"""What counts as the same read once more, after it was denied."""

from __future__ import annotations

from firstread.cache.pending import PendingRead
from firstread.device.base import WHOLE_SECTOR
from firstread.fetch.denials import AGAIN_S, MOST, NEXT_S, Denials
from firstread.units import KiB

SECTOR, OTHER = b"s" * 32, b"o" * 32
SIZE = 256 * KiB
CAME, DENIED = 100.0, 108.0


def read(
    offset: int, length: int = 4 * KiB, pid: int = 7, came: float = DENIED + 0.001
) -> PendingRead:
    return PendingRead(1, pid, offset, length, -1, came)


def denied(*reads: PendingRead, began: float = 0.0) -> Denials:
    """Return what has denied these; `began`: when each process but 7 did."""
    denials = Denials(lambda pid, before: pid == 7 or began <= before)
    for denied_read in reads:
        denials.note(denied_read, SECTOR, SIZE, DENIED)
    return denials


def test_the_page_of_readahead_that_was_denied() -> None:
    denials = denied(read(0, 128 * KiB, came=CAME))
    assert denials.repeats(read(0), SECTOR)
    assert denials.repeats(read(64 * KiB), SECTOR)  # of a page fault, and once more
    assert denials.repeats(read(64 * KiB), SECTOR)
    assert not denials.repeats(read(128 * KiB), SECTOR)
    assert not denials.repeats(read(0), OTHER)


def test_a_new_attempt_a_moment_later_has_its_chance() -> None:
    denials = denied(read(0, came=CAME))
    assert not denials.repeats(read(0, came=DENIED + 2 * AGAIN_S), SECTOR)
    assert not denials.repeats(read(0, came=DENIED - 0.001), SECTOR)  # it waited already


def test_progress_ends_a_denial() -> None:
    denials = denied(read(0, came=CAME))
    denials.clear(SECTOR)
    assert not denials.repeats(read(0), SECTOR)


def test_readahead_that_goes_on_in_the_next_sector() -> None:
    denials = denied(read(SIZE - 64 * KiB, 64 * KiB, came=CAME))
    assert denials.repeats(read(0, 64 * KiB), OTHER)
    assert not denials.repeats(read(0, 64 * KiB, came=DENIED + 2 * NEXT_S), OTHER)
    assert not denials.repeats(read(0, 64 * KiB, pid=8), OTHER)
    assert not denied(read(0, came=CAME)).repeats(read(0), OTHER)


def test_a_read_whose_range_is_not_known_says_nothing_of_the_next_sector() -> None:
    denials = denied(read(0, WHOLE_SECTOR, came=CAME))
    assert denials.repeats(read(0, WHOLE_SECTOR), SECTOR)
    assert not denials.repeats(read(0, WHOLE_SECTOR), OTHER)


def test_readers_of_the_same_page() -> None:
    first = read(0, 64 * KiB, came=CAME)
    assert denied(first, began=CAME + 1).repeats(read(0, pid=8), SECTOR)
    assert not denied(first, began=CAME + 6).repeats(read(0, pid=8), SECTOR)
    assert not denied(first).repeats(read(0, pid=8, came=DENIED + 2 * NEXT_S), SECTOR)
    assert not denied(first).repeats(read(128 * KiB, pid=8), SECTOR)
    denials = denied()
    denials.note(first, SECTOR, SIZE, DENIED, alone=True)
    assert not denials.repeats(read(0, pid=8), SECTOR)
    assert denials.repeats(read(0), SECTOR)


def test_a_process_that_cannot_be_seen_waits_as_any_other() -> None:
    assert not denied(read(0, pid=0, came=CAME)).repeats(read(0, pid=0), SECTOR)


def test_threads_of_one_process_are_denied_each_their_own() -> None:
    ranges = [n * 8 * KiB for n in range(8)]
    denials = denied(*(read(offset, came=CAME) for offset in ranges))
    assert all(denials.repeats(read(offset), SECTOR) for offset in ranges)
    assert not any(denials.repeats(read(offset + 4 * KiB), SECTOR) for offset in ranges)


def test_denials_are_bounded_and_soon_forgotten() -> None:
    denials = denied()
    for number in range(2 * MOST):
        denials.note(read(0, pid=number + 1, came=CAME), SECTOR, SIZE, DENIED)
        assert len(denials) <= MOST
    denials.note(read(0), OTHER, SIZE, DENIED + AGAIN_S)
    assert len(denials) == 2

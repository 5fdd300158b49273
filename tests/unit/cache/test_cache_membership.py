# SPDX-License-Identifier: Apache-2.0
"""What images say of sectors together."""

from __future__ import annotations

from firstread.cache.membership import Member, Membership
from firstread.sectors.format import SectorEntry

A, B, C = (bytes([number]) * 32 for number in range(3))


def member(**sizes: int) -> Member:
    ids = {"a": A, "b": B, "c": C}
    return Member(SectorEntry(ids[name], size, 0, 0, size) for name, size in sizes.items())


def test_a_sector_belongs_to_whoever_has_it() -> None:
    members, one, other = Membership(), member(a=1, b=1), member(b=1, c=1)
    members.add(one)
    members.add(other)
    assert [members.having(i) for i in (A, B, C)] == [(one,), (one, other), (other,)]
    assert members.remove(one) == [A]
    assert [members.having(i) for i in (A, B, C)] == [(), (other,), (other,)]
    assert members.remove(other) == [B, C]


def test_the_largest_size_holds_that_was_not_refuted() -> None:
    members, truth, lie = Membership(), member(a=4), member(a=8)
    members.add(truth)
    assert members.whole_size(A) == 4
    members.add(lie)
    assert members.whole_size(A) == 8
    lie.void.add(A)
    assert members.whole_size(A) == 4
    members.remove(truth)
    assert members.whole_size(A) == members.whole_size(B) == 0


def test_one_member_is_enough_for_a_pin() -> None:
    members, one, other = Membership(), member(a=1), member(a=1, b=1)
    members.add(one)
    members.add(other)
    assert not members.is_pinned(A)
    other.pinned = True
    assert members.is_pinned(A)
    assert members.is_pinned(B)
    members.remove(other)
    assert not members.is_pinned(A)


def test_an_image_is_complete_until_one_of_its_sectors_goes() -> None:
    members, one, other = Membership(), member(a=1, b=1), member(b=1, c=1)
    one.absent = {A}
    for image in (one, other):
        members.add(image)
    assert [members.is_complete(i) for i in (A, B, C)] == [False, True, True]
    members.note_whole(A)
    assert members.is_complete(A)
    members.note_absent(B)
    assert [members.is_complete(i) for i in (A, B, C)] == [False, False, False]

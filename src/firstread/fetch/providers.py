# SPDX-License-Identifier: Apache-2.0
"""The images that have a sector, and which of them to ask next.

Owns which served image a member of `firstread.cache.membership` is (that has the index from a
sector's id to its members), and what is known against them: answers that were wrong, sizes that
were proven wrong, sectors that they could not give. Does not fetch. Safe to use from several
threads; looking up takes no lock.

Invariant: images are asked in the order in which they were served, unless something is known
against them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from firstread.cache.membership import Member
from firstread.cache.pending import PendingRead
from firstread.cache.presence import Presence
from firstread.config import PolicyTable
from firstread.fetch.lane import Lane
from firstread.fetch.policy import most_patient
from firstread.fetch.served import Served
from firstread.sectors.source import Wanted

log = logging.getLogger("fetcher")


class Offer(NamedTuple):
    """An image that has a sector, and the sector as it has it."""

    served: Served
    sector: Wanted


class Providers:
    """The served images, by sector.

    Args:
        presence: knows who has a sector, and what they say of its size.
        policy: of what is mounted no more, but still used.
    """

    def __init__(self, presence: Presence, policy: PolicyTable) -> None:
        self._presence, self._members = presence, presence.members
        self._policy = policy
        self._served: dict[Member, Served] = {}
        self._useless: dict[bytes, frozenset[Served]] = {}  # that cannot give a sector, by its id
        self._asked: set[bytes] = set()  # sectors whose content has not shown their size
        self._lock = threading.Lock()  # of all three

    def add(self, served: Served, prepare: Callable[[Member], None] = lambda _: None) -> None:
        """Ask an image for its sectors from now on, once `prepare` has returned."""
        self._presence.serve(served.member)
        try:
            prepare(served.member)
        except BaseException:
            self._presence.withdraw(served.member)
            raise
        with self._lock:
            self._served[served.member] = served

    def remove(self, served: Served) -> None:
        """Do not ask an image any more."""
        self._presence.withdraw(served.member)
        with self._lock:
            self._served.pop(served.member, None)
            left = {i: known - {served} for i, known in self._useless.items()}
            self._useless = {i: known for i, known in left.items() if known}

    def having(self, sector_id: bytes) -> Iterator[Offer]:
        """Yield all who have a sector, and are not proven wrong about it.

        The first is charged with it, and asked for it unless its source has lied more than others.
        """
        for member in self._members.having(sector_id):
            served = self._served.get(member)
            if served is None or sector_id in member.void:
                continue
            sector = served.sectors.find(sector_id)
            if sector is not None:
                yield Offer(served, sector)

    def sharing(self, sector_id: bytes) -> list[Served]:
        """Return all who have a sector; the first is charged with what is done for it."""
        return [offer.served for offer in self.having(sector_id)]

    def waited(self, read: PendingRead, seconds: float) -> None:
        """Note a read that goes on after so many seconds, in the records of all who may read."""
        for served in self.sharing(read.sector_id) if read.length else ():
            slot = served.sectors.slot(read.sector_id)
            if slot is not None:
                served.log.note(read.came, slot, read.offset, read.inside, seconds)

    def charged(self, sector_id: bytes) -> list[Served]:
        """Return who is charged with what is done for a sector; nobody once it is withdrawn."""
        return [offer.served for offer in self.having(sector_id)][:1]

    def claiming(self, sector: Wanted, lane: Lane | None = None) -> list[Served]:
        """Return who says of a sector that it lies there; if `lane`, from that source."""
        return [
            served
            for served, claimed in self.having(sector.entry.id)
            if claimed == sector and lane in (None, served.lane)
        ]

    # -- who is asked --------------------------------------------------------------------------

    def first(self, sector_id: bytes, end: int) -> Offer | None:
        """Return whom to ask for a sector; None if nobody has it.

        Args:
            sector_id: which.
            end: of what is read; an image that says the sector ends before that is no help.
        """
        offers = list(self.having(sector_id))
        if len(offers) < 2:
            return offers[0] if offers else None
        useless = self._useless.get(sector_id, frozenset())
        return best(offers, min(end, self._members.whole_size(sector_id)), useless)

    def other(self, sector: Wanted, lane: Lane, *, elsewhere: bool = False) -> Offer | None:
        """Return who else has a sector and has not given wrong bytes of it.

        Args:
            sector: which, as `lane` was asked for it.
            lane: that has failed; another image in it may say that the sector lies elsewhere.
            elsewhere: only of another image.
        """
        failed = self.claiming(sector, lane)
        useless = self._useless.get(sector.entry.id, frozenset()).union(failed)
        images = {served.image.digest for served in failed} if elsewhere else set()
        offers = in_turn(list(self.having(sector.entry.id)), lane)
        others = [o for o in offers if o[0] not in useless and o[0].image.digest not in images]
        return min(others, key=lambda o: (o.served.lies, o.served.lane.is_down), default=None)

    def policy(self, sector: Wanted) -> PolicyTable:
        """Return what holds for reads of a sector."""
        # Any of these may be read through; wrong bytes concern the images that name this place.
        patient = self._most_patient(offer.served for offer in self.having(sector.entry.id))
        corrupt = self._most_patient(self.claiming(sector))
        return PolicyTable(patient.stall_s, corrupt.on_corruption, patient.require)

    def _most_patient(self, images: Iterable[Served]) -> PolicyTable:
        policies = [policy for served in images for policy in served.policies.values()]
        return most_patient(policies, self._policy)

    def is_undecided(self, sector: Wanted) -> bool:
        """Return whether the content of a sector's file is to be asked which of two sizes is right.

        It is asked once. A fetcher before may have known. Else a sector that is whole would keep
        its mark, and raise events, as long as an image is mounted that says it is larger.
        """
        whole = self._members.whole_size(sector.entry.id)
        return sector.entry.size != whole and sector.entry.id not in self._asked

    def note_asked(self, sector_id: bytes) -> None:
        """Note that the content of a sector is being asked."""
        self._asked.add(sector_id)

    # -- what is known against them ------------------------------------------------------------

    def note_lie(self, concerned: Iterable[Served]) -> None:
        """Note that an answer was not what these images say."""
        with self._lock:
            for served in concerned:
                served.lies += 1

    def note_useless(self, sector: Wanted, lane: Lane) -> None:
        """Note that a source cannot give a sector, until somebody has or nobody can."""
        sector_id, failed = sector.entry.id, self.claiming(sector, lane)
        with self._lock:
            known = self._useless.get(sector_id, frozenset())
            self._useless[sector_id] = known.union(failed)

    def forget_useless(self, sector_id: bytes) -> None:
        """Ask all for a sector again."""
        with self._lock:
            self._useless.pop(sector_id, None)

    def prove(self, sector_id: bytes, size: int) -> None:
        """Note that a sector has `size` bytes: its frame table, or its content, has shown it."""
        self._asked.discard(sector_id)
        for served, sector in list(self.having(sector_id)):
            if sector.entry.size != size:
                self.refute(served, sector_id)

    def refute(self, served: Served, sector_id: bytes) -> None:
        """Do not believe an image any more about a sector: another size of it was proven.

        Its mounts stay, and reads through them go as far as the true sector does.
        """
        log.error("image %s lies about sector %s", served.image.digest, sector_id.hex())
        self._presence.refute(served.member, sector_id)
        self.note_lie([served])


def best(offers: Iterable[Offer], end: int, useless: frozenset[Served]) -> Offer:
    """Return whom to ask first: who says enough, can give it, was wrong least often and works.

    Args:
        offers: at least one.
        end: of what is read, in bytes of the sector.
        useless: who could not give it.
    """

    def rank(offer: Offer) -> tuple[bool, bool, int, bool]:
        served = offer.served
        short = offer.sector.entry.size < end
        return short, served in useless, served.lies, served.lane.is_down

    return min(offers, key=rank)


def in_turn(offers: list[Offer], lane: Lane) -> list[Offer]:
    """Return offers from that of `lane` on, so that each of several that are down is tried."""
    turn = next((n for n, offer in enumerate(offers) if offer.served.lane is lane), 0)
    return [*offers[turn:], *offers[:turn]]

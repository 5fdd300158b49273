# SPDX-License-Identifier: Apache-2.0
"""The fetcher: answers events by filling sector files.

Owns the way from an event to a lane, and from a verified frame to the reader that waits for it:
`Fetcher.handle` → `Lane.demand` → `Repository.open_blob`. It holds no kernel state of its own: what
it knows of sectors is the size of their files, so it can die at any moment, and the next one goes
on. Does not mount (`firstread.node.node` does), and knows no policy beside the lanes'.

Invariant: an event is allowed only when the file covers it with verified bytes, and only with a
`Cache.touch`, so that the file stays as long as the read takes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from firstread.config import CacheTable, PolicyTable
from firstread.device.fanotify import Group
from firstread.device.scanners import is_scanner
from firstread.errors import (
    FirstreadError,
    ImageError,
    NodeError,
    NotFoundError,
    from_os_error,
    is_disk_full,
)
from firstread.node.cache import Cache
from firstread.node.check import Checks
from firstread.node.denials import Denials
from firstread.node.evict import Verdict
from firstread.node.filling import Cause, Filling, Waiter, Wanted
from firstread.node.held import Held
from firstread.node.images import NodeImage
from firstread.node.journal import RECORDS
from firstread.node.lane import Lane
from firstread.node.mounts import Access
from firstread.node.opener import HeldUpError, Opener
from firstread.node.policy import most_patient
from firstread.node.quarantine import Quarantine
from firstread.node.readers import gone, may_have_read, sees_processes
from firstread.node.retry import may_pass
from firstread.node.served import Served
from firstread.node.settle import Settler
from firstread.node.stats import Feed
from firstread.node.wire import MOST_ANSWERED, Request, send_answered
from firstread.oci.repository import Repository
from firstread.sectors.store import SectorStore

log = logging.getLogger("fetcher")

PATIENCE = 2  # failures in a row of one source, before another one that has the sector is asked
LOOKS = 1024  # events a second whose readers are looked at, 15 us each
SCANNER_S = 10.0  # that a scanner waits for a read, while others wait for it
KEEP_S = 1.0  # for wrong bytes to be written to the disk
UNSERVED = "?"  # image of reads of mounts that stand and are not served yet
CROWDING_S = 5.0  # that the first read of an image has waited, before those beyond its quota fail


Source = tuple[str, Access]  # name of an image repository, and how it is reached


class Fetcher:
    """Fills sectors of all images of the node.

    Args:
        store: of the sector files.
        group: that the events come from.
        channel: to the supervisor.
        workers: requests at a time to one repository.
        policy: of what is mounted no more, but still used.
        limits: of the store.
        most_waiting: events that there is room for.
    """

    def __init__(
        self,
        store: SectorStore,
        group: Group,
        channel: socket.socket,
        *,
        workers: int,
        policy: PolicyTable,
        limits: CacheTable,
        most_waiting: int = RECORDS,
    ) -> None:
        self.store = store
        self.feed = Feed()
        self.cache = Cache(store, group, limits, self)
        self.checks = Checks(store, self.cache, self.answer, self.again, self._deny, self.prove)
        self.settler = Settler(store, self.cache.holding)
        self._held = Held(most_waiting)
        self._denials = Denials(may_have_read)
        self._opener = Opener("open")
        self._sees_readers = sees_processes()
        self._expecting = False  # a mount stands that is not served yet: see `expect`
        self._early: list[Waiter] = []  # reads of such
        self._later: list[Waiter] = []  # reads that this process was too short of something for
        self._useless: dict[bytes, set[Served]] = {}  # that cannot give a sector, by its id
        self._undecided: set[bytes] = set()  # sectors whose content has not shown their size
        self._crowding: set[str] = set()  # images beyond their quota for long; replaced only
        self._untold: list[int] = []  # answered, and the supervisor does not know
        self._answering = threading.Lock()
        self._group = group
        self._channel = channel
        self._workers = workers
        self._policy = policy
        self._quarantine = Quarantine(store.root)
        self._keeper = Opener("quarantine", KEEP_S)
        self._lanes: dict[Source, Lane] = {}
        self._served: dict[tuple[str, Source], Served] = {}  # replaced, never changed
        self._mounted: Counter[bytes] = Counter()  # images that have a sector
        self._whole: dict[bytes, int] = {}  # the most bytes that one of them gives it
        self._pinned: set[bytes] = set()  # replaced, never changed
        self._complete: set[bytes] = set()  # sectors of images that are all here; likewise

    # -- images --------------------------------------------------------------------------------

    def serve(
        self, image: NodeImage, source: Source, open_repository: Callable[[], Repository]
    ) -> Served:
        """Answer events of the sectors of `image` from now on, from one source.

        Args:
            image: which.
            source: images that come from the same one share its lane.
            open_repository: opens it, when it is needed.
        """
        key = (image.digest, source)
        served = self._served.get(key)
        if served is None:
            if source not in self._lanes:
                self._lanes[source] = Lane(source[0], open_repository, self, workers=self._workers)
            served = Served(image, self._lanes[source])
            with self.cache.changed:
                self._served = {**self._served, key: served}
                self._mounted.update(served.sectors)
                for sector in image.block_image.index.sectors:
                    self._whole[sector.id] = max(sector.size, self._whole.get(sector.id, 0))
        return served

    def withdraw(self, served: Served) -> None:
        """Stop serving an image that is not mounted any more from this source."""
        with self.cache.changed:
            self._served = {k: other for k, other in self._served.items() if other is not served}
            self._mounted -= Counter(served.sectors)
            for sector_id in served.sectors:
                if sector_id not in self._mounted:
                    self._whole.pop(sector_id, None)
                elif self._is_disputed(sector_id, served):
                    self._size_anew([sector_id])
            self._note_complete()
        self.cache.mounts_changed()
        self.pins_changed()
        served.lane.forget(set(served.sectors) - self._ids(served.lane))
        if not any(other.lane is served.lane for other in self._served.values()):
            self._lanes = {k: lane for k, lane in self._lanes.items() if lane is not served.lane}
            served.lane.close()

    def _ids(self, lane: Lane) -> set[bytes]:
        """Return the sectors of all images that are fetched by `lane`."""
        return {
            sector_id
            for served in self._served.values()
            if served.lane is lane
            for sector_id in served.sectors
        }

    def having(self, sector_id: bytes) -> Iterator[tuple[Served, Wanted]]:
        """Yield all who have a sector, and are not proven wrong about it.

        The first is charged with it, and asked for it unless its source has lied more than others.
        """
        for served in self._served.values():
            sector = served.sectors.find(sector_id)
            if sector is not None and sector_id not in served.void:
                yield served, sector

    def _claiming(self, sector: Wanted, lane: Lane | None = None) -> list[Served]:
        """Return who says of a sector that it lies there; if `lane`, from that source."""
        return [
            served
            for served, claimed in self.having(sector.entry.id)
            if claimed == sector and lane in (None, served.lane)
        ]

    def is_alone(self, sector_id: bytes) -> bool:
        """Return whether one mounted image has a sector."""
        return self._mounted[sector_id] == 1

    def prove(self, sector_id: bytes, size: int) -> None:
        """Note that a sector has `size` bytes: its frame table, or its content, has shown it."""
        self._undecided.discard(sector_id)
        for served, sector in list(self.having(sector_id)):
            if sector.entry.size != size:
                self.refute(served, sector_id)

    def refute(self, served: Served, sector_id: bytes) -> None:
        """Do not believe an image any more about a sector: another size of it was proven.

        What is mounted of it stays, and is read as far as the true sector goes.
        """
        log.error("image %s lies about sector %s", served.image.digest, sector_id.hex())
        with self.cache.changed:
            served.void.add(sector_id)
            served.lies += 1
            self._size_anew([sector_id])

    def _is_disputed(self, sector_id: bytes, gone: Served) -> bool:
        sector = gone.sectors.find(sector_id)
        return sector is None or sector.entry.size == self._whole.get(sector_id)

    def _size_anew(self, ids: Iterable[bytes]) -> None:
        for sector_id in ids:
            sizes = [sector.entry.size for _, sector in self.having(sector_id)]
            if sizes:
                self._whole[sector_id] = max(sizes)
            else:
                self._whole.pop(sector_id, None)

    def served(self) -> list[Served]:
        """Return the images that are mounted."""
        return list(self._served.values())

    def wanted(self, served: Served) -> int:
        """Return how many sectors of an image are being fetched or queued, whoever does it."""
        lanes = {other.lane for other in self.served()}
        ids = set[bytes]().union(*(lane.wanted() for lane in lanes))
        return sum(served.sectors.find(sector_id) is not None for sector_id in ids)

    def pins_changed(self) -> None:
        """Note that `Served.pinned` of some image has changed."""
        pinned = [served.sectors for served in self._served.values() if served.pinned]
        self._pinned = set().union(*pinned)

    def note_present(self, served: Served) -> None:
        """Look which sectors of an image that was just mounted are here."""
        with self.cache.changed:
            sectors = served.image.block_image.index.sectors
            served.absent = {s.id for s in sectors if self.store.size(s.id) < s.size}
            self._note_complete()

    def _note_complete(self) -> None:
        complete = [served.sectors for served in self._served.values() if not served.absent]
        self._complete = set().union(*complete)

    def expect(self, *, reads: bool, guarded: bool) -> None:
        """Note that mounts stand which are not served yet, or none any more.

        Args:
            reads: reads of sectors that nobody has wait: somebody may have them soon.
            guarded: there are such mounts, so any sector may be one of theirs.
        """
        with self.cache.changed:
            self._expecting = reads
            early, self._early = self._early, []
        self.cache.guard(on=guarded)
        self.again(early)

    def _keep_early(self, waiter: Waiter) -> bool:
        self._held.charge(waiter[0].number, UNSERVED)
        with self.cache.changed:
            if self._expecting:
                self._early.append(waiter)
            return self._expecting

    def expire(self) -> None:
        """Give up the reads that have waited too long, or that nobody waits for any more."""
        for lane in list(self._lanes.values()):
            lane.expire()
        since = time.monotonic() - self._policy.stall_s
        with self.cache.changed:
            late = [waiter for waiter in self._early if waiter[1] < since]
            self._early = [waiter for waiter in self._early if waiter[1] >= since]
            again, self._later = self._later, []
        self.again(again)
        if late:
            self._deny(late, NodeError("the mount could not be taken over"))
        some = self._held.some(LOOKS)
        self._reap(some)
        self._deny_scanners(some)
        self._keep_quotas()

    def _deny_scanners(self, waiters: Sequence[Waiter]) -> None:
        """Let reads of scanners fail that wait long: meanwhile nobody can open a file.

        What a fetch needs may be among what they hold up, such as the files of the resolver.
        """
        since = time.monotonic() - SCANNER_S
        late = [waiter for waiter in waiters if waiter[1] < since]
        pids = {pid for pid in {request.pid for request, _ in late} if pid and is_scanner(pid)}
        if not pids:
            return
        theirs = {waiter for waiter in late if waiter[0].pid in pids}
        error = NodeError(
            f"a scanner has waited for {SCANNER_S:g} s, and others for it",
            hint="exclude what firstread mounts from scanning; firstread doctor names who scans",
        )
        self._deny_each(self._abandon(theirs), error)

    def _reap(self, waiters: Sequence[Waiter]) -> None:
        """Answer those reads whose reader is gone: the kernel never takes them back by itself."""
        if self._sees_readers and (lost := gone(waiters)):
            self._finish(self._abandon(lost), allow=False)

    def _abandon(self, lost: set[Waiter]) -> list[Waiter]:
        """Take those of these reads out that wait for a sector, or for a mount to be served."""
        with self.cache.changed:
            found = [waiter for waiter in (*self._early, *self._later) if waiter in lost]
            if found:
                self._early = [waiter for waiter in self._early if waiter not in lost]
                self._later = [waiter for waiter in self._later if waiter not in lost]
        for lane in list(self._lanes.values()):
            found += lane.abandon(lost)
        return found

    def _deny_each(self, waiters: Iterable[Waiter], error: Exception) -> None:
        """Let reads fail of whatever sectors, though others of the same may wait on."""
        theirs: dict[bytes, tuple[Wanted | None, list[Waiter]]] = {}
        for waiter in waiters:
            sector = self._held[waiter[0].number].sector
            theirs.setdefault(sector.entry.id if sector else b"", (sector, []))[1].append(waiter)
        for number, (sector, its) in enumerate(theirs.values()):
            self._deny(its, error, sector, alone=True, quietly=number > 0)

    def waiting(self) -> int:
        """Return how many reads wait."""
        return len(self._held)

    def freeze(self) -> list[Request]:
        """Answer nothing any more, for ever, and return what waits: another process will."""
        self._answering.acquire()
        return self._held.hand_on()

    # -- events --------------------------------------------------------------------------------

    def handle(self, request: Request) -> None:
        """Take an event: answer it, or see to it that it will be. Does not block."""
        self._route(self._held.take(request, time.monotonic()))

    def again(self, waiters: Sequence[Waiter]) -> None:
        """Take events again whose sector has changed its state meanwhile."""
        for waiter in waiters:
            self._route(waiter)

    def _route(self, waiter: Waiter) -> None:
        request = waiter[0]
        held = self._held[request.number]
        try:
            sector_id = self.store.id_of(request.fd)
            found = self._sources(sector_id, request.offset + request.length)
            if not found:
                if self._keep_early(waiter):
                    return
                raise NodeError(f"no mounted image has the sector {sector_id.hex()}")
            served, sector = found[0]
            held.served, held.sector = served, sector
            if self._is_in_doubt(sector, request.fd):
                self.checks.decide(waiter, sector)
                return
            verdict = self.cache.event(waiter, sector_id, self.whole_size(sector_id))
            is_aside = verdict is Verdict.FETCH and self.checks.is_aside(sector_id)
            if verdict is Verdict.CHECK or is_aside:
                self.checks.read(waiter, sector)
                return
        except OSError as exc:
            self._put_off(waiter, from_os_error(exc, "cannot look at a sector file"))
            return
        except FirstreadError as exc:
            self._put_off(waiter, exc)
            return
        if verdict is Verdict.ALLOW:
            self.answer([waiter])
        elif verdict is Verdict.FETCH:
            self._fetch(waiter, served, sector)

    def _put_off(self, waiter: Waiter, error: FirstreadError) -> None:
        """Take a read again in a moment if this process is short of something; else it fails."""
        if not error.retryable or time.monotonic() - waiter[1] > self._policy.stall_s:
            self._deny([waiter], error)
            return
        with self.cache.changed:
            self._later.append(waiter)

    def _is_in_doubt(self, sector: Wanted, fd: int) -> bool:
        """Return whether the content of a file is to be asked, once, which of two sizes is right.

        A fetcher before may have known. Else a sector that is whole would keep its mark, and
        raise events, as long as somebody is mounted who says that it is larger.
        """
        sector_id, size = sector.entry.id, sector.entry.size
        if size == self.whole_size(sector_id) or sector_id in self._undecided:
            return False
        if os.fstat(fd).st_size != size:
            return False
        self._undecided.add(sector_id)
        return True

    def _sources(self, sector_id: bytes, end: int) -> list[tuple[Served, Wanted]]:
        """Return who has a sector, the one to ask first.

        Args:
            sector_id: which.
            end: of what is read; an image that says the sector ends before that is no help.
        """
        useless, whole = self._useless.get(sector_id, ()), self.whole_size(sector_id)

        def rank(pair: tuple[Served, Wanted]) -> tuple[bool, bool, int, bool]:
            served, sector = pair
            short = sector.entry.size < min(end, whole)
            return short, served in useless, served.lies, served.lane.is_down

        return sorted(self.having(sector_id), key=rank)

    def _fetch(self, waiter: Waiter, served: Served, sector: Wanted) -> None:
        request = waiter[0]
        if self._denials.repeats(waiter, sector.entry.id) and not _covers(waiter, sector):
            self._finish([waiter], allow=False)  # the same read, so it is not counted either
            return
        if not self._may_wait(waiter, served, sector):
            return
        served.stats.add(waits=1)
        self.feed.tell(
            "read",
            image=served.image.digest,
            sector=sector.entry.id.hex(),
            offset=request.offset,
            bytes=request.length,
            pid=request.pid,
        )
        served.lane.demand(sector, [waiter], served.sectors.behind)

    def _may_wait(self, waiter: Waiter, served: Served, sector: Wanted) -> bool:
        """Count an event in the quota of its image; let it fail if that is used up for long."""
        image = served.image.digest
        if self._held.charge(waiter[0].number, image) or image not in self._crowding:
            return True
        self._deny([waiter], self._too_many(image), sector, alone=True, quietly=True)
        return False

    def _too_many(self, image: str) -> NodeError:
        whose = "mounts that are not served yet" if image == UNSERVED else "this image"
        return NodeError(
            f"{self._held.waiting(image)} reads of {whose} wait, and take the room of others",
            hint="see why its source does not answer, or raise the limit of open files",
        )

    def _keep_quotas(self) -> None:
        """Let reads fail of images that have had more than their quota waiting for long."""
        crowding = set()
        for image in {*self._held.crowding(), *self._crowding}:
            self._reap(self._held.waiters(image))
            waiters, excess = self._held.waiters(image), self._held.excess(image)
            if not waiters or time.monotonic() - waiters[0][1] < CROWDING_S:
                continue
            crowding.add(image)  # until its reads go on
            error, theirs = self._too_many(image), set(waiters[len(waiters) - excess :])
            self._deny_each(self._abandon(theirs), error)
        self._crowding = crowding

    # -- what the cache asks -------------------------------------------------------------------

    def is_mounted(self, sector_id: bytes) -> bool:
        return self._mounted[sector_id] > 0

    def is_exempt(self, sector_id: bytes) -> bool:
        return sector_id in self._pinned

    def is_complete(self, sector_id: bytes) -> bool:
        return sector_id in self._complete

    def whole(self, sector_id: bytes) -> None:
        for served in self._served.values():
            if sector_id in served.absent:
                served.absent.discard(sector_id)
                if not served.absent:
                    self._note_complete()

    def emptied(self, sector_id: bytes) -> None:
        self.checks.forget(sector_id)
        for served in self._served.values():
            if sector_id in served.sectors:
                was_complete = not served.absent
                served.absent.add(sector_id)
                if was_complete:
                    self._note_complete()

    def whole_size(self, sector_id: bytes) -> int:
        return self._whole.get(sector_id, 0)

    def let_go(self, sector_id: bytes) -> bool:
        return all(lane.let_go_file(sector_id) for lane in list(self._lanes.values()))

    # -- what lanes call -----------------------------------------------------------------------

    def size(self, sector: Wanted) -> int:
        sector_id = sector.entry.id
        return 0 if self.cache.is_emptying(sector_id) else self.store.size(sector_id)

    def admit(self, sector: Wanted) -> int:
        return self.cache.admit(sector.entry.id, sector.entry.size)

    def has_spare(self, sectors: int, sector: Wanted) -> bool:
        return self.cache.has_spare(sectors * sector.entry.size)

    def leave(self, sector: Wanted, room: int) -> None:
        self.cache.leave(sector.entry.id, room)

    def open(self, sector: Wanted, beside: int | None) -> int:
        # What comes of an event's descriptor raises no events when it is written to. One that is
        # opened here does, and the supervisor lets each of them through.
        try:
            if beside is not None:
                return os.dup(beside)
            return self._opener.do(lambda: self.store.open(sector.entry.id, os.O_RDWR), os.close)
        except OSError as exc:
            raise from_os_error(exc, "cannot open the sector file") from exc

    def write(self, fd: int, position: int, frame: memoryview) -> None:
        while frame:
            try:
                count = os.pwrite(fd, frame, position)
            except OSError as exc:
                if is_disk_full(exc) and self.cache.make_room(len(frame)):
                    continue
                raise NodeError(
                    f"cannot write the sector file: {exc.strerror}",
                    hint="free some space on the file system of --root, or unmount pinned images",
                ) from exc
            frame, position = frame[count:], position + count

    def present(self, filling: Filling, fd: int) -> None:
        sector_id = filling.sector.entry.id
        self.cache.filled(sector_id, fd)
        self.checks.trust(sector_id, fd)
        self._useless.pop(sector_id, None)
        self.prove(sector_id, filling.sector.entry.size)
        cause = filling.cause.name.lower()
        self.feed.tell("present", sector=sector_id.hex(), cause=cause, source=filling.source)
        self.settler.add(sector_id, filling.sector.entry.size)

    def answer(self, waiters: Sequence[Waiter]) -> None:
        for sector_id in {s.entry.id for w in waiters if (s := self._held[w[0].number].sector)}:
            self._denials.clear(sector_id)
        self._finish([waiter for waiter in waiters if self._touch(waiter)], allow=True)

    def _touch(self, waiter: Waiter) -> bool:
        sector = self._held[waiter[0].number].sector
        if sector is None:
            return True
        whole = self.whole_size(sector.entry.id) or sector.entry.size
        return self.cache.touch(waiter, sector.entry.id, whole)

    def give_up(
        self, filling: Filling, waiters: Sequence[Waiter], error: FirstreadError, lane: Lane
    ) -> None:
        sector_id = filling.sector.entry.id
        if lane.closed or not (error.retryable or isinstance(error, NodeError)):
            self._useless.setdefault(sector_id, set()).update(self._claiming(filling.sector, lane))
            # An image that is not to be asked for again is not: another image is another matter.
            fails = self.policy(filling.sector).on_corruption == "fail"
            final = isinstance(error, ImageError) and fails
            other = self._other(filling, lane, elsewhere=final)
            if other is not None:
                self._move(waiters, *other)
                if not waiters and filling.cause is not Cause.PREFETCH:
                    served, sector = other
                    served.lane.complete(sector)
                return
        self._useless.pop(sector_id, None)
        if waiters:
            self._deny(waiters, error, filling.sector)

    def policy(self, sector: Wanted) -> PolicyTable:
        # Any of these may be read through; wrong bytes concern the images that name this place.
        all_of_it = (served for served, _ in self.having(sector.entry.id))
        patient = self._most_patient(all_of_it)
        corrupt = self._most_patient(self._claiming(sector))
        return PolicyTable(patient.stall_s, corrupt.on_corruption, patient.require)

    def _most_patient(self, images: Iterable[Served]) -> PolicyTable:
        policies = [policy for served in images for policy in served.policies.values()]
        return most_patient(policies, self._policy)

    def corrupt(
        self, filling: Filling, offset: int, data: bytes, error: ImageError, lane: Lane
    ) -> None:
        sector = filling.sector
        if self.policy(sector).on_corruption == "quarantine":
            origin = {
                "source": lane.name,
                "images": sorted({served.image.digest for served in self._claiming(sector)}),
                "sector": sector.entry.id.hex(),
                "blob": sector.blob.digest,
                "offset": sector.entry.offset + offset,
                "error": str(error),
            }
            with contextlib.suppress(HeldUpError):  # then they are kept later, or not
                self._keeper.do(lambda: self._quarantine.put(data, **origin))

    def failed(self, filling: Filling, error: FirstreadError, lane: Lane) -> None:
        level = logging.WARNING if filling.failures <= 1 else logging.DEBUG
        # Who is charged may have another source, and what fails here is no error of that one.
        concerned = self._claiming(filling.sector, lane)
        self._note(
            concerned, filling.sector, error, level, "a fetch failed and will be tried again"
        )
        lies = isinstance(error, ImageError | NotFoundError)
        for served in concerned:
            served.lies += lies
        if lies or (may_pass(error) and filling.failures >= PATIENCE):
            other = self._other(filling, lane)
            # Wrong bytes may come right, but not before whoever was wrong less often is asked.
            worst = min((served.lies for served in concerned), default=0)
            if other is not None and (not lies or other[0].lies < worst):
                self._move(lane.let_go(filling), *other, failures=filling.failures * (not lies))

    def _other(
        self, filling: Filling, lane: Lane, *, elsewhere: bool = False
    ) -> tuple[Served, Wanted] | None:
        """Return who else has the sector and has not given wrong bytes of it.

        Lanes take turns, so that each of several that are down is tried. First is who was wrong
        least often, then one that works.

        Args:
            filling: of the sector.
            lane: that has failed; another image in it may say that the sector lies elsewhere.
            elsewhere: only of another image.
        """
        sector_id = filling.sector.entry.id
        found = list(self.having(sector_id))
        turn = next((n for n, (served, _) in enumerate(found) if served.lane is lane), 0)
        failed = self._claiming(filling.sector, lane)
        useless = {*failed, *self._useless.get(sector_id, ())}
        images = {served.image.digest for served in failed} if elsewhere else set()
        others = [
            pair
            for pair in (*found[turn:], *found[:turn])
            if pair[0] not in useless and pair[0].image.digest not in images
        ]
        return min(others, key=lambda p: (p[0].lies, p[0].lane.is_down), default=None)

    def _move(
        self, waiters: Sequence[Waiter], served: Served, sector: Wanted, *, failures: int = 0
    ) -> None:
        if waiters:
            level = logging.WARNING if failures <= PATIENCE else logging.DEBUG
            log.log(level, "trying another source: %s", served.lane.name)
            served.lane.demand(sector, waiters, served.sectors.behind, failures=failures)

    def demanded(self, sector: Wanted) -> None:
        for served in self._charged(sector):
            served.stats.add(events=1)

    def requested(self, filling: Filling, size: int) -> None:
        cause = filling.cause.name.lower()
        self.feed.tell("request", sector=filling.sector.entry.id.hex(), cause=cause, bytes=size)
        for served in self._charged(filling.sector):
            served.stats.add(request=cause)

    def received(self, filling: Filling, count: int) -> None:
        for served in self._charged(filling.sector):
            served.stats.add(received_bytes=count)

    # -- files and answers ---------------------------------------------------------------------

    def _deny(
        self,
        waiters: Sequence[Waiter],
        error: Exception,
        sector: Wanted | None = None,
        *,
        alone: bool = False,
        quietly: bool = False,
    ) -> None:
        """Let reads fail.

        Args:
            waiters: the reads.
            error: why.
            sector: of what, if that is known.
            alone: others who wait for the same may wait on.
            quietly: there are many, and others of them are logged.
        """
        if sector is not None:
            charged, level = self._charged(sector), logging.DEBUG if quietly else logging.ERROR
            self._note(charged, sector, error, level, "a read fails", failed_reads=len(waiters))
            now = time.monotonic()
            for waiter in waiters:
                self._denials.note(waiter, sector.entry.id, sector.entry.size, now, alone=alone)
        else:
            log.error("a read fails: %s", error)
        self._finish(waiters, allow=False)

    def _finish(self, waiters: Sequence[Waiter], *, allow: bool) -> None:
        if not waiters:
            return
        now = time.monotonic()
        with self._answering:
            for request, came in waiters:
                self._group.answer(request.number, allow=allow)
                served = self._held.release(request.number).served
                if allow and served is not None:
                    served.stats.answered(now - came)
            self._untold += [request.number for request, _ in waiters]
            # A supervisor that is too busy to read is told with the next answer. One that is gone
            # need not know.
            with contextlib.suppress(OSError):
                while self._untold:
                    send_answered(self._channel, self._untold[:MOST_ANSWERED])
                    del self._untold[:MOST_ANSWERED]

    def _note(
        self,
        concerned: Sequence[Served],
        sector: Wanted,
        error: Exception,
        level: int,
        what: str,
        *,
        failed_reads: int = 0,
    ) -> None:
        """Note an error at all whom it concerns; one line in the log is enough."""
        for served in concerned:
            served.stats.error(str(error), failed_reads=failed_reads)
        for served in concerned[:1]:
            fields = {
                "image": served.image.digest,
                "sector": sector.entry.id.hex(),
                "offset": sector.entry.offset,
                "source": served.lane.name,
                "error": str(error),
                "hint": getattr(error, "hint", None),
            }
            log.log(level, what, extra={"fields": fields})
        self.feed.tell("error", sector=sector.entry.id.hex(), error=str(error))

    def _charged(self, sector: Wanted) -> list[Served]:
        """Return who is charged with what is done for a sector; nobody once it is withdrawn."""
        return [served for served, _ in self.having(sector.entry.id)][:1]


def _covers(waiter: Waiter, sector: Wanted) -> bool:
    """Return whether the file has what a read wants."""
    request = waiter[0]
    return os.fstat(request.fd).st_size >= min(request.offset + request.length, sector.entry.size)

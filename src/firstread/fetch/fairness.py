# SPDX-License-Identifier: Apache-2.0
"""Admission of reads to the queue, and their time limits.

Owns the reasons why a read fails though its source may still answer: it is the one that was denied
a moment ago, its image takes the room of others, a scanner waits and others wait for it, or its
reader is gone. Looks at /proc; does not know sources.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from firstread.cache.pending import PendingRead
from firstread.device.scanners import is_scanner
from firstread.errors import NodeError
from firstread.fetch.answers import Answers
from firstread.fetch.denials import Denials
from firstread.fetch.outcomes import Outcomes
from firstread.fetch.readers import gone, sees_processes
from firstread.fetch.reads import Reads

LOOKS = 1024  # reads a second whose readers are looked at, 15 us each
SCANNER_S = 10.0  # that a scanner waits for a read, while others wait for it
CROWDING_S = 5.0  # that the first read of an image has waited, before those beyond its quota fail
UNSERVED = "?"  # image of reads of mounts that stand and are not served yet


class Fairness:
    """Decides who may wait.

    Args:
        reads: the table of all that wait.
        denials: that were a moment ago.
        outcomes: lets reads fail.
        answers: for those that nobody is to hear of.
        cancel: takes reads out of wherever they wait, and returns those that it found.
    """

    def __init__(
        self,
        reads: Reads,
        denials: Denials,
        outcomes: Outcomes,
        answers: Answers,
        cancel: Callable[[set[PendingRead]], list[PendingRead]],
    ) -> None:
        self._reads, self._denials = reads, denials
        self._outcomes, self._answers, self._cancel = outcomes, answers, cancel
        self._crowding: set[str] = set()  # images beyond their quota for long; replaced only
        self._sees_readers = sees_processes()

    def admit(self, read: PendingRead, image: str) -> bool:
        """Count a read that has to wait for bytes in the quota of its image; False if it fails."""
        sector = read.sector
        if sector is not None and self._denials.repeats(read, sector.entry.id):
            size = os.fstat(read.fd).st_size
            if size < min(read.end, sector.entry.size):
                self._answers.give([read], allow=False)  # the same read, so it is not counted
                return False
        if self._reads.charge(read, image) or image not in self._crowding:
            return True
        self._outcomes.deny([read], self._too_many(image), sector, alone=True, quietly=True)
        return False

    def expire(self) -> None:
        """Let those reads fail that may wait no longer."""
        some = self._reads.some(LOOKS)
        self._reap(some)
        self._deny_scanners(some)
        self._keep_quotas()

    def _reap(self, reads: Sequence[PendingRead]) -> None:
        """Answer those reads whose reader is gone: the kernel never takes them back by itself."""
        if self._sees_readers and (lost := gone(reads)):
            self._answers.give(self._cancel(lost), allow=False)

    def _deny_scanners(self, reads: Sequence[PendingRead]) -> None:
        """Let reads of scanners fail that wait long: meanwhile nobody can open a file.

        What a fetch needs may be among what they hold up, such as the files of the resolver.
        """
        since = time.monotonic() - SCANNER_S
        late = [read for read in reads if read.came < since]
        pids = {pid for pid in {read.pid for read in late} if pid and is_scanner(pid)}
        if not pids:
            return
        error = NodeError(
            f"a scanner has waited for {SCANNER_S:g} s, and others for it",
            hint="exclude what firstread mounts from scanning; firstread doctor names who scans",
        )
        theirs = {read for read in late if read.pid in pids}
        self._outcomes.deny_each(self._cancel(theirs), error)

    def _keep_quotas(self) -> None:
        """Let reads fail of images that have had more than their quota waiting for long."""
        crowding = set()
        for image in {*self._reads.crowding(), *self._crowding}:
            self._reap(self._reads.of(image))
            reads, excess = self._reads.of(image), self._reads.excess(image)
            if not reads or time.monotonic() - reads[0].came < CROWDING_S:
                continue
            crowding.add(image)  # until its reads go on
            error, theirs = self._too_many(image), set(reads[len(reads) - excess :])
            self._outcomes.deny_each(self._cancel(theirs), error)
        self._crowding = crowding

    def _too_many(self, image: str) -> NodeError:
        whose = "mounts that are not served yet" if image == UNSERVED else "this image"
        return NodeError(
            f"{self._reads.waiting(image)} reads of {whose} wait, and take the room of others",
            hint="see why its source does not answer, or raise the limit of open files",
        )

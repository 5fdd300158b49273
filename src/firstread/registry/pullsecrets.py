# SPDX-License-Identifier: Apache-2.0
"""The credentials that pulls were given, as a kubelet has them: `imagePullSecrets`, plugins.

Owns their order and their bounds. A registry grants rights by repository, so what a pull showed for
a repository serves every image of it, and nothing else. Invariants: the newest comes first; one
that the registry has refused waits behind everything else, because only a pull brings another one,
and registries err; what is kept never exceeds its share of the daemon's memory.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any, Final

from firstread.registry.credentials import Credentials
from firstread.units import KiB

MAX_EACH: Final = 4  # of one repository: tenants share it, and tokens follow each other
MAX_BYTES: Final = 128 * KiB  # of all as JSON: half of what a daemon's memory takes
MAX_WANTED: Final = 1024  # repositories
REFUSED_S: Final = 60.0  # as long as an endpoint that refuses is not asked

_Pair = tuple[str, Credentials]


class PullSecrets:
    """Credentials by repository (``HOST/REPOSITORY``). Safe for threads.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[_Pair, None] = {}  # the newest last
        self._tried: list[_Pair] = []  # by pulls that have not ended; the newest last
        self._foretold: list[str] = []  # repositories, by pulls of others that have just begun
        self._refused: dict[_Pair, float] = {}  # until when
        self._wanted: dict[str, None] = {}  # repositories; the newest last
        self._lock = threading.Lock()

    def keep(self, repository: str, credentials: Credentials | None) -> None:
        """Keep what a successful pull has shown, if anything; forget the oldest beyond bounds."""
        with self._lock:
            self._wanted.pop(repository, None)
            if credentials is None:
                return
            pair = repository, credentials
            self._refused.pop(pair, None)
            self._kept.pop(pair, None)
            self._kept[pair] = None
            for old in [kept for kept in self._kept if kept[0] == repository][:-MAX_EACH]:
                del self._kept[old]
            while len(json.dumps(self._document())) > MAX_BYTES:
                del self._kept[next(iter(self._kept))]

    @contextmanager
    def trying(
        self, repository: str, several: Sequence[Credentials], *, foretold: bool = False
    ) -> Iterator[None]:
        """Have credentials in the block that a pull may prove right.

        Args:
            repository: of the image.
            several: of them, the newest last.
            foretold: the pull is somebody else's; if it is refused, that is theirs to deal with,
                and no reason to want another.
        """
        tried = [(repository, each) for each in several]
        theirs = [repository] if foretold else []
        with self._lock:
            self._tried += tried
            self._foretold += theirs
        try:
            yield
        finally:
            with self._lock:
                for pair in tried:
                    self._tried.remove(pair)
                for each in theirs:
                    self._foretold.remove(each)

    def refuse(self, repository: str, credentials: Credentials) -> None:
        """Note that the registry does not take credentials for a repository, if they are ours."""
        with self._lock:
            pair, now = (repository, credentials), self._clock()
            if pair in self._kept or pair in self._tried:
                self._refused = {each: end for each, end in self._refused.items() if end > now}
                self._refused[pair] = now + REFUSED_S

    def answered(self, repository: str, *, refused: bool) -> None:
        """Note whether the registry refuses what this process shows for a repository."""
        if not refused and repository not in self._wanted:
            return  # as almost always
        with self._lock:
            if refused and repository in self._foretold:
                return
            self._wanted.pop(repository, None)
            if refused:
                self._wanted[repository] = None
            if len(self._wanted) > MAX_WANTED:
                del self._wanted[next(iter(self._wanted))]

    def is_wanted(self, repository: str) -> bool:
        """Return whether the registry refuses a repository, and no pull has helped since."""
        with self._lock:
            return repository in self._wanted

    def find(self, repository: str, *, refused: bool = False) -> Credentials | None:
        """Return the newest credentials of a repository, of the `refused` ones or of the others."""
        with self._lock:
            now = self._clock()
            for pair in [*reversed(self._tried), *reversed(self._kept)]:
                if pair[0] == repository and (self._refused.get(pair, 0.0) > now) is refused:
                    return pair[1]
        return None

    def all(self) -> set[Credentials]:
        """Return each, whatever its repositories."""
        with self._lock:
            return {credentials for _, credentials in [*self._kept, *self._tried]}

    def dump(self) -> tuple[list[Any], list[Any]]:
        """Return what is kept as JSON types: the secrets, and the number of one per repository."""
        with self._lock:
            return self._document()

    def load(self, secrets: list[Any], repositories: list[Any]) -> None:
        """Take what `dump` gave."""
        with self._lock:
            self._kept = {
                (repository, Credentials(*secrets[number])): None
                for repository, number in repositories
            }

    def _document(self) -> tuple[list[Any], list[Any]]:
        """Return what `dump` does; the lock is held."""
        numbers: dict[Credentials, int] = {}
        pairs = [[name, numbers.setdefault(c, len(numbers))] for name, c in self._kept]
        return [astuple(c) for c in numbers], pairs

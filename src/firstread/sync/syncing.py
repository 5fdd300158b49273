# SPDX-License-Identifier: Apache-2.0
"""Converts images by their names, several at a time, and says what became of each.

Owns the order of a run: first a look at all images, then the conversions, equal ones once.
Invariants: an image that fails stops no other; of an image that is being converted when a run is
stopped, no upload and no tag is left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed, wait
from dataclasses import dataclass
from typing import Final, TypeVar

from msgspec import structs

from firstread.convert.progress import NoProgress
from firstread.errors import FirstreadError, UsageError, from_shortage
from firstread.oci.reference import Reference
from firstread.redact import redact
from firstread.sync.conversiontarget import Target, Work
from firstread.sync.silenthosts import SilentHosts
from firstread.sync.synced import SyncedImage, failed
from firstread.threads import SteadyPool

LOOKING: Final = 8  # repositories that are looked at at a time
GRACE_S: Final = 3.0  # for conversions to cancel their uploads, when they are stopped

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Tally:
    """How far a run is; read by whoever shows it.

    Args:
        images: whose names are known.
        to_convert: of them, that are not converted yet.
        done: of those, that are dealt with.
        failed: of those.
    """

    images: int = 0
    to_convert: int = 0
    done: int = 0
    failed: int = 0


class Sync:
    """Converts images. Threads may share it.

    Args:
        target: where conversions go.
        at_once: images converted at a time.
    """

    def __init__(self, target: Target, at_once: int) -> None:
        self._target = target
        self._at_once = at_once
        self._stopped = threading.Event()

    def run(
        self, names: Iterable[Reference], *, dry: bool = False, tally: Tally | None = None
    ) -> list[SyncedImage]:
        """Convert those of `names` that are not converted yet.

        Args:
            names: of images.
            dry: only say which they are.
            tally: told how far it is.

        Returns:
            A row for each image and platform.
        """
        tally, silent = tally or Tally(), SilentHosts()
        found = list(self._look(names, tally, silent))
        rows = [each for each in found if isinstance(each, SyncedImage)]
        todo, refused = sort_out([each for each in found if isinstance(each, Work)], rows)
        rows += refused
        if dry:
            return rows + [work.missing() for work in todo]
        equal: dict[tuple[str, ...], list[Work]] = {}
        for work in todo:
            equal.setdefault(work.key, []).append(work)
        tally.to_convert = len(todo)

        def convert(works: Sequence[Work]) -> list[SyncedImage]:
            return self._convert(works, silent)

        for works, done in self._each(convert, list(equal.values()), self._at_once):
            rows += done
            tally.done += len(works)
            tally.failed += sum(row.error is not None for row in done)
        return rows

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called, or a run was interrupted: no later run converts anything."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Have conversions end with an error as soon as they read or send anything."""
        self._stopped.set()

    def _look(
        self, names: Iterable[Reference], tally: Tally, silent: SilentHosts
    ) -> Iterator[SyncedImage | Work]:
        places: dict[tuple[str, str], list[Reference]] = {}
        for name in names:
            places.setdefault((name.host, name.repository), []).append(name)
        tally.images = sum(map(len, places.values()))

        def look(here: list[Reference]) -> list[SyncedImage | Work]:
            try:
                return list(self._target.look(here, silent))
            except Exception as exc:  # noqa: BLE001 - a defect that one image meets stops no other
                return [failed(name, _defect(exc)) for name in here]

        for _, found in self._each(look, list(places.values()), LOOKING):
            yield from found

    def _convert(self, works: Sequence[Work], silent: SilentHosts) -> list[SyncedImage]:
        """Convert an image that has several names."""
        first, *others = works
        try:
            with silent.asking(first.source.host):
                done = self._target.convert(first, _Stoppable(self._stopped))
        except Exception as exc:  # noqa: BLE001 - likewise
            error = exc if isinstance(exc, FirstreadError) else _defect(exc)
            return [_failed(work, error) for work in works]
        rows = list(done.rows)
        for work in others:
            try:
                rows += self._target.repeat(work, done)
            except FirstreadError as exc:
                rows.append(_failed(work, exc))
        return rows

    def _each(
        self, act: Callable[[T], R], things: Sequence[T], at_once: int
    ) -> Iterator[tuple[T, R]]:
        """Yield each thing and what `act` gives for it, as soon as it does."""
        pool = SteadyPool(at_once, "sync")
        futures = {pool.submit(act, thing): thing for thing in things}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            self.stop()
            for future in futures:
                future.cancel()
            wait(futures, timeout=GRACE_S)
            raise
        finally:
            pool.shutdown(wait=False)


def sort_out(
    works: Iterable[Work], rows: Iterable[SyncedImage]
) -> tuple[list[Work], list[SyncedImage]]:
    """Return the work that can be done, and rows for images whose destination is another one's.

    Two registries can have one repository and tag. An image whose conversion is there keeps its
    destination, else the first in the order of names gets it. Pure.
    """
    owners: dict[str, str] = {row.destination: row.image for row in rows if row.destination}
    todo: list[Work] = []
    refused: list[SyncedImage] = []
    for work in sorted(works, key=lambda each: str(each.name)):
        name, there = str(work.name), str(work.destination)
        owner = name if work.destination is None else owners.setdefault(there, name)
        if owner == name:
            todo.append(work)
            continue
        error = UsageError(f"{owner} has the same destination", hint="give each its own DEST")
        refused.append(_failed(work, error))
    return todo, refused


class _Stoppable(NoProgress):
    """Ends a conversion by an error when it next reads or sends something."""

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped

    def layers(self, layers: list[tuple[str, int]]) -> None:
        self._check()

    def advance(self, layer: str, count: int) -> None:
        self._check()

    def sent(self, layer: str, total: int) -> None:
        self._check()

    def _check(self) -> None:
        if self._stopped.is_set():
            raise FirstreadError("stopped")


def _failed(work: Work, error: FirstreadError) -> SyncedImage:
    """Return the row of work that failed, under the name that the sources have for the image."""
    row = failed(work.name, error)
    return structs.replace(work.missing(), result=row.result, error=row.error)


def _defect(exc: Exception) -> FirstreadError:
    return from_shortage(exc) or FirstreadError(
        redact(f"internal error: {type(exc).__name__}: {exc}"),
        hint="this is a defect of firstread; convert the image alone with FIRSTREAD_DEBUG=1",
    )

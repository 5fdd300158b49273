# SPDX-License-Identifier: Apache-2.0
"""Runs the jobs of an image's layers, several at a time.

Owns how many layers and sectors are in memory at once, and how the others stop when one fails.
Invariants: the sectors of all layers together need no more than `SECTOR_MEMORY`; after a failure no
layer goes on for longer than its next read or write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from firstread.convert.blobwriter import PackedLayer
from firstread.convert.job import LayerJob, convert_layer
from firstread.convert.layertask import LayerTask, repository_name
from firstread.convert.progress import Progress
from firstread.convert.recorded import read_described
from firstread.convert.worker import KNOWN, UPLOADED, Placed, run_task
from firstread.errors import FirstreadError, ImageError, NodeError, NotFoundError
from firstread.oci.repository import Destination, Repository
from firstread.redact import redact
from firstread.registry.open import open_destination
from firstread.units import MiB

MAX_PARALLEL_LAYERS = 4
SECTOR_MEMORY = 96 * MiB  # of sectors over all layers at once, before compression
FILLING = 2  # sectors of a layer that are being filled: one of a large file, one of small ones
LEAST_BUFFERS = FILLING + 1  # and one that is being compressed
GRACE = 1.0  # seconds that a layer gets to stop; one may hang in a registry's answer


class Made(NamedTuple):
    """What a job made.

    Args:
        packed: the layer, whose blob the destination has.
        uploaded: its blob was new to the destination.
        known: another run had packed it.
    """

    packed: PackedLayer
    uploaded: bool
    known: bool = False


Finished = Callable[[LayerJob, PackedLayer, bool, bool], None]
"""Takes a job, and the fields of `Made`."""


class Concurrency(NamedTuple):
    """How many layers are packed at a time, and how many sectors of each are in flight."""

    layers: int
    in_flight: int


def concurrency(sector_size: int, jobs: int, layers: int) -> Concurrency:
    """Return what fits into `SECTOR_MEMORY`.

    Args:
        sector_size: bytes.
        jobs: sectors compressed at a time.
        layers: that remain to be packed; at least one.
    """
    buffers = SECTOR_MEMORY // sector_size
    workers = min(jobs, layers, MAX_PARALLEL_LAYERS, max(1, buffers // LEAST_BUFFERS))
    return Concurrency(workers, max(1, min(jobs + 1, buffers // workers - FILLING)))


class LayerPool:
    """Packs the layers of one image: in threads of this process, or on an engine.

    Args:
        source: repository of the image.
        destination: takes the sector blobs.
        progress: shows how far each layer is.
        executor: an engine, which runs `run_task` elsewhere; threads of this process if None.
    """

    def __init__(
        self,
        source: Repository,
        destination: Destination,
        progress: Progress,
        executor: Executor | None,
    ) -> None:
        self._source = source
        self._destination = destination
        self._progress = progress
        self._executor = executor
        self._stopped = threading.Event()

    def run(self, jobs: Sequence[LayerJob], workers: int, finished: Finished) -> None:
        """Run all `jobs`, `workers` at a time, the largest layers first.

        Args:
            jobs: one for each layer.
            workers: threads, where there is no engine.
            finished: called in this thread for each job that is done.

        Raises:
            FirstreadError: a layer failed; the others were stopped.
        """
        pool = self._executor or ThreadPoolExecutor(workers, thread_name_prefix="layer")
        futures: dict[Future[Any], LayerJob] = {}
        try:
            for job in sorted(jobs, key=lambda job: -job.layer.size):
                futures[self._submit(pool, job)] = job
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    job = futures.pop(future)
                    made = self._made(job, future)
                    if made is None:
                        futures[self._submit(pool, job, again=True)] = job
                    else:
                        finished(job, *made)
        except (BrokenExecutor, CancelledError) as exc:
            raise NodeError(
                "a process that packed a layer is gone",
                hint="there may be too little memory: use fewer --jobs or a smaller --sector-size",
            ) from exc
        except BaseException:
            self._stopped.set()
            for future in futures:
                future.cancel()
            wait(futures, timeout=GRACE)
            raise
        finally:
            if self._executor is None:
                pool.shutdown(wait=False)

    def _submit(self, pool: Executor, job: LayerJob, *, again: bool = False) -> Future[Any]:
        """Have a job done; `again` if what others did of it is of no use here."""
        if self._executor is None:
            return pool.submit(self._convert_here, job)
        job = replace(job, reuse=job.reuse and not again)
        return pool.submit(run_task, LayerTask.of(job, alone=again).encode())

    def _made(self, job: LayerJob, future: Future[Any]) -> Made | None:
        """Return what a job made; None if it is of no use here.

        Another repository has it and keeps it, or a tag says what is not true.
        """
        if self._executor is None:
            packed, uploaded = future.result()
            return Made(packed, uploaded=uploaded)
        placed = Placed.of(_answer(future), job.diff_id)
        if placed.repository != repository_name(job.destination) and not _mounted(job, placed):
            return None
        try:
            packed = read_described(self._destination, placed.blob, job.parameters)
        except (ImageError, NotFoundError):
            if placed.how != KNOWN:
                raise
            return None
        return Made(packed, uploaded=placed.how == UPLOADED, known=placed.how == KNOWN)

    def _convert_here(self, job: LayerJob) -> tuple[PackedLayer, bool]:
        layer = job.layer.digest

        def on_read(count: int) -> None:
            self._check()
            self._progress.advance(layer, count)

        def on_sent(count: int) -> None:
            self._check()
            self._progress.sent(layer, count)

        return convert_layer(job, self._source, self._destination, on_read, on_sent)

    def _check(self) -> None:
        if self._stopped.is_set():
            raise FirstreadError("stopped")  # another layer failed, or the user interrupted


def _answer(future: Future[Any]) -> Any:
    """Return the answer of a worker; several conversions can wait for one future.

    Raises:
        FirstreadError: its own copy for each, since it names the image.
    """
    try:
        return future.result()
    except FirstreadError as exc:
        raise exc.copy() from None
    except (BrokenExecutor, CancelledError):
        raise
    except ImportError as exc:
        raise NodeError(
            f"a worker of the engine cannot load firstread: {exc}",
            hint="install the same version of firstread on all workers",
        ) from exc
    except Exception as exc:
        raise NodeError(redact(f"a worker failed: {type(exc).__name__}: {exc}")) from exc


def _mounted(job: LayerJob, placed: Placed) -> bool:
    """Have the registry take a blob over that was packed for another repository of it.

    On a connection of its own, as `firstread.convert.reuse.KnownLayers.mount` does.
    """
    name = placed.repository.removeprefix(f"{job.destination.host}/")
    with (
        suppress(FirstreadError),
        open_destination(job.destination, job.destination_options) as there,
    ):
        return there.mount_blob(placed.blob, name)
    return False

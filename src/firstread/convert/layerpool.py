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
    BrokenExecutor,
    Executor,
    Future,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from typing import NamedTuple

from firstread.convert.blobwriter import PackedLayer
from firstread.convert.job import LayerJob, convert_layer
from firstread.convert.progress import Progress
from firstread.errors import FirstreadError, NodeError
from firstread.oci.repository import Destination, Repository
from firstread.units import MiB

MAX_PARALLEL_LAYERS = 4
SECTOR_MEMORY = 96 * MiB  # of sectors over all layers at once, before compression
FILLING = 2  # sectors of a layer that are being filled: one of a large file, one of small ones
LEAST_BUFFERS = FILLING + 1  # and one that is being compressed
GRACE = 1.0  # seconds that a layer gets to stop; one may hang in a registry's answer

Finished = Callable[[LayerJob, PackedLayer, bool], None]
"""Takes what a job made, and whether its blob was new to the destination."""


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
    """Packs the layers of one image.

    Args:
        source: repository of the image.
        destination: takes the sector blobs.
        progress: shows how far each layer is.
        executor: runs `convert_layer`; threads of this process if None.
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
            workers: threads, where there is no executor.
            finished: called in this thread for each job that is done.

        Raises:
            FirstreadError: a layer failed; the others were stopped.
        """
        pool = self._executor or ThreadPoolExecutor(workers, thread_name_prefix="layer")
        futures: dict[Future[tuple[PackedLayer, bool]], LayerJob] = {}
        try:
            for job in sorted(jobs, key=lambda job: -job.layer.size):
                futures[self._submit(pool, job)] = job
            for future in as_completed(futures):
                finished(futures[future], *future.result())
        except BrokenExecutor as exc:
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

    def _submit(self, pool: Executor, job: LayerJob) -> Future[tuple[PackedLayer, bool]]:
        if self._executor is not None:
            return pool.submit(convert_layer, job)
        return pool.submit(self._convert_here, job)

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

# SPDX-License-Identifier: Apache-2.0
"""One traced start on a node, from the image's name to the trace.

Owns the order of the steps, and what becomes of a start that did not end as it was to. Invariant:
nothing is left of the start on the node, but the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstread.cli.holding import hold, reserve
from firstread.cli.nodestate import container_store, release_mount
from firstread.cli.output import complain
from firstread.errors import FirstreadError, NodeError

if TYPE_CHECKING:
    from firstread.cache.nodeimage import NodeImage
    from firstread.control.client import Client
    from firstread.run.containers import ContainerStore, Record
    from firstread.run.options import RunOptions
    from firstread.run.readiness import Conditions
    from firstread.run.traced import TracedStart
    from firstread.traces.tracefile import Trace


class Tracing:
    """One start on this node.

    Args:
        options: of the container.
        conditions: for the end of the start.
        root: of the node.
        run_dir: of the daemon.

    Attributes:
        digest: of the converted image, once it is on the node.
    """

    digest = ""

    def __init__(
        self, options: RunOptions, conditions: Conditions, root: Path, run_dir: Path
    ) -> None:
        self._options, self._conditions = options, conditions
        self._root, self._run_dir = root, run_dir

    def run(self, how: dict[str, Any]) -> tuple[Trace, TracedStart]:
        """Trace a start; nothing of it is left on the node, but the image.

        Raises:
            FirstreadError: there is no trace; names the image.
        """
        from firstread.oci.reference import parse_reference

        image = str(parse_reference(self._options.image).absolute())
        store = container_store(self._root)
        record, client = reserve(self._options, store, self._root, self._run_dir)
        try:
            try:
                return self._trace(store, record, client, image, how)
            finally:
                self._clear(store, record)
        except FirstreadError as exc:
            exc.about(image=image)
            raise

    def _clear(self, store: ContainerStore, record: Record) -> None:
        """Remove what a failure has left of a container that did not start."""
        from firstread.run.overlay import unmount_below

        current = store.reload(record)
        if current is not None and current.process is None:
            unmount_below(store.directory(record))
            release_mount(self._root, self._run_dir, record)
            store.delete(record)

    def _trace(
        self, store: ContainerStore, record: Record, client: Client, image: str, how: dict[str, Any]
    ) -> tuple[Trace, TracedStart]:
        from firstread.cache.imagestore import ImageStore
        from firstread.cli.fetch import fetch_whole

        mount = hold(client, record, image, how)
        self.digest = mount["digest"]
        fetch_whole(client, mount["mountpoint"], quiet=False)
        node_image = ImageStore(self._root, tidy=False).load(self.digest)
        start = self._start(node_image, store, record)
        self._check(start)
        return _to_trace(node_image, start, self._options), start

    def _start(self, image: NodeImage, store: ContainerStore, record: Record) -> TracedStart:
        from firstread.run.traced import trace_container
        from firstread.run.tracer import Tracer

        mountpoint = store.directory(record) / "traced"
        mountpoint.mkdir()
        with Tracer(image.metadata, self._root / "sectors", image.ids(), mountpoint) as tracer:
            start = trace_container(
                tracer,
                image.config,
                self._options,
                store,
                record,
                self._conditions,
                lambda: release_mount(self._root, self._run_dir, record),
            )
            if tracer.missed:
                complain([f"firstread: {tracer.missed} later reads are left out"])
        return start

    def _check(self, start: TracedStart) -> None:
        if start.signal is not None or not self._conditions.show_ready:
            return
        if start.stopped and start.ready_us is None:
            raise NodeError(f"the workload was not ready within {self._conditions.seconds:g} s")
        if not start.stopped:
            raise NodeError(
                f"the workload ended with exit code {start.code} before it was ready",
                hint="run it first: firstread run",
            )


def _to_trace(image: NodeImage, start: TracedStart, options: RunOptions) -> Trace:
    from firstread.run.bundle import process_args
    from firstread.run.rundefaults import parse_image_config
    from firstread.traces.sectorreads import trace_of

    command = process_args(parse_image_config(image.config), options)
    return trace_of(image.block_image, start.reads, command, start.read_ahead_kib, start.ready_us)

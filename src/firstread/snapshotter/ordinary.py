# SPDX-License-Identifier: Apache-2.0
"""Makes lazy snapshots ordinary, where another image needs them as layers.

Owns the order, from the lowest layer up, and who waits for whom: several calls that need one layer
share its unpacking. Invariant: a snapshot becomes ordinary only when its directory is complete.
Containers that use it lazily keep the mount of its image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from firstread.mounts.pulls import Pulls, Seats
from firstread.snapshotter.asked import IMAGE, TARGET
from firstread.snapshotter.caller import current
from firstread.snapshotter.directories import Directories, usage
from firstread.snapshotter.messages import Kind, Mount
from firstread.snapshotter.nodepolicy import Policy
from firstread.snapshotter.records import Record, Records
from firstread.snapshotter.refusal import Refusal, RefusalError
from firstread.snapshotter.snapshotmounts import mounts_of

WAITING = (32, 16)  # calls at a time that wait for layers to be unpacked; for one registry
UNPACKS = (16, 8)  # layers
UNPACK_S = 900.0  # that unpacking continues when nobody waits: a client that returns joins it

Unpack = Callable[[str, Mapping[str, str], str, list[Mount]], None]
"""Unpacks the layer that labels name; see `firstread.snapshotter.unpack.Unpacker`."""


class OrdinarySnapshots:
    """Makes ordinary snapshots of lazy ones.

    Args:
        records: of all snapshots.
        directories: of ordinary snapshots.
        policy: of the node.
        unpack: unpacks one layer; None if nobody can.
    """

    def __init__(
        self, records: Records, directories: Directories, policy: Policy, unpack: Unpack | None
    ) -> None:
        self._records = records
        self._directories = directories
        self._policy = policy
        self._unpack = unpack
        self._unpacking: Pulls[None] = Pulls(
            Seats(*WAITING, "calls wait"), Seats(*UNPACKS, "layers are unpacked"), UNPACK_S
        )

    def make(self, part: Record, namespace: str) -> None:
        """Make ordinary snapshots of a lazy one and of those below it; return when all are.

        Args:
            part: stands for some layers of an image.
            namespace: of the client, in containerd.

        Raises:
            RefusalError: nobody can unpack it, or the client has gone.
            FirstreadError: a layer cannot be unpacked.
        """
        if self._unpack is None:
            raise RefusalError(
                Refusal.FAILED_PRECONDITION,
                f"layer {part.labels.get(TARGET)} is on this node only as a part of a lazy image",
                hint="attach a conversion to the other image as well, or remove this one",
            )
        for record in [*reversed(self._records.ancestors(part)), part]:
            registry = record.labels.get(IMAGE, "").partition("/")[0]
            work = partial(self._make_one, self._unpack, record.name, namespace)
            self._unpacking.wait(record.id, registry, work, current())

    def _make_one(
        self, unpack: Unpack, name: str, namespace: str, on_resolved: Callable[[], None]
    ) -> None:
        """Make one ordinary snapshot, on ordinary ones."""
        on_resolved()
        record = self._records.find(name)
        if record is None:
            raise RefusalError(Refusal.NOT_FOUND, f"snapshot {name} does not exist")
        if record.lazy is None:
            return
        lower = [self._directories.upper(other.id) for other in self._records.ancestors(record)]
        with self._records.transaction():  # no cleanup takes it for a leftover
            self._directories.make(record.id, writable=True)
        active = replace(record, kind=Kind.ACTIVE)
        mounts = mounts_of(active, lower, self._directories, self._policy)
        unpack(namespace, record.labels, _chain(self._records.find(record.parent)), mounts)
        self._records.make_ordinary(record, usage(self._directories.upper(record.id)))


def _chain(record: Record | None) -> str:
    return record.labels.get(TARGET, "") if record else ""

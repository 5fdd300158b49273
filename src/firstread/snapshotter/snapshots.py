# SPDX-License-Identifier: Apache-2.0
"""The rules of snapshots: which may follow which, and what each call changes.

Owns the semantics of containerd's snapshots API. Ordinary snapshots equal those of containerd's
overlayfs snapshotter in names, modes and options. A *lazy* snapshot has no directory: it stands for
a converted image, or for some of its layers, and answers "already exists" before anything of it is
fetched. A container on any snapshot of an image then gets one mount of the whole image.

Invariant: a snapshot that a client learns of has a record and, unless it is lazy, a directory; a
failed call leaves neither.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from firstread.errors import FirstreadError
from firstread.snapshotter.asked import (
    IMAGE,
    LAYERS,
    MANIFEST,
    TARGET,
    Asked,
    is_unpacking,
    read_labels,
    root_owner,
)
from firstread.snapshotter.directories import Directories, usage
from firstread.snapshotter.filters import parse_filters
from firstread.snapshotter.imagechoice import (
    Attached,
    FindImage,
    ImageChoice,
    none_attached,
    none_known,
)
from firstread.snapshotter.lazyimages import Images
from firstread.snapshotter.messages import Kind, Mount
from firstread.snapshotter.nodepolicy import LENIENT, Policy
from firstread.snapshotter.ordinary import OrdinarySnapshots, Unpack
from firstread.snapshotter.records import Lazy, Record, Records
from firstread.snapshotter.refusal import Refusal, RefusalError
from firstread.snapshotter.snapshotmounts import mounts_of

log = logging.getLogger("snapshotter")


class Snapshotter:
    """The snapshots of one containerd.

    Args:
        records: of all snapshots.
        directories: of ordinary snapshots.
        images: that are lazy.
        policy: of the node.
        attached: finds the conversion of an ordinary image.
        find_image: finds the image of a layer when the client does not name it.
        unpack: unpacks a lazy layer that another image needs.
    """

    def __init__(
        self,
        records: Records,
        directories: Directories,
        images: Images,
        policy: Policy = LENIENT,
        attached: Attached = none_attached,
        find_image: FindImage = none_known,
        unpack: Unpack | None = None,
    ) -> None:
        self._records = records
        self._directories = directories
        self._images = images
        self._policy = policy
        self._choice = ImageChoice(images, policy, attached, find_image)
        self._ordinary = OrdinarySnapshots(records, directories, policy, unpack)
        self._left: set[str] = set()  # images that have lost a snapshot since the last cleanup
        self.fallbacks = self._choice.fallbacks

    def stat(self, key: str) -> Record:
        """Return a snapshot."""
        return self._found(key)

    def walk(self, filters: Sequence[str]) -> list[Record]:
        """Return the snapshots that match one of the filters."""
        matches = parse_filters(filters)
        return [record for record in self._records.all() if matches(_lookup(record))]

    def usage(self, key: str) -> tuple[int, int]:
        """Return the bytes and inodes of a snapshot, without its parents."""
        record = self._found(key)
        if record.kind is Kind.ACTIVE:
            return usage(self._directories.upper(record.id))
        if record.lazy is None:
            return record.size, record.inodes
        # Clients add up the snapshots of an image.
        below = self._records.find(record.parent)
        if not record.lazy.whole or (below and below.lazy == record.lazy):
            return 0, 0
        return self._images.usage(record.lazy.image)

    def mounts(self, key: str) -> list[Mount]:
        """Return the mounts of an active snapshot or a view."""
        record = self._found(key)
        if record.kind not in (Kind.ACTIVE, Kind.VIEW):
            raise RefusalError(
                Refusal.FAILED_PRECONDITION, f"snapshot {key} is not active or a view"
            )
        return mounts_of(record, self._lower(record), self._directories, self._policy)

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Make a writable snapshot; for a lazy layer, answer that it exists already."""
        asked = read_labels(labels)
        if asked is not None:
            asked = self._choice.completed(asked, key)
            lazy = self._choice.choose(asked, self._parent(parent))
            if lazy is not None:
                self._remember(asked, parent, labels, lazy)
                raise RefusalError(Refusal.ALREADY_EXISTS, f"target snapshot {asked.target!r}")
        elif is_unpacking(key):
            self._choice.unpacking(key)
        return self._create(Kind.ACTIVE, key, parent, labels)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Make a read-only snapshot."""
        return self._create(Kind.VIEW, key, parent, labels)

    def commit(self, name: str, key: str, parent: str, labels: Mapping[str, str]) -> None:
        """Make a writable snapshot a committed one, under another name."""
        measured = usage(self._directories.upper(self._found(key).id))
        with self._records.transaction():
            record = self._found(key)
            if self._records.find(name):
                raise RefusalError(Refusal.ALREADY_EXISTS, f"committed snapshot {name}")
            if record.kind is not Kind.ACTIVE:
                raise RefusalError(Refusal.FAILED_PRECONDITION, f"snapshot {key} is not active")
            if record.parent and parent and parent != record.parent:
                raise RefusalError(
                    Refusal.INVALID_ARGUMENT, f"the parent of snapshot {key} cannot change"
                )
            base = self._records.find(parent or record.parent)
            if base is None and (parent or record.parent):
                raise RefusalError(Refusal.NOT_FOUND, f"parent {parent} of snapshot {key}")
            if base is not None and base.kind is not Kind.COMMITTED:
                raise RefusalError(Refusal.FAILED_PRECONDITION, f"parent {parent} is not committed")
            below = self._records.ancestors(record)
            self._records.commit(record, name, base, labels, measured)
        self._release(record, below)

    def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str]) -> Record:
        """Change all labels, or those that `paths` name as ``labels.NAME``."""
        with self._records.transaction():
            record = self._found(key)
            changed = dict(record.labels) if paths else dict(labels)
            for path in paths:
                if path == "labels":
                    changed = dict(labels)
                elif path.startswith("labels."):
                    name = path.removeprefix("labels.")
                    changed[name] = labels.get(name, "")
                else:
                    message = f"cannot update {path!r} of snapshot {key!r}"
                    raise RefusalError(Refusal.INVALID_ARGUMENT, message)
            return self._records.relabel(record, changed)

    def remove(self, key: str) -> None:
        """Remove a snapshot that has no children."""
        with self._records.transaction():
            record = self._found(key)
            if self._records.children(record):
                message = f"cannot remove snapshot {key}: it has children"
                raise RefusalError(Refusal.FAILED_PRECONDITION, message)
            below = self._records.ancestors(record)
            self._records.remove(record)
            if record.lazy is not None:
                self._left.add(record.lazy.image)
        self._directories.remove(record.id)
        self._release(record, below)

    def cleanup(self) -> None:
        """Remove what crashes left behind, and images without a snapshot.

        containerd calls it when it has collected garbage, and has let its lock go.
        """
        with self._records.transaction():  # so that nothing is made meanwhile
            self._directories.sweep([record.id for record in self._records.all()])
        held = self._images.held()  # before the records: a holder is recorded first
        in_use = {record.id for record in self._records.all() if record.kind is not Kind.COMMITTED}
        for snapshot in held - in_use:
            self._images.release(snapshot)
        self._drop()

    def _drop(self) -> None:
        """Give back the room of images whose snapshots are gone, as their users expect of it."""
        with self._records.transaction():
            left, self._left = self._left, set()
            used = {record.lazy.image for record in self._records.all() if record.lazy is not None}
        if gone := left - used:
            try:
                self._images.drop(gone)
            except FirstreadError:
                with self._records.transaction():
                    self._left |= gone  # the next cleanup tries again
                raise

    def _remember(self, asked: Asked, parent: str, labels: Mapping[str, str], lazy: Lazy) -> None:
        """Record a new lazy snapshot, with all that unpacking it would need."""
        found = {IMAGE: asked.image, MANIFEST: asked.manifest, LAYERS: asked.layer}
        with self._records.transaction():
            base = self._parent(parent)
            if any(
                record.labels.get(TARGET) == asked.target and record.kind is Kind.COMMITTED
                for record in self._records.children(base)
            ):
                return
            name = asked.target
            if self._records.find(name):  # on another parent, of another namespace
                name = f"{asked.target} on {base.id if base else 0}"
            self._records.add(name, base, Kind.COMMITTED, {**labels, **found}, lazy)
        if lazy.whole and asked.last:
            self.fallbacks.lazy(asked.image)

    def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        if not key:
            raise RefusalError(Refusal.INVALID_ARGUMENT, "a snapshot needs a key")
        owner = _owner(labels)
        with self._records.transaction():
            base = self._parent(parent)
            if self._records.find(key):
                raise RefusalError(Refusal.ALREADY_EXISTS, f"snapshot {key}")
            record = self._records.add(key, base, kind, labels)
            self._directories.make(record.id, writable=kind is Kind.ACTIVE)
        try:
            lower = self._lower(record)
            if owner is None and lower:
                status = os.stat(lower[0])
                owner = (status.st_uid, status.st_gid)
            if owner is not None:
                self._directories.give(record.id, owner)
            return mounts_of(record, lower, self._directories, self._policy)
        except BaseException:
            with contextlib.suppress(RefusalError):
                self.remove(key)
            raise

    def _lower(self, record: Record) -> list[Path]:
        """Return the trees below a snapshot, highest first; mount a lazy image."""
        ancestors = self._records.ancestors(record)
        top = next((ancestor for ancestor in ancestors if ancestor.lazy), None)
        if top and top.lazy and not top.lazy.whole:
            self._ordinary.make(top, record.name.partition("/")[0])
            ancestors = self._records.ancestors(record)  # none is lazy any more
        lower = []
        for ancestor in ancestors:
            if ancestor.lazy is not None:
                lower.append(self._images.mount(ancestor.lazy.image, record.id))
                break
            lower.append(self._directories.upper(ancestor.id))
        return lower

    def _release(self, record: Record, below: Sequence[Record]) -> None:
        """Release the image below a snapshot; `cleanup` tries again.

        Args:
            record: of the snapshot.
            below: its ancestors, which somebody else may remove by now.
        """
        if not any(ancestor.lazy or ancestor.was_lazy for ancestor in below):
            return  # ordinary images need no daemon
        try:
            self._images.release(record.id)
        except FirstreadError as exc:
            log.warning("snapshot %s keeps its image mounted: %s", record.name, exc)

    def _found(self, key: str) -> Record:
        record = self._records.find(key)
        if record is None:
            raise RefusalError(Refusal.NOT_FOUND, f"snapshot {key} does not exist")
        return record

    def _parent(self, name: str) -> Record | None:
        if not name:
            return None
        record = self._records.find(name)
        if record is None:
            raise RefusalError(Refusal.NOT_FOUND, f"parent snapshot {name} does not exist")
        if record.kind is not Kind.COMMITTED:
            raise RefusalError(
                Refusal.INVALID_ARGUMENT, f"parent {name} is not a committed snapshot"
            )
        return record


def _owner(labels: Mapping[str, str]) -> tuple[int, int] | None:
    try:
        return root_owner(labels)
    except ValueError as exc:
        raise RefusalError(Refusal.INVALID_ARGUMENT, f"id mapping: {exc}") from exc


def _lookup(record: Record) -> Callable[[tuple[str, ...]], str | None]:
    """Return the fields of a snapshot that filters see."""
    fields = {"kind": record.kind.name.lower(), "name": record.name, "parent": record.parent}

    def lookup(path: tuple[str, ...]) -> str | None:
        if path[0] == "labels":
            return record.labels.get(".".join(path[1:]))
        return fields.get(path[0])

    return lookup

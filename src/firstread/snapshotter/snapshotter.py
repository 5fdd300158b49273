# SPDX-License-Identifier: Apache-2.0
"""The rules of snapshots: what may become what, and which mounts a snapshot is.

Owns the semantics of containerd's snapshots API. Mounts are data here; the client makes them.
Ordinary snapshots are those of containerd's overlayfs snapshotter, of the same names, modes and
options. A *lazy* snapshot has no directory: it stands for a converted image, or for some of the
layers of one, and answers "already exists" before anything of it is fetched. What is mounted below
a container is then the image, once, whichever of its snapshots the container was made of.

Invariant: a snapshot that is told to a client has a record and, unless it is lazy, a directory;
a call that fails leaves neither.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from firstread.errors import BusyError, DerivedImageError, FirstreadError
from firstread.node.pulls import Pulls, Seats
from firstread.oci.reference import parse_reference
from firstread.snapshotter.asked import (
    GID_MAPPING,
    IMAGE,
    LAYERS,
    MANIFEST,
    TARGET,
    UID_MAPPING,
    Asked,
    Named,
    is_unpacking,
    read_labels,
    root_owner,
    unpacked,
)
from firstread.snapshotter.caller import current
from firstread.snapshotter.directories import Directories, usage
from firstread.snapshotter.fallbacks import Fallbacks
from firstread.snapshotter.filters import parse_filters
from firstread.snapshotter.images import Images
from firstread.snapshotter.messages import Kind, Mount
from firstread.snapshotter.refusal import Kind as Why
from firstread.snapshotter.refusal import RefusalError
from firstread.snapshotter.store import Lazy, Record, Store

log = logging.getLogger("snapshotter")

Attached = Callable[[str, str], str | None]
"""Maps name and manifest digest of an image to the converted image that is attached to it.

The answer is a reference with a digest, None if there is none; it was checked that the converted
image names that very manifest as its source. Raises FirstreadError if it cannot be found out.
"""


def none_attached(image: str, manifest: str) -> None:
    """Attach nothing to any image."""


FindImage = Callable[[str, str], Named | None]
"""Maps a namespace of containerd and a chain id to the image that has such a layer."""


def none_known(namespace: str, chain: str) -> None:
    """Know no image."""


Unpack = Callable[[str, Mapping[str, str], str, list[Mount]], None]
"""Unpacks the layer that labels name; see `Unpacker`."""


@dataclass(frozen=True)
class Policy:
    """What holds for all images.

    Args:
        require_lazy: refuse images that are not.
        excepted: patterns of names that may be ordinary all the same, such as that of the pause
            image.
        remap_ids: have the kernel map the owners of files where a client gives id mappings.
        options: of overlay mounts.
    """

    require_lazy: bool = False
    excepted: tuple[str, ...] = ()
    remap_ids: bool = False
    options: tuple[str, ...] = ("index=off",)


WAITING = (32, 16)  # calls at a time that wait for layers to be unpacked; for one registry
UNPACKS = (16, 8)  # layers
UNPACK_S = 900.0  # that unpacking goes on if nobody waits: a client that comes again joins it


class Snapshotter:
    """The snapshots of one containerd.

    Args:
        store: of records.
        directories: of ordinary snapshots.
        images: that are lazy.
        policy: for all.
        attached: finds converted images for ordinary ones.
        clock: gives nanoseconds since 1970.
        find_image: where the client does not say which image a layer belongs to.
        unpack: layers that were answered lazily, for images that are not lazy.
    """

    def __init__(
        self,
        store: Store,
        directories: Directories,
        images: Images,
        policy: Policy = Policy(),
        attached: Attached = none_attached,
        clock: Callable[[], int] = time.time_ns,
        find_image: FindImage = none_known,
        unpack: Unpack | None = None,
    ) -> None:
        self._unpack = unpack
        self._unpacking: Pulls[None] = Pulls(
            Seats(*WAITING, "calls wait"), Seats(*UNPACKS, "layers are unpacked"), UNPACK_S
        )
        self._store = store
        self._find_image = find_image
        self._directories = directories
        self._images = images
        self._policy = policy
        self._attached = attached
        self._clock = clock
        self.fallbacks = Fallbacks()

    # -- what is there -------------------------------------------------------------------------

    def stat(self, key: str) -> Record:
        """Return a snapshot."""
        return self._found(key)

    def walk(self, filters: Sequence[str]) -> list[Record]:
        """Return the snapshots that match one of the filters."""
        matches = parse_filters(filters)
        return [record for record in self._store.all() if matches(_lookup(record))]

    def usage(self, key: str) -> tuple[int, int]:
        """Return bytes and inodes that a snapshot takes, without its parents."""
        record = self._found(key)
        if record.kind is Kind.ACTIVE:
            return usage(self._directories.upper(record.id))
        if record.lazy is not None:
            return self._images.usage(record.lazy.image) if record.lazy.whole else (0, 0)
        return record.size, record.inodes

    def mounts(self, key: str) -> list[Mount]:
        """Return the mounts of an active snapshot or a view."""
        record = self._found(key)
        if record.kind not in (Kind.ACTIVE, Kind.VIEW):
            raise RefusalError(Why.FAILED_PRECONDITION, f"snapshot {key} is not active or a view")
        return self._mounts(record, self._lower(record))

    # -- what changes --------------------------------------------------------------------------

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Make a writable snapshot; of a lazy layer, answer that it exists already."""
        asked = read_labels(labels)
        if asked is not None:
            asked = self._complete(asked, key)
            lazy = self._lazy(asked, self._parent(parent))
            if lazy is not None:
                self._remember(asked, parent, labels, lazy)
                raise RefusalError(Why.ALREADY_EXISTS, f"target snapshot {asked.target!r}")
        elif is_unpacking(key):
            self._refuse_converted(key)
            why = "the client gives no label that names the layer"
            self._ordinary(key.partition(" ")[2] or key, "", "client", why)
        return self._create(Kind.ACTIVE, key, parent, labels)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Make a read-only snapshot."""
        return self._create(Kind.VIEW, key, parent, labels)

    def commit(self, name: str, key: str, parent: str, labels: Mapping[str, str]) -> None:
        """Finish a writable snapshot, under another name."""
        measured = usage(self._directories.upper(self._found(key).id))
        with self._store.transaction():
            record = self._found(key)
            if self._store.find(name):
                raise RefusalError(Why.ALREADY_EXISTS, f"committed snapshot {name}")
            if record.kind is not Kind.ACTIVE:
                raise RefusalError(Why.FAILED_PRECONDITION, f"snapshot {key} is not active")
            if record.parent and parent and parent != record.parent:
                raise RefusalError(
                    Why.INVALID_ARGUMENT, f"the parent of snapshot {key} cannot change"
                )
            base = self._store.find(parent or record.parent)
            if base is None and (parent or record.parent):
                raise RefusalError(Why.NOT_FOUND, f"parent {parent} of snapshot {key}")
            if base is not None and base.kind is not Kind.COMMITTED:
                raise RefusalError(Why.FAILED_PRECONDITION, f"parent {parent} is not committed")
            self._store.commit(record, name, base, labels, measured, self._clock())
        self._release(record)

    def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str]) -> Record:
        """Change labels: all, or those that `paths` name as ``labels.NAME``."""
        with self._store.transaction():
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
                    raise RefusalError(Why.INVALID_ARGUMENT, message)
            return self._store.relabel(record, changed, self._clock())

    def remove(self, key: str) -> None:
        """Remove a snapshot that has no children."""
        with self._store.transaction():
            record = self._found(key)
            if self._store.has_children(record):
                message = f"cannot remove snapshot {key}: it has children"
                raise RefusalError(Why.FAILED_PRECONDITION, message)
            self._store.remove(record)
        self._directories.remove(record.id)
        self._release(record)

    def cleanup(self) -> None:
        """Remove what crashes left: directories and mounts without a snapshot."""
        with self._store.transaction():  # nothing is made meanwhile
            self._directories.sweep([record.id for record in self._store.all()])
        held = self._images.held()  # first: whoever holds an image was recorded before
        in_use = {record.id for record in self._store.all() if record.kind is not Kind.COMMITTED}
        for snapshot in held - in_use:
            self._images.release(snapshot)

    # -- lazy or not ---------------------------------------------------------------------------

    def _complete(self, asked: Asked, key: str) -> Asked:
        """Add what the client does not say, if containerd's store has the image."""
        if asked.image and asked.manifest:
            return asked
        named = self._find_image(unpacked(key)[0], asked.target)
        if named is None:
            return asked
        return replace(
            asked,
            image=named.image,
            manifest=named.manifest,
            layer=named.layer,
            last=named.last,
        )

    def _refuse_converted(self, key: str) -> None:
        """Refuse to have a layer of a converted image unpacked: nobody can."""
        named = self._find_image(*unpacked(key))
        if named is not None and named.converted and named.derived:
            raise DerivedImageError(
                "it was built FROM a converted image, and only firstread can read the layers below",
                image=named.image,
            )
        if named is not None and named.converted:
            raise RefusalError(
                Why.FAILED_PRECONDITION,
                f"{named.image} is converted, and this client can only unpack images",
                hint=f"firstread pull {named.image}@{named.manifest}, crictl pull, or the kubelet",
            )

    def _lazy(self, asked: Asked, parent: Record | None) -> Lazy | None:
        """Return the image that a layer is answered with; None if the client must unpack it.

        Raises:
            FirstreadError: it cannot be had, or it would not be lazy and has to be.
        """
        whole = asked.converted or asked.last
        if parent and parent.lazy:  # an image goes on as it began
            unnamed = asked.converted and not asked.manifest
            if unnamed or asked.manifest == parent.lazy.source:
                return Lazy(parent.lazy.image, parent.lazy.source, whole)
        if asked.converted:
            if not (asked.image and asked.manifest):
                raise RefusalError(
                    Why.FAILED_PRECONDITION,
                    "the client does not say which image the layer belongs to",
                    hint="turn on snapshot annotations: docs/containerd.md",
                )
            image = _pinned(asked.image, asked.manifest)
            self._images.pull(image)
            return Lazy(image, asked.manifest, whole)
        return self._conversion(asked, parent)

    def _conversion(self, asked: Asked, parent: Record | None) -> Lazy | None:
        """Return the conversion that is attached to an ordinary image, if it can be used.

        Raises:
            DerivedImageError: the image was built FROM a converted one, which is not here.
        """
        name = asked.image or asked.target
        if not (asked.image and asked.manifest):
            why = "the client does not say which image the layer belongs to"
            self._ordinary(name, asked.image, "client", why)
            return None
        try:
            image = self._attached(asked.image, asked.manifest)
            if image is None:
                why = "it is not converted, and no conversion is attached to it"
                self._ordinary(name, asked.image, "not-converted", why)
                return None
            self._images.pull(image)
        except DerivedImageError:
            if parent is None:  # the lowest layer is one that nobody can unpack
                raise
            self._ordinary(name, asked.image, "derived", "it was built FROM a converted image")
            return None
        except FirstreadError as exc:
            if isinstance(exc, RefusalError | BusyError):
                raise
            self._ordinary(name, asked.image, "failed", f"its conversion cannot be had: {exc}")
            return None
        return Lazy(image, asked.manifest, asked.last)

    def _ordinary(self, name: str, image: str, cause: str, why: str) -> None:
        """Note that a layer is unpacked.

        Raises:
            RefusalError: that is not allowed.
        """
        excepted = any(fnmatch.fnmatchcase(image, pattern) for pattern in self._policy.excepted)
        if self._policy.require_lazy and not excepted:
            raise RefusalError(
                Why.FAILED_PRECONDITION,
                f"{name} is not lazy: {why}; this node takes lazy images only (require_lazy)",
                hint="convert it with 'firstread convert', or except it",
            )
        self.fallbacks.ordinary(name, cause, why)

    def _remember(self, asked: Asked, parent: str, labels: Mapping[str, str], lazy: Lazy) -> None:
        """Record a lazy snapshot, unless it is known, with all that its unpacking would need."""
        found = {IMAGE: asked.image, MANIFEST: asked.manifest, LAYERS: asked.layer}
        with self._store.transaction():
            base = self._parent(parent)
            known = [
                record
                for record in self._store.all()
                if record.labels.get(TARGET) == asked.target
                and record.parent == parent
                and record.kind is Kind.COMMITTED
            ]
            if known:
                return
            name = asked.target
            if self._store.find(name):  # on another parent, of another namespace
                name = f"{asked.target} on {base.id if base else 0}"
            self._store.add(name, base, Kind.COMMITTED, {**labels, **found}, self._clock(), lazy)
        if lazy.whole and asked.last:
            self.fallbacks.lazy(asked.image)

    # -- making --------------------------------------------------------------------------------

    def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        if not key:
            raise RefusalError(Why.INVALID_ARGUMENT, "a snapshot needs a key")
        owner = _owner(labels)
        with self._store.transaction():
            base = self._parent(parent)
            if self._store.find(key):
                raise RefusalError(Why.ALREADY_EXISTS, f"snapshot {key}")
            record = self._store.add(key, base, kind, labels, self._clock())
            self._directories.make(record.id, writable=kind is Kind.ACTIVE)
        try:
            lower = self._lower(record)
            if owner is None and lower:
                status = os.stat(lower[0])
                owner = (status.st_uid, status.st_gid)
            if owner is not None:
                self._directories.give(record.id, owner)
            return self._mounts(record, lower)
        except BaseException:
            with contextlib.suppress(RefusalError):
                self.remove(key)
            raise

    def _lower(self, record: Record) -> list[Path]:
        """Return the trees below a snapshot, the highest first; a lazy image is mounted."""
        ancestors = self._store.ancestors(record)
        top = next((ancestor for ancestor in ancestors if ancestor.lazy), None)
        if top and top.lazy and not top.lazy.whole:
            self._fill(top, record.name.partition("/")[0])
            ancestors = self._store.ancestors(record)  # none is lazy any more
        lower = []
        for ancestor in ancestors:
            if ancestor.lazy is not None:
                lower.append(self._images.mount(ancestor.lazy.image, record.id))
                break
            lower.append(self._directories.upper(ancestor.id))
        return lower

    def _fill(self, part: Record, namespace: str) -> None:
        """Make ordinary snapshots of one that stands for some layers of an image and those below.

        Containers that were made of one of them before keep the mount of its image.
        """
        if self._unpack is None:
            raise RefusalError(
                Why.FAILED_PRECONDITION,
                f"layer {part.labels.get(TARGET)} is on this node only as a part of a lazy image",
                hint="attach a conversion to the other image as well, or remove this one",
            )
        for record in [*reversed(self._store.ancestors(part)), part]:
            registry = record.labels.get(IMAGE, "").partition("/")[0]
            work = partial(self._fill_one, self._unpack, record.name, namespace)
            self._unpacking.wait(record.id, registry, work, current())

    def _fill_one(
        self, unpack: Unpack, name: str, namespace: str, on_resolved: Callable[[], None]
    ) -> None:
        """Make an ordinary snapshot of a lazy one that lies on ordinary ones."""
        on_resolved()
        record = self._found(name)
        if record.lazy is None:
            return
        lower = [self._directories.upper(other.id) for other in self._store.ancestors(record)]
        self._directories.make(record.id, writable=True)
        mounts = self._mounts(replace(record, kind=Kind.ACTIVE), lower)
        unpack(namespace, record.labels, _chain(self._store.find(record.parent)), mounts)
        self._store.unpacked(record, usage(self._directories.upper(record.id)))

    def _mounts(self, record: Record, lower: list[Path]) -> list[Mount]:
        options = self._mapping(record)
        upper = self._directories.upper(record.id)
        if not lower:
            access = "ro" if record.kind is Kind.VIEW else "rw"
            return [Mount("bind", str(upper), options=[*options, access, "rbind"])]
        if record.kind is Kind.VIEW and len(lower) == 1:
            return [Mount("bind", str(lower[0]), options=[*options, "ro", "rbind"])]
        if record.kind is Kind.ACTIVE:
            work = self._directories.work(record.id)
            options += [f"workdir={work}", f"upperdir={upper}"]
        options.append("lowerdir=" + ":".join(map(str, lower)))
        return [Mount("overlay", "overlay", options=[*options, *self._policy.options])]

    def _mapping(self, record: Record) -> list[str]:
        """Return the options that map owners, which containerd 2 understands."""
        if not self._policy.remap_ids:
            return []
        names = {"uidmap": UID_MAPPING, "gidmap": GID_MAPPING}
        return [f"{k}={record.labels[v]}" for k, v in names.items() if v in record.labels]

    def _release(self, record: Record) -> None:
        """Give back the image below a snapshot; what fails is left to `cleanup`."""
        ancestors = self._store.ancestors(record)
        if not any(ancestor.lazy or ancestor.was_lazy for ancestor in ancestors):
            return  # ordinary images need no daemon
        try:
            self._images.release(record.id)
        except FirstreadError as exc:
            log.warning("snapshot %s keeps its image mounted: %s", record.name, exc)

    def _found(self, key: str) -> Record:
        record = self._store.find(key)
        if record is None:
            raise RefusalError(Why.NOT_FOUND, f"snapshot {key} does not exist")
        return record

    def _parent(self, name: str) -> Record | None:
        if not name:
            return None
        record = self._store.find(name)
        if record is None:
            raise RefusalError(Why.NOT_FOUND, f"parent snapshot {name} does not exist")
        if record.kind is not Kind.COMMITTED:
            raise RefusalError(Why.INVALID_ARGUMENT, f"parent {name} is not a committed snapshot")
        return record


def _owner(labels: Mapping[str, str]) -> tuple[int, int] | None:
    try:
        return root_owner(labels)
    except ValueError as exc:
        raise RefusalError(Why.INVALID_ARGUMENT, f"id mapping: {exc}") from exc


def _chain(record: Record | None) -> str:
    return record.labels.get(TARGET, "") if record else ""


def _pinned(image: str, digest: str) -> str:
    """Return a reference to the manifest `digest` in the repository of `image`."""
    reference = parse_reference(image)
    return f"docker://{reference.host}/{reference.repository}@{digest}"


def _lookup(record: Record) -> Callable[[tuple[str, ...]], str | None]:
    """Return what filters see of a snapshot."""
    fields = {"kind": record.kind.name.lower(), "name": record.name, "parent": record.parent}

    def lookup(path: tuple[str, ...]) -> str | None:
        if path[0] == "labels":
            return record.labels.get(".".join(path[1:]))
        return fields.get(path[0])

    return lookup

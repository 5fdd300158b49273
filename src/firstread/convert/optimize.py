# SPDX-License-Identifier: Apache-2.0
"""Gives a converted image hot sectors, or others than it has, without its original.

Owns the way back from a converted image to what it was made of: its layer records, its config, its
name. `publish` makes the image again, as a conversion does that finds every layer packed before.
Invariants: hot sectors that the image had have no influence; a tree that its records do not give
again is refused; only the hot blob, metadata, config and manifest are new.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

from firstread.convert.attach import chosen_by_nodes
from firstread.convert.destination import check_destination, repository_of, same_image
from firstread.convert.hotblob import recorded_start
from firstread.convert.hotplan import plan_hot
from firstread.convert.job import blob_descriptor, naming_image
from firstread.convert.manifest import original_config
from firstread.convert.metadata import MergedLayers, leave_out_zeros
from firstread.convert.outcome import Optimization, hot_sectors
from firstread.convert.platforms import publish_index, relisted
from firstread.convert.publish import Published, ReadyLayer, merge_layers, publish
from firstread.convert.record import Parameters
from firstread.convert.recorded import RecordedLayers
from firstread.convert.reuse import preferred
from firstread.erofs.reader import read_tree
from firstread.erofs.tree import HOLE, Node, walk
from firstread.errors import (
    FirstreadError,
    ImageError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from firstread.layouts.ingest import open_scratch
from firstread.oci.model import OCI_MANIFEST, Descriptor, Index, diff_ids
from firstread.oci.platform import Platform
from firstread.oci.reference import Reference, is_digest
from firstread.oci.repository import Destination, Repository
from firstread.oci.resolve import ResolvedImage, document_of
from firstread.registry.open import open_destination, open_source
from firstread.registry.options import AccessOptions
from firstread.sectors.attached import resolve_converted
from firstread.sectors.format import BLOCK_SIZE
from firstread.sectors.image import (
    PARAMETERS,
    SOURCE_DIFF_ID,
    SOURCE_DIGEST,
    BlockImage,
    fetch_image,
)
from firstread.traces.attachedtraces import traces_attached
from firstread.traces.firstreads import merge
from firstread.traces.tracefile import Trace

DEFAULT_ACCESS = AccessOptions()
CONVERT_AGAIN = "convert its original again, with --trace"


@dataclass(frozen=True)
class OptimizeOptions:
    """How to optimize.

    Args:
        platform: selects an image of an index; this machine's if None.
        access: to both registries.
        jobs: sectors compressed at a time.
    """

    platform: Platform | None = None
    access: AccessOptions = DEFAULT_ACCESS
    jobs: int = 1


def optimize(
    reference: Reference,
    destination: Reference | None,
    traces: Sequence[Trace],
    options: OptimizeOptions,
) -> Optimization:
    """Publish the converted image of `reference` with hot sectors.

    Args:
        reference: a converted image, or an original with one attached.
        destination: the result's name. If None, that of `reference`: an index lists the result
            in place of the image; an original gets one more attachment instead.
        traces: of starts; if none, those that are attached to the image.
        options: see `OptimizeOptions`.

    Raises:
        FirstreadError: names the image.
    """
    started = time.monotonic()
    if destination == reference:
        destination = None
    if destination is not None:
        check_destination(reference, destination)
    with naming_image(reference), open_source(reference, options.access) as source:
        work = _Work(source, resolve_converted(source, options.platform), options)
        target, trace = work.target(destination), merge(traces or work.attached())
        with open_destination(target, options.access) as opened:
            return work.run(opened, destination, trace, started)


class _Work:
    """The optimization of one image.

    Args:
        source: the image's repository.
        image: converted.
        options: see `OptimizeOptions`.
    """

    def __init__(self, source: Repository, image: ResolvedImage, options: OptimizeOptions) -> None:
        self._source = source
        self._image = image
        self._options = options

    def attached(self) -> list[Trace]:
        """Return the traces that travel with the image: of its original, or else its own.

        Raises:
            UsageError: there are none.
        """
        for subject in (self._original().descriptor, self._image.descriptor):
            if found := traces_attached(self._source, subject):
                return found
        raise UsageError(
            "no trace is attached to the image",
            hint="name a file, --trace FILE, or record a start: firstread trace --attach",
        )

    def target(self, destination: Reference | None) -> Reference:
        """Return where the result goes.

        Raises:
            UsageError: the image needs another name there.
        """
        if destination is not None:
            return destination
        reference = self._source.reference
        if not self._is_named and not self._is_listed:
            if self._image.manifest.subject is None:
                raise UsageError(
                    "the image is in an index within the index", hint="name a DEST with a tag"
                )
            return replace(reference, tag=None, digest=None)  # the original keeps its name
        if reference.transport == "oci-archive":
            raise UsageError("an archive is not changed", hint="name another one as DEST")
        if reference.tag is None:
            raise UsageError("the result needs a name", hint="name a DEST with a tag")
        return replace(reference, digest=None)

    @property
    def _is_named(self) -> bool:
        """Whether the name is that of the converted image itself."""
        return self._image.named == self._image.descriptor.digest

    @cached_property
    def _is_listed(self) -> bool:
        """Whether the name is that of an index which lists the converted image."""
        if self._is_named:
            return False
        document = document_of(*self._source.get_manifest())
        return isinstance(document, Index) and self._image.descriptor.digest in {
            entry.digest for entry in document.manifests
        }

    def run(
        self,
        opened: Destination,
        destination: Reference | None,
        trace: Trace,
        started: float,
    ) -> Optimization:
        here = repository_of(opened.reference) == repository_of(self._source.reference)
        subject = self._image.manifest.subject if here else None
        previous = self._image.descriptor.digest if destination is None else self._named_by(opened)
        layers, parameters = packed_layers(self._source, self._image)
        merged = merge_layers(layers)
        with tempfile.TemporaryFile(prefix="firstread-") as file:
            check_tree(merged, fetch_image(self._source, self._image.manifest, file))
        leave_out_zeros(merged)
        plan = plan_hot(merged.root, trace, parameters.sector_size)
        if not plan.runs and not plan.whole:
            raise UsageError(
                "nothing in the trace fits the image", hint="trace a start of this very image"
            )
        is_part = destination is None and self._is_listed
        carried = 0 if here else self._carry(opened, layers)
        done = publish(
            opened,
            self._original(),
            layers,
            parameters,
            previous,
            attach=subject is not None,
            above=preferred(opened, subject) if subject else None,
            start=recorded_start(trace),
            jobs=self._options.jobs,
            merged=merged,
            plan=plan,
            part=is_part,
        )
        if is_part and not done.unchanged:
            listed = self._image.descriptor.digest
            publish_index(opened, [done.manifest], relisted(opened, listed, done.manifest))
        return self._report(opened, done, subject, carried, started)

    def _named_by(self, opened: Destination) -> str | None:
        """Return the digest that the destination's name has now.

        Raises:
            UsageError: it is the original's, or that of the index that led to the image.
        """
        try:
            named = opened.get_manifest()[0].digest
        except (ImageError, NotFoundError):
            return None
        subject = self._image.manifest.subject
        originals = {self._image.named, subject.digest if subject else ""}
        if named in originals - {self._image.descriptor.digest}:
            raise same_image(self._source.reference)
        return named

    def _original(self) -> ResolvedImage:
        """Return what `publish` has to know of the image's original."""
        manifest = self._image.manifest
        digest = (manifest.annotations or {}).get(SOURCE_DIGEST, "")
        if not is_digest(digest):
            raise ImageError("the image does not name its original", hint=CONVERT_AGAIN)
        descriptor = manifest.subject or Descriptor(media_type=OCI_MANIFEST, digest=digest, size=0)
        return replace(
            self._image, descriptor=descriptor, config=original_config(self._image.config)
        )

    def _carry(self, opened: Destination, layers: Iterable[ReadyLayer]) -> int:
        """Have the blobs of layers in another repository; return how many were sent there."""
        missing = [blob_descriptor(layer.packed) for layer in layers]
        missing = [blob for blob in missing if not opened.has_blob(blob)]
        here, there = self._source.reference, opened.reference
        if (here.transport, here.host) == ("docker", there.host):
            # On a connection of its own: a registry that forbids it would refuse the rest as well.
            with suppress(FirstreadError), open_destination(there, self._options.access) as mounts:
                missing = [b for b in missing if not mounts.mount_blob(b, here.repository)]
        for blob in missing:
            with (
                open_scratch(opened.scratch_dir) as file,
                self._source.open_blob(blob) as stream,
            ):
                for chunk in stream:
                    file.write(chunk)
                file.seek(0)
                opened.put_blob(blob, file, verified=True)
        return len(missing)

    def _report(
        self,
        opened: Destination,
        done: Published,
        subject: Descriptor | None,
        carried: int,
        started: float,
    ) -> Optimization:
        chosen = chosen_by_nodes(opened, subject, done.digest) if subject else None
        return Optimization(
            reference=str(self._source.reference),
            destination=str(opened.reference),
            digest=done.digest,
            unchanged=done.unchanged,
            size=sum(layer.size for layer in done.manifest.layers),
            metadata_size=done.manifest.layers[0].size,
            hot=hot_sectors(done.hot),
            uploaded_blobs=carried + done.uploaded,
            attached_to=subject.digest if subject else None,
            chosen=chosen,
            seconds=time.monotonic() - started,
        )


def packed_layers(
    repository: Repository, image: ResolvedImage
) -> tuple[list[ReadyLayer], Parameters]:
    """Return the layers of a converted image's original, and what they were packed with.

    Args:
        repository: where the image is.
        image: converted.

    Raises:
        ImageError: the image does not say, or a layer record is damaged; names the layer.
        SourceError: the repository does not give the records.
    """
    manifest = image.manifest
    parameters = Parameters.of_key((manifest.annotations or {}).get(PARAMETERS, ""))
    recorded = RecordedLayers(repository, manifest, diff_ids(image.config))
    layers = []
    for blob in manifest.layers[1:]:
        diff_id = (blob.annotations or {}).get(SOURCE_DIFF_ID)
        if diff_id is not None:  # hot sectors are of no layer
            try:
                layers.append(ReadyLayer(blob, diff_id, recorded.read(diff_id)))
            except ImageError as exc:
                exc.about(layer=blob.digest)
                exc.hint = CONVERT_AGAIN
                raise
    return layers, parameters


def check_tree(merged: MergedLayers, image: BlockImage) -> None:
    """Check that the layers of an image give the very tree that its metadata has.

    They do not if a layer that has a blob once lay at several heights, or if a record is wrong.

    Raises:
        UnsupportedError: they give another one.
    """
    ours = [sector.id for _, sector in merged.sectors]
    theirs = [row.id for row in image.index.sectors]
    hot = set(image.hot_sectors())
    for (path, node), (there, found) in zip_longest(
        walk(merged.root), walk(read_tree(image.erofs)), fillvalue=(b"", Node(0))
    ):
        if (path, *_attributes(node)) != (there, *_attributes(found)) or any(
            _place(a, ours) != _place(b, theirs)
            for a, b in _addresses(node, found)
            if b == HOLE or b >> 32 not in hot
        ):
            raise UnsupportedError(
                "the layer records of the image do not give its tree", hint=CONVERT_AGAIN
            )


def _attributes(node: Node) -> tuple[object, ...]:
    owner, time = (node.uid, node.gid), (node.mtime, node.mtime_nsec)
    return node.mode, owner, time, node.rdev, node.size, node.target, dict(node.xattrs)


def _addresses(node: Node, found: Node) -> Iterator[tuple[int, int]]:
    """Yield the addresses of each part of a file: in its layer, and in the image.

    The image has chunks of the same size or, for a hot file, smaller ones. The size of a single
    chunk says nothing.
    """
    if not found.chunks:
        return
    alone = len(node.chunks) == len(found.chunks) == 1
    ratio = 1 if alone else node.chunk_size // found.chunk_size if node.chunks else 0
    blocks = found.chunk_size // BLOCK_SIZE
    for number, address in enumerate(found.chunks):
        above = node.chunks[number // ratio] if ratio else HOLE
        yield above if above == HOLE else above + number % ratio * blocks, address


def _place(address: int, ids: Sequence[bytes]) -> tuple[bytes, int] | None:
    """Return the sector id and block of a chunk; None for a hole."""
    if address == HOLE or not ids[address >> 32]:
        return None
    return ids[address >> 32], address & 0xFFFFFFFF

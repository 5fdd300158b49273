# SPDX-License-Identifier: Apache-2.0
"""Converts an image: the pipeline from a source to a destination.

Owns the order of the steps: the layers first, in parallel and only those that are not packed yet,
then `publish`, so that a tag never names an incomplete image. Temporary files have no names, so
none stays behind, whatever happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import msgspec

from firstread.convert.blobwriter import PackedLayer
from firstread.convert.claims import Claim, LayerClaims
from firstread.convert.destination import check_destination, check_name
from firstread.convert.hotblob import Start, recorded_start
from firstread.convert.job import LayerJob, naming_image
from firstread.convert.layercache import LayerCache
from firstread.convert.layerpool import LayerPool, concurrency
from firstread.convert.layertask import LayerTask
from firstread.convert.metadata import LayerFacts
from firstread.convert.original import SourceLayer, source_layers
from firstread.convert.outcome import Conversion, ConvertedLayer, hot_sectors
from firstread.convert.progress import NoProgress, Progress
from firstread.convert.publish import Published, ReadyLayer, publish
from firstread.convert.record import Parameters
from firstread.convert.reuse import (
    KnownLayers,
    Previous,
    preferred,
    previous_at,
    previous_attached,
)
from firstread.convert.sectorsize import choose_sector_size, larger_sector_size
from firstread.errors import ImageError, SectorCountError
from firstread.memory import give_back
from firstread.oci.model import Descriptor, Manifest
from firstread.oci.platform import Platform
from firstread.oci.reference import Reference
from firstread.oci.repository import Destination, Repository
from firstread.oci.resolve import ResolvedImage, platform_of, resolve
from firstread.registry.open import open_destination, open_source
from firstread.registry.options import AccessOptions
from firstread.starts.startset import start_set
from firstread.traces.firstreads import merge
from firstread.traces.tracefile import Trace

DEFAULT_PARAMETERS = Parameters()
DEFAULT_ACCESS = AccessOptions()


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert.

    Args:
        platform: selects an image of an index; this machine's if None.
        parameters: sector size, frame size, level.
        auto_sector_size: choose the sector size by the image, whatever the parameters say.
        jobs: sectors compressed at a time.
        source_options: access to the source.
        destination_options: access to the destination.
        cache: layers that this machine packed before; None for none.
        reuse: take layers from an image in the destination.
        traces: of starts, whose reads go into hot sectors.
        static: without traces, what the image's command will read first goes there.
    """

    platform: Platform | None = None
    parameters: Parameters = DEFAULT_PARAMETERS
    auto_sector_size: bool = False
    jobs: int = 1
    source_options: AccessOptions = DEFAULT_ACCESS
    destination_options: AccessOptions = DEFAULT_ACCESS
    cache: LayerCache | None = None
    reuse: bool = True
    traces: Sequence[Trace] = ()
    static: bool = True


def convert(
    source: Reference,
    destination: Reference,
    options: ConvertOptions,
    *,
    progress: Progress | None = None,
    executor: Executor | None = None,
    claims: LayerClaims | None = None,
) -> Conversion:
    """Convert the image at `source` and tag the result as `destination`.

    Args:
        source: an ordinary image.
        destination: where the result goes; nothing there changes before all of it is complete.
        options: see `ConvertOptions`.
        progress: shows what is going on.
        executor: an engine: it calls `firstread.convert.worker.run_task` for each layer, in other
            processes or on other machines that can open both source and destination. Threads of
            this process if None.
        claims: shared by conversions at the same time.

    Raises:
        FirstreadError: names the image and, where there is one, the layer.
    """
    started = time.monotonic()
    check_destination(source, destination)
    with naming_image(source), open_source(source, options.source_options) as opened_source:
        image = resolve(opened_source, options.platform)
        layers = source_layers(image)
        with open_destination(destination, options.destination_options) as opened:
            check_name(opened_source, image, opened.reference)
            work = ImageConversion(
                source, destination, options, opened_source, opened, progress, executor, claims
            )
            return work.run(image, layers, started)


class ImageConversion:
    """One conversion under way.

    Args:
        source: the image's name.
        destination: the result's name.
        options: see `ConvertOptions`.
        source_repository: opened.
        destination_repository: opened for writing.
        progress: shows what is going on.
        executor: as for `convert`.
        claims: as for `convert`.
        attach: make the result refer to its source, in the same repository.
        part: leave the publication of the manifest to whoever makes an index of several.
    """

    def __init__(
        self,
        source: Reference,
        destination: Reference,
        options: ConvertOptions,
        source_repository: Repository,
        destination_repository: Destination,
        progress: Progress | None = None,
        executor: Executor | None = None,
        claims: LayerClaims | None = None,
        *,
        attach: bool = False,
        part: bool = False,
    ) -> None:
        self.source, self.destination, self.options = source, destination, options
        self.destination_repository = destination_repository
        self.parameters = options.parameters
        self.attach, self.part = attach, part
        self.manifest: Manifest  # of the result, once there is one
        self.uploaded = 0
        self._progress = progress or NoProgress()
        self._source_repository, self._executor = source_repository, executor
        self._claims = claims or LayerClaims()

    def run(self, image: ResolvedImage, layers: list[SourceLayer], started: float) -> Conversion:
        """Convert `image`, which consists of `layers`.

        Args:
            image: an ordinary image.
            layers: as `source_layers` gives them.
            started: on the monotonic clock.

        Raises:
            FirstreadError: as `convert`.
        """
        if self.options.auto_sector_size:
            self._resize(self._first_size(layers))
        while True:
            try:
                return self._run(image, layers, started)
            except SectorCountError as exc:
                size = larger_sector_size(self.parameters.sector_size, exc)
                if size is None or not self.options.auto_sector_size:
                    raise
                self._resize(size)

    def _first_size(self, layers: list[SourceLayer]) -> int:
        return choose_sector_size((layer for layer, _ in layers), self.parameters.frame_size)

    def _resize(self, sector_size: int) -> None:
        self.parameters = msgspec.structs.replace(self.parameters, sector_size=sector_size)

    def _run(self, image: ResolvedImage, layers: list[SourceLayer], started: float) -> Conversion:
        repository, previous = self.destination_repository, None
        if self.options.reuse:
            previous = (
                previous_attached(repository, image.descriptor, self.parameters)
                if self.attach
                else previous_at(repository, image if self.part else None)
            )
        known = self._known(previous)
        packed, how = self._pack_layers(layers, known)
        give_back()  # the buffers of sectors; the rest is many small objects
        made = [ReadyLayer(*layer, packed[layer.diff_id]) for layer in layers]
        digest = previous.digest if previous else None
        by_trace = self.attach and self.options.traces
        try:
            done = publish(
                repository,
                image,
                made,
                self.parameters,
                digest,
                attach=self.attach,
                part=self.part,
                above=preferred(repository, image.descriptor) if by_trace else None,
                start=self._start(),
                static=not self.options.traces,
                jobs=self.options.jobs,
            )
        except ImageError as exc:
            if previous and "known" in how.values():
                exc.hint = (
                    "if the image is in order, what the destination says of it is not:"
                    " use --no-cache"
                )
            raise
        self.manifest = done.manifest
        return self._report(image, made, how, done, started)

    def tasks(self, layers: list[SourceLayer]) -> list[LayerTask]:
        """Return a task for each of `layers` that is not known; its parameters are those of a run.

        Args:
            layers: as `source_layers` gives them.

        Raises:
            FirstreadError: as `convert`.
        """
        if self.options.auto_sector_size:
            self._resize(self._first_size(layers))
        previous = previous_at(self.destination_repository) if self.options.reuse else None
        known = self._known(previous)
        _, in_flight = concurrency(self.parameters.sector_size, self.options.jobs, 1)
        todo = {
            diff_id: layer
            for layer, diff_id in layers
            if not (known.get(diff_id) or known.tagged(diff_id))
        }
        jobs = [self._job(SourceLayer(layer, key), in_flight) for key, layer in todo.items()]
        return [LayerTask.of(job, alone=True) for job in jobs]

    def _known(self, previous: Previous | None) -> KnownLayers:
        return KnownLayers(
            self.destination_repository,
            self.destination,
            self.options.destination_options,
            self.parameters,
            self.options.cache,
            previous,
            tags=self.options.reuse,
        )

    def _start(self) -> Start | None:
        """Return what says what is hot; None if nothing is."""
        if self.options.traces:
            return recorded_start(merge(self.options.traces))
        return start_set if self.options.static else None

    def _pack_layers(
        self, layers: list[SourceLayer], known: KnownLayers
    ) -> tuple[dict[str, PackedLayer], dict[str, str]]:
        """Return, by diff_id, every packed layer and whether it was ``packed`` or ``known``."""
        todo = {diff_id: layer for layer, diff_id in layers}
        self._progress.layers([(layer.digest, layer.size) for layer in todo.values()])
        packed: dict[str, PackedLayer] = {}
        how: dict[str, str] = {}

        def done(diff_id: str, result: PackedLayer, word: str) -> None:
            packed[diff_id], how[diff_id] = result, word
            self._progress.done(todo.pop(diff_id).digest, word)

        while todo:
            with self._claims.claiming(list(map(self._claim, todo))) as mine:
                self._find_or_pack(mine, todo, known, done)
        return packed, how

    def _claim(self, diff_id: str) -> Claim:
        return Claim(diff_id, self.parameters.key, self.destination.host or self.destination.path)

    def _find_or_pack(
        self,
        mine: list[Claim],
        todo: dict[str, Descriptor],
        known: KnownLayers,
        done: Callable[[str, PackedLayer, str], None],
    ) -> None:
        """Deal with the layers of our claims; tell `done` of each as soon as it is packed."""

        def settled(diff_id: str, result: PackedLayer, word: str) -> None:
            done(diff_id, result, word)
            self._claims.release(mine, self._claim(diff_id))

        for claim in list(mine):
            if found := known.get(claim.diff_id):
                settled(claim.diff_id, found, "known")
        for diff_id, found in known.mount([claim.diff_id for claim in mine]).items():
            settled(diff_id, found, "known")
        for claim in list(mine) if self._executor is None else ():  # workers look themselves
            if found := known.tagged(claim.diff_id):
                settled(claim.diff_id, found, "known")

        def finished(job: LayerJob, result: PackedLayer, uploaded: bool, found: bool) -> None:
            known.remember(result, job.diff_id)
            self.uploaded += uploaded
            settled(job.diff_id, result, "known" if found else "packed")

        if not mine:
            return
        jobs, size = self.options.jobs, self.parameters.sector_size
        workers, in_flight = concurrency(size, jobs, len(mine))
        pool = LayerPool(
            self._source_repository, self.destination_repository, self._progress, self._executor
        )
        layers = [SourceLayer(todo[claim.diff_id], claim.diff_id) for claim in mine]
        pool.run([self._job(layer, in_flight) for layer in layers], workers, finished)

    def _job(self, layer: SourceLayer, in_flight: int) -> LayerJob:
        return LayerJob(
            source=self.source,
            source_options=self.options.source_options,
            destination=self.destination,
            destination_options=self.options.destination_options,
            layer=layer.descriptor,
            diff_id=layer.diff_id,
            parameters=self.parameters,
            jobs=self.options.jobs,
            in_flight=in_flight,
            reuse=self.options.reuse,
        )

    def _report(
        self,
        image: ResolvedImage,
        layers: list[ReadyLayer],
        how: dict[str, str],
        done: Published,
        started: float,
    ) -> Conversion:
        return Conversion(
            source=str(self.source),
            source_digest=image.descriptor.digest,
            destination=str(self.destination),
            digest=done.digest,
            unchanged=done.unchanged,
            source_size=sum(layer.descriptor.size for layer in layers),
            content_size=sum(facts.size for facts in done.layers),
            size=sum(layer.size for layer in done.manifest.layers),
            metadata_size=done.manifest.layers[0].size,
            metadata_uncompressed_size=done.metadata.size,
            sectors=len(done.metadata.ids),
            sector_size=self.parameters.sector_size,
            inodes=done.metadata.inodes,
            layers=[
                _converted(layer, how[layer.diff_id], facts)
                for layer, facts in zip(layers, done.layers, strict=True)
            ],
            uploaded_blobs=self.uploaded + done.uploaded,
            seconds=time.monotonic() - started,
            attached_to=image.descriptor.digest if self.attach else None,
            platform=str(platform_of(image.config)) or None,
            other_platforms=list(image.others),
            hot=hot_sectors(done.hot),
        )


def _converted(layer: ReadyLayer, how: str, facts: LayerFacts) -> ConvertedLayer:
    return ConvertedLayer(
        digest=layer.descriptor.digest,
        diff_id=layer.diff_id,
        how=how,
        source_size=layer.descriptor.size,
        content_size=facts.size,
        blob=layer.packed.digest,
        blob_size=layer.packed.size,
        sectors=facts.sectors,
        dropped_xattrs=[name.decode(errors="backslashreplace") for name in facts.dropped_xattrs],
    )

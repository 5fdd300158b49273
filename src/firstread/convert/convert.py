# SPDX-License-Identifier: Apache-2.0
"""Converts an image: the pipeline from a source to a destination.

Owns the order of things: layers first, in parallel and only those that are not packed already,
then `publish`, so that a tag never names an incomplete image. Its temporary files have no names:
whatever happens, none stays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from contextlib import suppress
from dataclasses import dataclass, field

from firstread.convert.cache import LayerCache, RecordedLayers
from firstread.convert.job import LayerJob, blob_descriptor, convert_layer, temporary_file_error
from firstread.convert.pack import PackedLayer
from firstread.convert.places import check_name, check_places
from firstread.convert.progress import NoProgress, Progress
from firstread.convert.publish import Published, publish
from firstread.convert.record import Parameters
from firstread.errors import (
    FirstreadError,
    ImageError,
    NodeError,
    NotFoundError,
    SourceError,
    UnsupportedError,
)
from firstread.memory import give_back
from firstread.oci.model import (
    Descriptor,
    Manifest,
    diff_ids,
    layer_compression,
    parse_manifest,
)
from firstread.oci.open import open_destination, open_source
from firstread.oci.options import AccessOptions
from firstread.oci.platform import Platform
from firstread.oci.reference import Reference
from firstread.oci.repository import Repository
from firstread.oci.resolve import ResolvedImage, load, platform_of, resolve
from firstread.sectors.attached import all_attached
from firstread.sectors.image import PARAMETERS, check_underived, is_block_image
from firstread.units import MiB

MAX_PARALLEL_LAYERS = 4
DEFAULT_PARAMETERS = Parameters()
DEFAULT_ACCESS = AccessOptions()
SECTOR_MEMORY = 96 * MiB  # of sectors over all layers at once, before compression
FILLING = 2  # sectors of a layer that are being filled: one of a large file, one of small ones
LEAST_BUFFERS = FILLING + 1  # and one that is compressed
GRACE = 1.0  # seconds that a layer gets to stop; one may hang in a registry's answer


@dataclass(frozen=True)
class ConvertedLayer:
    """What became of one source layer; sizes in bytes."""

    digest: str
    diff_id: str
    how: str  # "packed" | "known"
    source_size: int
    content_size: int
    blob: str
    blob_size: int
    sectors: int
    dropped_xattrs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Conversion:
    """What a conversion made; sizes in bytes, `seconds` of wall-clock time."""

    source: str
    source_digest: str
    destination: str
    digest: str
    unchanged: bool
    source_size: int
    content_size: int
    size: int
    metadata_size: int
    metadata_uncompressed_size: int
    sectors: int
    inodes: int
    layers: list[ConvertedLayer]
    uploaded_blobs: int
    seconds: float
    attached_to: str | None = None  # digest of the manifest that this image refers to
    platform: str | None = None  # of an attached image
    other_platforms: list[str] = field(default_factory=list)  # of the index, not converted


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert.

    Args:
        platform: which image of an index; this machine's if None.
        parameters: sector size, frame size, level.
        jobs: sectors compressed at a time.
        source_options: access to the source.
        destination_options: access to the destination.
        cache: packed layers known on this machine; None to know of none.
        reuse: take layers that an image in the destination records.
    """

    platform: Platform | None = None
    parameters: Parameters = DEFAULT_PARAMETERS
    jobs: int = 1
    source_options: AccessOptions = DEFAULT_ACCESS
    destination_options: AccessOptions = DEFAULT_ACCESS
    cache: LayerCache | None = None
    reuse: bool = True


def convert(
    source: Reference,
    destination: Reference,
    options: ConvertOptions,
    *,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Conversion:
    """Convert the image at `source` and tag the result as `destination`.

    Args:
        source: an ordinary image.
        destination: where the result goes; nothing there changes before all of it is complete.
        options: see `ConvertOptions`.
        progress: shows what is going on.
        executor: runs `convert_layer` for each layer, in other processes or on other machines if
            it likes, as long as both places can be opened from there; threads if None.

    Raises:
        FirstreadError: names the image and, where there is one, the layer.
    """
    started = time.monotonic()
    check_places(source, destination)
    try:
        with open_source(source, options.source_options) as opened_source:
            image = resolve(opened_source, options.platform)
            layers = source_layers(image)
            with open_destination(destination, options.destination_options) as opened:
                check_name(opened_source, image, opened.reference)
                work = ImageConversion(source, destination, options, opened_source, opened)
                return work.run(image, layers, progress or NoProgress(), executor, started)
    except FirstreadError as exc:
        exc.about(image=str(source))
        raise
    except OSError as exc:
        raise temporary_file_error(exc).about(image=str(source)) from exc


class ImageConversion:
    """One conversion under way.

    Args:
        source: the image's name.
        destination: the result's.
        options: see `ConvertOptions`.
        source_repository: opened.
        destination_repository: opened for writing.
        attach: the result is to refer to its source, in the same repository.
    """

    def __init__(
        self,
        source: Reference,
        destination: Reference,
        options: ConvertOptions,
        source_repository: Repository,
        destination_repository: Repository,
        *,
        attach: bool = False,
    ) -> None:
        self.attach = attach
        self.source, self.destination, self.options = source, destination, options
        self.source_repository = source_repository
        self.destination_repository = destination_repository
        self.parameters = options.parameters
        self.uploaded = 0
        self._stop = threading.Event()

    def run(
        self,
        image: ResolvedImage,
        layers: list[tuple[Descriptor, str]],
        progress: Progress,
        executor: Executor | None,
        started: float,
    ) -> Conversion:
        """Convert `image`, whose (layer, diff_id) are `layers`; see `convert`."""
        existing = self._existing(image)
        packed, how = self._pack_layers(layers, existing, progress, executor)
        give_back()  # the buffers of sectors; what comes now is many small objects
        try:
            done = publish(
                self.destination_repository,
                image,
                [(layer, diff_id, packed[diff_id]) for layer, diff_id in layers],
                self.parameters,
                existing[0].digest if existing else None,
                attach=self.attach,
            )
        except ImageError as exc:
            if existing and "known" in how.values():
                exc.hint = (
                    "if the image is in order, what the destination says of it is not:"
                    " use --no-cache"
                )
            raise
        return self._report(image, layers, packed, how, done, started)

    def _existing(self, original: ResolvedImage) -> tuple[Descriptor, Manifest, list[str]] | None:
        """Return the firstread image that is at the destination now, if there is one."""
        if not self.options.reuse:
            return None
        if self.attach:
            return self._attached(original)
        place = self.destination_repository
        try:
            descriptor, data = place.get_manifest()
            manifest = parse_manifest(data, descriptor.media_type)
            if isinstance(manifest, Manifest) and is_block_image(manifest):
                image = load(place, descriptor, manifest, data)
                return image.descriptor, image.manifest, diff_ids(image.config)
        except FirstreadError:
            pass  # nothing there yet, or something else: it will be replaced
        return None

    def _attached(self, original: ResolvedImage) -> tuple[Descriptor, Manifest, list[str]] | None:
        """Return the image that was attached with the same parameters, if there is one.

        One that cannot be found out about is made again, to the same bytes.
        """
        place = self.destination_repository
        with suppress(SourceError):
            return self._one_attached(place, original)
        return None

    def _one_attached(
        self, place: Repository, original: ResolvedImage
    ) -> tuple[Descriptor, Manifest, list[str]] | None:
        for found in all_attached(place, original.descriptor):
            if (found.manifest.annotations or {}).get(PARAMETERS) == self.parameters.key:
                with suppress(ImageError, NotFoundError):  # then it is made again
                    image = load(place, found.descriptor, found.manifest, found.data)
                    return image.descriptor, image.manifest, diff_ids(image.config)
        return None

    # -- layers --------------------------------------------------------------------------------

    def _known(self, diff_id: str, recorded: RecordedLayers | None) -> PackedLayer | None:
        for place in (self.options.cache, recorded):
            packed = place.get(diff_id, self.parameters) if place is not None else None
            if packed is not None and self.destination_repository.has_blob(blob_descriptor(packed)):
                if place is recorded:
                    self._remember(packed, diff_id)
                return packed
        return None

    def _pack_layers(
        self,
        layers: list[tuple[Descriptor, str]],
        existing: tuple[Descriptor, Manifest, list[str]] | None,
        progress: Progress,
        executor: Executor | None,
    ) -> tuple[dict[str, PackedLayer], dict[str, str]]:
        recorded = (
            RecordedLayers(self.destination_repository, existing[1], existing[2])
            if existing
            else None
        )
        unique = {diff_id: layer for layer, diff_id in layers}
        progress.layers([(layer.digest, layer.size) for layer in unique.values()])
        packed: dict[str, PackedLayer] = {}
        how: dict[str, str] = {}
        for diff_id, layer in unique.items():
            known = self._known(diff_id, recorded)
            if known is not None:
                packed[diff_id], how[diff_id] = known, "known"
                progress.done(layer.digest, "known")
        todo = {diff_id: layer for diff_id, layer in unique.items() if diff_id not in packed}
        for diff_id, known in self._mount(todo).items():
            packed[diff_id], how[diff_id] = known, "known"
            progress.done(todo.pop(diff_id).digest, "known")

        def finished(diff_id: str, result: PackedLayer, uploaded: bool) -> None:
            packed[diff_id], how[diff_id] = result, "packed"
            self._remember(result, diff_id)
            self.uploaded += uploaded
            progress.done(unique[diff_id].digest, "packed")

        self._run_jobs(todo, progress, executor, finished)
        return packed, how

    def _mount(self, diff_ids: Iterable[str]) -> dict[str, PackedLayer]:
        """Have the registry take over the blobs that are in another repository of it.

        Through a connection of its own: who may not read there would be refused the rest as well.
        """
        cache, to = self.options.cache, self.destination
        if cache is None or to.transport != "docker":
            return {}
        places = {diff_id: cache.place(diff_id, self.parameters) for diff_id in diff_ids}
        here = f"{to.host}/"
        names = {
            diff_id: place.removeprefix(here)
            for diff_id, place in places.items()
            if place.startswith(here) and place != here + to.repository
        }
        mounted: dict[str, PackedLayer] = {}
        if not names:
            return mounted
        with (
            suppress(FirstreadError),  # then they are packed again
            open_destination(to, self.options.destination_options) as repository,
        ):
            for diff_id, name in names.items():
                packed = cache.get(diff_id, self.parameters)
                if packed is not None and repository.mount_blob(blob_descriptor(packed), name):
                    mounted[diff_id] = packed
        return mounted

    def _remember(self, packed: PackedLayer, diff_id: str) -> None:
        """Keep what is done, even if another layer fails."""
        if self.options.cache is not None:
            to = self.destination
            place = f"{to.host}/{to.repository}" if to.transport == "docker" else ""
            self.options.cache.put(packed, diff_id, self.parameters, place)

    def _run_jobs(
        self,
        todo: dict[str, Descriptor],
        progress: Progress,
        executor: Executor | None,
        finished: Callable[[str, PackedLayer, bool], None],
    ) -> None:
        if not todo:
            return
        buffers = SECTOR_MEMORY // self.parameters.sector_size
        most = max(1, buffers // LEAST_BUFFERS)
        workers = min(self.options.jobs, len(todo), MAX_PARALLEL_LAYERS, most)
        in_flight = max(1, min(self.options.jobs + 1, buffers // workers - FILLING))
        own = executor is None
        pool = executor or ThreadPoolExecutor(workers, thread_name_prefix="layer")
        futures: dict[Future[tuple[PackedLayer, bool]], str] = {}
        try:
            # The largest layers first, so that none of them is left over at the end.
            for diff_id, layer in sorted(todo.items(), key=lambda item: -item[1].size):
                job = self._job(layer, diff_id, in_flight)
                if own:
                    future = pool.submit(self._convert_here, job, progress)
                else:
                    future = pool.submit(convert_layer, job)
                futures[future] = diff_id
            for future in as_completed(futures):
                finished(futures[future], *future.result())
        except BrokenExecutor as exc:
            raise NodeError(
                "a process that packed a layer is gone",
                hint="there may be too little memory: use fewer --jobs or a smaller --sector-size",
            ) from exc
        except BaseException:
            self._stop.set()
            for future in futures:
                future.cancel()
            wait(futures, timeout=GRACE)
            raise
        finally:
            if own:
                pool.shutdown(wait=False)

    def _job(self, layer: Descriptor, diff_id: str, in_flight: int) -> LayerJob:
        return LayerJob(
            source=self.source,
            source_options=self.options.source_options,
            destination=self.destination,
            destination_options=self.options.destination_options,
            layer=layer,
            diff_id=diff_id,
            parameters=self.parameters,
            jobs=self.options.jobs,
            in_flight=in_flight,
        )

    def _convert_here(self, job: LayerJob, progress: Progress) -> tuple[PackedLayer, bool]:
        layer = job.layer.digest

        def on_read(count: int) -> None:
            self._check()
            progress.advance(layer, count)

        def on_sent(count: int) -> None:
            self._check()
            progress.sent(layer, count)

        return convert_layer(
            job, self.source_repository, self.destination_repository, on_read, on_sent
        )

    def _check(self) -> None:
        if self._stop.is_set():
            raise FirstreadError("stopped")  # another layer failed, or the user interrupted

    def _report(
        self,
        image: ResolvedImage,
        layers: list[tuple[Descriptor, str]],
        packed: dict[str, PackedLayer],
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
            source_size=sum(layer.size for layer, _ in layers),
            content_size=sum(facts.size for facts in done.layers),
            size=sum(layer.size for layer in done.manifest.layers),
            metadata_size=done.manifest.layers[0].size,
            metadata_uncompressed_size=done.metadata_uncompressed_size,
            sectors=done.sectors,
            inodes=done.inodes,
            layers=[
                ConvertedLayer(
                    digest=layer.digest,
                    diff_id=diff_id,
                    how=how[diff_id],
                    source_size=layer.size,
                    content_size=facts.size,
                    blob=packed[diff_id].digest,
                    blob_size=packed[diff_id].size,
                    sectors=facts.sectors,
                    dropped_xattrs=[
                        name.decode(errors="backslashreplace") for name in facts.dropped_xattrs
                    ],
                )
                for (layer, diff_id), facts in zip(layers, done.layers, strict=True)
            ],
            uploaded_blobs=self.uploaded + done.uploaded,
            seconds=time.monotonic() - started,
            attached_to=image.descriptor.digest if self.attach else None,
            platform=str(platform_of(image.config)) if self.attach else None,
            other_platforms=list(image.others),
        )


def source_layers(image: ResolvedImage) -> list[tuple[Descriptor, str]]:
    """Return (layer, diff_id) of each layer of an ordinary image, the lowest first.

    Raises:
        UnsupportedError: it is no ordinary image (DerivedImageError: it was built FROM another
            kind), or a layer is of an unknown kind or encrypted.
        ImageError: manifest and config contradict each other.
    """
    check_underived(image.manifest)
    if is_block_image(image.manifest):
        raise UnsupportedError(
            "this image is converted already", hint="name the original image as the source"
        )
    ids = diff_ids(image.config)
    if len(ids) != len(image.manifest.layers):
        raise ImageError(
            f"the manifest has {len(image.manifest.layers)} layers, the config names {len(ids)}"
        )
    for layer in image.manifest.layers:
        layer_compression(layer)
    return list(zip(image.manifest.layers, ids, strict=True))

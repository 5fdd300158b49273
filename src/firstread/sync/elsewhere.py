# SPDX-License-Identifier: Apache-2.0
"""Conversions that have names of their own, by a rule: an index for an index, a tag for a tag."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import NamedTuple

from msgspec import structs

from firstread.convert.conversion import ConvertOptions, convert
from firstread.convert.outcome import Conversion, Conversions
from firstread.convert.platforms import convert_all
from firstread.convert.progress import Progress
from firstread.errors import ImageError, NotFoundError
from firstread.oci.model import Index, parse_manifest
from firstread.oci.reference import Reference
from firstread.oci.repository import Repository
from firstread.oci.resolve import Leaves, choose_in
from firstread.registry.open import open_destination, open_source
from firstread.sectors.image import SOURCE_DIGEST, is_block_image
from firstread.sync.conversiontarget import Done, Target, Work, converted
from firstread.sync.mapping import Mapping
from firstread.sync.synced import PRESENT, SyncedImage


class Elsewhere(Target):
    """Gives conversions names of their own.

    Args:
        mapping: their names.
        options, executor: as for `Target`.
    """

    def __init__(
        self, mapping: Mapping, options: ConvertOptions, executor: Executor | None = None
    ) -> None:
        super().__init__(options, executor)
        self._mapping = mapping

    def _open_results(self, place: Reference, sources: Repository, stack: ExitStack) -> Repository:
        there = self._mapping.place_of(place)
        options = self.options.destination_options
        return stack.enter_context(open_source(there, options, self._known))

    def _look(
        self, name: Reference, sources: Repository, results: Repository
    ) -> Iterator[SyncedImage | Work]:
        self._mapping.of(name)  # an image that has no destination is not even looked at
        yield from super()._look(name, sources, results)

    def _compare(
        self, name: Reference, found: Leaves, sources: Repository, results: Repository
    ) -> Iterator[SyncedImage | Work]:
        destination = self._mapping.of(name)
        made = _made_at(results, destination)
        # Of an index only the image for one platform may be wanted, by the digest that it has.
        wanted = found.top.digest
        platform = self.options.platform
        if found.index is not None and platform is not None:
            wanted = choose_in(sources, found.index, platform).digest
        if made is None or made.source != wanted:
            source = replace(name, digest=found.top.digest)
            yield Work(name, source, destination, str(platform) if platform else None)
            return
        for digest, of in made.images:
            yield SyncedImage(
                image=str(name),
                platform=of,
                result=PRESENT,
                destination=str(destination),
                digest=digest,
            )

    def convert(self, work: Work, progress: Progress) -> Done:
        everything = self.options.platform is None
        run: Callable[..., Conversion | Conversions] = convert_all if everything else convert
        made = run(
            work.source,
            self._mapping.of(work.name),
            self.options,
            progress=progress,
            executor=self._executor,
            claims=self._claims,
        )
        images = made.images if isinstance(made, Conversions) else [made]
        return Done([converted(work, each) for each in images], made.digest)

    def repeat(self, work: Work, done: Done) -> list[SyncedImage]:
        destination, started = self._mapping.of(work.name), time.monotonic()
        with open_destination(destination, self.options.destination_options) as place:
            described, data = place.get_manifest(done.digest)
            place.put_manifest(data, described.media_type, destination.tag)
        return [
            structs.replace(
                row,
                image=str(work.name),
                destination=str(destination),
                seconds=time.monotonic() - started,
                packed_bytes=0,
            )
            for row in done.rows
        ]


class _Made(NamedTuple):
    """A conversion: the digest of its source; of each image digest and platform, if known."""

    source: str
    images: list[tuple[str, str | None]]


def _made_at(results: Repository, destination: Reference) -> _Made | None:
    """Return what there is at a destination; None if it is no conversion."""
    with suppress(NotFoundError, ImageError):
        descriptor, data = results.get_manifest(destination.tag)
        document = parse_manifest(data, descriptor.media_type)
        source = (document.annotations or {}).get(SOURCE_DIGEST, "")
        if isinstance(document, Index):
            return _Made(source, [(e.digest, str(e.platform)) for e in document.manifests])
        if is_block_image(document):
            return _Made(source, [(descriptor.digest, None)])
    return None

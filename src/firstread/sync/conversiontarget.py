# SPDX-License-Identifier: Apache-2.0
"""Where conversions go: what all kinds of target have in common.

Owns the look at an image that tells whether there is anything to do. Invariant: a look reads
manifests only, no blob; an image counts as converted if the result names the very digest that its
source has now.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import NamedTuple

from msgspec import structs

from firstread.convert.claims import LayerClaims
from firstread.convert.conversion import ConvertOptions
from firstread.convert.outcome import Conversion
from firstread.convert.progress import Progress
from firstread.errors import FirstreadError
from firstread.oci.model import Manifest
from firstread.oci.reference import Reference
from firstread.oci.repository import Repository, naming
from firstread.oci.resolve import Leaves, is_image, leaves
from firstread.registry.health import KnownEndpoints
from firstread.registry.open import open_source
from firstread.sectors.image import SOURCE_DIGEST, is_block_image
from firstread.sync.silenthosts import SilentHosts
from firstread.sync.synced import CONVERTED, MISSING, SyncedImage, failed, skipped


@dataclass(frozen=True, slots=True)
class Work:
    """An image to convert.

    Args:
        name: as the sources have it.
        source: the same, by its digest.
        destination: of the result; None beside the original.
        platform: for the report; None if it is not known.
        named: digest of what the name stands for: the source's, or of an index that has it.
    """

    name: Reference
    source: Reference
    destination: Reference | None = None
    platform: str | None = None
    named: str | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What equal work has in common: it is done once."""
        there = self.destination
        place = (there.host, there.repository) if there else ()
        return (self.source.host, self.source.repository, self.source.digest or "", *place)

    def missing(self) -> SyncedImage:
        """Return the row of what would be done."""
        there = str(self.destination) if self.destination else None
        return SyncedImage(
            image=str(self.name),
            platform=self.platform,
            result=MISSING,
            source_digest=self.named,
            destination=there,
        )


class Done(NamedTuple):
    """Work that was done: its rows, and the digest of what it made."""

    rows: list[SyncedImage]
    digest: str


class Target(ABC):
    """Where conversions go.

    Args:
        options: of all conversions; their platform, if there is one, is the only one wanted.
        executor: runs `convert_layer` for each layer, see `convert`; threads if None.
    """

    def __init__(self, options: ConvertOptions, executor: Executor | None = None) -> None:
        self.options = options
        self._executor = executor
        self._claims = LayerClaims()
        self._known = KnownEndpoints()  # a mirror that is gone rests, for all repositories

    def look(self, names: Sequence[Reference], silent: SilentHosts) -> Iterator[SyncedImage | Work]:
        """Yield what there is to do for images of one repository, and the rows of all others.

        Args:
            names: of the images.
            silent: hosts of this run.
        """
        place = replace(names[0], tag=None, digest=None)
        with ExitStack() as stack:
            try:
                options = self.options.source_options
                sources = stack.enter_context(open_source(place, options, self._known))
                results = self._open_results(place, sources, stack)
            except FirstreadError as exc:
                yield from (failed(name, exc) for name in names)
                return
            for name in names:
                try:
                    with naming(name), silent.asking(name.host):
                        yield from self._look(name, sources, results)
                except FirstreadError as exc:
                    yield failed(name, exc)

    def _look(
        self, name: Reference, sources: Repository, results: Repository
    ) -> Iterator[SyncedImage | Work]:
        found = leaves(sources, name.digest or name.tag)
        named = found.top.digest
        reason = _nothing_to_convert(found)
        if reason is not None:
            yield structs.replace(skipped(name, reason), source_digest=named)
            return
        for each in self._compare(name, found, sources, results):
            if isinstance(each, Work):
                yield replace(each, named=named)
            else:
                yield structs.replace(each, source_digest=named)

    @abstractmethod
    def _open_results(self, place: Reference, sources: Repository, stack: ExitStack) -> Repository:
        """Return the repository of the conversions of those in `place`, open for reading."""

    @abstractmethod
    def _compare(
        self, name: Reference, found: Leaves, sources: Repository, results: Repository
    ) -> Iterator[SyncedImage | Work]:
        """Compare an ordinary image with what there is of it."""

    @abstractmethod
    def convert(self, work: Work, progress: Progress) -> Done:
        """Convert an image.

        Raises:
            FirstreadError: it cannot be converted; nothing has changed then.
        """

    @abstractmethod
    def repeat(self, work: Work, done: Done) -> list[SyncedImage]:
        """Do work whose key is that of other work, which was done. Raises: FirstreadError."""


def _nothing_to_convert(found: Leaves) -> str | None:
    document = found.document
    if isinstance(document, Manifest):
        if is_block_image(document):
            return "it is converted already"
        return None if is_image(document) else "it is no container image"
    if not found.images:
        return "its index has no image"
    # A builder may hand an index's annotations down, but hardly those of its entries.
    noted = [document.annotations, *(entry.annotations for entry in found.images)]
    made = all(SOURCE_DIGEST in (annotations or {}) for annotations in noted)
    return "it is converted already" if made else None


def converted(work: Work, made: Conversion) -> SyncedImage:
    """Return the row of an image that was converted."""
    return structs.replace(
        work.missing(),
        platform=work.platform or made.platform,
        result=CONVERTED,
        digest=made.digest,
        seconds=made.seconds,
        size=made.size,
        packed_bytes=sum(layer.blob_size for layer in made.layers if layer.how == "packed"),
    )

# SPDX-License-Identifier: Apache-2.0
"""One name for two images: finds the converted image that is attached to an original.

Owns the choice and the conditions of acceptance; `firstread.registry.referrerlists` knows how a
registry lists what refers to a manifest. Invariants: an accepted image names the very manifest that
the caller asked for as its source, twice, and has a format version that we read; of several, every
node takes the same one; whatever a registry says, or does not say, an original without an
acceptable image attached stays an ordinary image, never becomes an error, and waits some seconds at
most.

Trust: we believe that an attached image is a conversion of its original because it stands in the
same repository, exactly as we believe a tag. The digest of the original does not vouch for it;
``firstread verify --source`` compares the two.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from firstread.errors import ImageError, NotFoundError, SourceError, UnsupportedError
from firstread.oci.model import (
    INDEXES,
    MAX_MANIFEST_SIZE,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    embedded,
)
from firstread.oci.platform import Platform, host_platform
from firstread.oci.repository import Repository, naming
from firstread.oci.resolve import (
    MAX_DEPTH,
    ResolvedImage,
    choose_in,
    document_of,
    load,
    too_deep,
)
from firstread.registry.calls import given_up, within
from firstread.sectors.format import ARTIFACT_TYPE
from firstread.sectors.hotnote import NO_TRACE
from firstread.sectors.image import (
    GENERATION,
    HOT,
    PARAMETERS,
    SOURCE_DIGEST,
    check_manifest,
    check_underived,
    is_block_image,
)

log = logging.getLogger("attached")

SEARCH_S = 10.0  # that a search may take
MAX_CANDIDATES = 8  # manifests that are read for one original; normally there is one
VERSION = "v1 "  # what the parameters of a converted image begin with

_GENERATION = re.compile("[0-9]{1,6}")


@dataclass(frozen=True)
class Attached:
    """A converted image that is attached to an original.

    Args:
        descriptor: of its manifest.
        manifest: the document.
        data: its bytes.
    """

    descriptor: Descriptor
    manifest: Manifest
    data: bytes


def find_attached(repository: Repository, original: Descriptor) -> Attached | None:
    """Return the converted image that is attached to a manifest; None if there is none.

    Of several one with hot sectors of a trace, else of a start set, else without any; of these one
    of the highest generation, and of equal ones the first in the order of their digests.

    Args:
        repository: where the original is.
        original: its manifest, of one platform; only the digest matters.

    Raises:
        SourceError: the repository does not answer.
    """
    return next(all_attached(repository, original), None)


def all_attached(repository: Repository, original: Descriptor) -> Iterator[Attached]:
    """Yield the converted images that are attached to a manifest, the chosen one first.

    Raises:
        SourceError: the repository does not answer.
    """
    try:
        entries = repository.referrers(original.digest, ARTIFACT_TYPE)
    except ImageError as exc:
        log.warning("%s: nothing attached is used: %s", original.digest, exc)
        return
    candidates = {entry.digest: entry for entry in entries if _may_be_ours(entry)}.values()
    chosen = sorted(candidates, key=lambda entry: _rank(entry.annotations, entry.digest))
    found = _acceptable(repository, original, chosen[:MAX_CANDIDATES])
    if all(entry.annotations for entry in chosen):
        yield from found  # a list with annotations says which have hot sectors
    else:
        yield from sorted(
            found, key=lambda one: _rank(one.manifest.annotations, one.descriptor.digest)
        )


def _may_be_ours(entry: Descriptor) -> bool:
    """Return whether an entry states our type; if it states none, its annotations tell."""
    return bool(entry.artifact_type) or SOURCE_DIGEST in (entry.annotations or {})


def _rank(annotations: Mapping[str, str] | None, digest: str) -> tuple[bool, bool, int, str]:
    """Return where a manifest stands among those that are attached to one original."""
    note = (annotations or {}).get(HOT)
    return note is None, NO_TRACE in (note or ""), -generation(annotations), digest


def generation(annotations: Mapping[str, str] | None) -> int:
    """Return the generation of an image by the annotations of its manifest; 0 if they name none."""
    text = (annotations or {}).get(GENERATION, "")
    return int(text) if _GENERATION.fullmatch(text) else 0


def _acceptable(
    repository: Repository, original: Descriptor, entries: Iterable[Descriptor]
) -> Iterator[Attached]:
    for entry in entries:
        try:
            found = _read(repository, entry)
            _check(found.manifest, original.digest)
        except (ImageError, NotFoundError) as exc:
            log.warning("%s: attached %s is not used: %s", original.digest, entry.digest, exc)
        else:
            yield found


def _read(repository: Repository, entry: Descriptor) -> Attached:
    """Return the manifest of an entry: from the entry itself, if that has it."""
    if entry.media_type != OCI_MANIFEST:
        raise ImageError(f"it is of the type {entry.media_type}")
    data = embedded(entry)
    if data is None:
        if entry.size > MAX_MANIFEST_SIZE:
            raise ImageError(f"the manifest has {entry.size} bytes")
        data = repository.get_manifest(entry.digest)[1]
    manifest = document_of(entry, data)
    if not isinstance(manifest, Manifest):
        raise ImageError("it is no manifest of an image")
    descriptor = Descriptor(media_type=OCI_MANIFEST, digest=entry.digest, size=len(data))
    return Attached(descriptor, manifest, data)


def _check(manifest: Manifest, original: str) -> None:
    """Check that `manifest` is of an image that was converted from `original`.

    Raises:
        ImageError: it is not, or of another version.
    """
    check_manifest(manifest)
    annotations = manifest.annotations or {}
    subject = manifest.subject.digest if manifest.subject else None
    for what, named in (("subject", subject), ("source", annotations.get(SOURCE_DIGEST))):
        if named != original:
            raise ImageError(f"its {what} is {named or 'not there'}")
    if manifest.artifact_type != ARTIFACT_TYPE:
        raise ImageError(f"it is an artifact of the type {manifest.artifact_type}")
    if not annotations.get(PARAMETERS, "").startswith(VERSION):
        raise ImageError("it is of another version")


def resolve_converted(repository: Repository, platform: Platform | None = None) -> ResolvedImage:
    """Return the converted image that the repository's reference means.

    That is the image itself, if it is a converted one, else the one attached to it. An index
    leads to the manifest of the platform first, whose digest is enough to look.

    Args:
        repository: where it is.
        platform: which one of several; this machine's if None.

    Raises:
        UnsupportedError: it is an ordinary image, and nothing is attached to it; or there is none
            for the platform.
        ImageError, SourceError: as `firstread.oci.resolve.resolve`.
    """
    with naming(repository.reference):
        descriptor, data = repository.get_manifest()
        image = _converted(repository, platform, descriptor, data)
        return dataclasses.replace(image, named=descriptor.digest)


def _converted(
    repository: Repository, platform: Platform | None, descriptor: Descriptor, data: bytes
) -> ResolvedImage:
    """Return the converted image that the manifest or index `data` leads to."""
    looked_for: str | None = None
    search = _Search(repository)
    for _ in range(MAX_DEPTH):
        document = document_of(descriptor, data)
        if isinstance(document, Manifest):
            check_underived(document)
            if not is_block_image(document) and descriptor.digest != looked_for:
                found = search.find(descriptor)
                if found is not None:
                    return _load(repository, found)
            search.check(document)
            return load(repository, descriptor, document, data, platform)
        chosen = choose_in(repository, document, platform or host_platform())
        is_made = SOURCE_DIGEST in (chosen.annotations or {})  # then nobody attaches anything to it
        if chosen.media_type not in INDEXES and not is_made:
            looked_for = chosen.digest
            found = search.find(chosen)
            if found is not None:
                return _load(repository, found)
        descriptor, data = repository.get_manifest(chosen.digest)
    raise too_deep()


class _Search:
    """A search for what is attached: it costs an ordinary image some seconds, and never fails it.

    Args:
        repository: where the original is.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._silent: SourceError | None = None  # the answer, if there was none

    def find(self, original: Descriptor) -> Attached | None:
        """As `find_attached`; None as well if that cannot be found out now."""
        try:
            with within(SEARCH_S):
                return find_attached(self._repository, original)
        except SourceError as exc:
            if given_up():
                raise
            log.warning("%s: what is attached is not known: %s", original.digest, exc)
            self._silent = exc
            return None

    def check(self, manifest: Manifest) -> None:
        """As `check_manifest`; the error for an ordinary image says if the search had no answer."""
        try:
            check_manifest(manifest)
        except UnsupportedError as exc:
            if self._silent is not None:
                exc.hint = (
                    "the registry does not say now what is attached to it:"
                    f" {self._silent.message}; try again, or {exc.hint}"
                )
            raise


def _load(repository: Repository, found: Attached) -> ResolvedImage:
    return load(repository, found.descriptor, found.manifest, found.data)

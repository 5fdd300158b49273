# SPDX-License-Identifier: Apache-2.0
"""From the name of an image to its manifest and config, for one platform.

Owns the walk through indexes and the choice; reads through the repository only. Invariant: the
config of the result is verified. The reader of the layers checks that the diff_ids fit them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from firstread.errors import (
    FirstreadError,
    ImageError,
    LimitError,
    NotFoundError,
    UnsupportedError,
    cut,
)
from firstread.oci.model import (
    CONFIGS,
    DOCKER_MANIFEST,
    INDEXES,
    MANIFESTS,
    MAX_CONFIG_SIZE,
    OLD_CONFIGS,
    Descriptor,
    Index,
    Manifest,
    parse_config,
    parse_index,
    parse_manifest,
)
from firstread.oci.platform import Platform, host_platform
from firstread.oci.repository import Repository, naming

MAX_DEPTH: Final = 4  # nested indexes; deeper ones have not been seen in the wild
MAX_NESTED: Final = 32  # entries side by side without platforms: each costs one or two requests
MAX_IMAGES: Final = 64  # of one name; official images have a dozen platforms
MAX_TYPE: Final = 128  # characters of a media type in a message

_ATTESTATION = "vnd.docker.reference.type"  # annotation of BuildKit's provenance and SBOM manifests


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """One image of one platform.

    Args:
        descriptor: of the manifest.
        manifest: the document.
        manifest_bytes: its bytes, which its digest covers.
        config: the image config, with all its fields.
        config_bytes: its bytes.
        others: the other platforms of the index, if there was one.
        named: digest of what the reference named when a conversion was looked for: the image, or
            the index or original that led to it; else "".
    """

    descriptor: Descriptor
    manifest: Manifest
    manifest_bytes: bytes
    config: dict[str, Any]
    config_bytes: bytes
    others: tuple[str, ...] = ()
    named: str = ""


def resolve(repository: Repository, platform: Platform | None = None) -> ResolvedImage:
    """Return the image that the repository's reference names.

    Args:
        repository: has the image.
        platform: selects one of several images; this machine's if None. An image outside of an
            index must fit a stated platform only.

    Raises:
        UnsupportedError: there is no image for the platform, or it is not a container image.
        ImageError: its documents are invalid.
        SourceError: the repository does not answer.
    """
    with naming(repository.reference):
        descriptor, data = repository.get_manifest()
        wanted = platform or host_platform()
        others: set[str] = set()
        for _ in range(MAX_DEPTH):
            document = document_of(descriptor, data)
            if isinstance(document, Manifest):
                image = load(repository, descriptor, document, data, platform)
                return replace(image, others=tuple(sorted(others)))
            index = _spread(repository, document, wanted)
            chosen = choose(index, wanted)
            others |= {str(entry.platform) for entry in images_of(index) if entry.platform}
            others -= {str(chosen.platform)}
            descriptor, data = repository.get_manifest(chosen.digest)
        raise too_deep()


def document_of(descriptor: Descriptor, data: bytes) -> Manifest | Index:
    """Return the manifest or index in `data`.

    Raises:
        ImageError: it is not valid; the message names it.
    """
    return parse_manifest(data, descriptor.media_type, what=f"manifest {descriptor.digest}")


@dataclass(frozen=True, slots=True)
class Leaves:
    """What a name stands for, as its index says: no image is read yet.

    Args:
        top: descriptor of the manifest or index that has the name.
        data: its bytes.
        document: that they hold.
        images: entries of images, of nested indexes as well, in order.
        left_out: other entries, and why each is no image.
    """

    top: Descriptor
    data: bytes
    document: Manifest | Index
    images: list[Descriptor]
    left_out: list[tuple[Descriptor, str]]

    @property
    def index(self) -> Index | None:
        """The document, unless the name is that of one image."""
        return self.document if isinstance(self.document, Index) else None


def leaves(repository: Repository, reference: str | None = None) -> Leaves:
    """Return what a name stands for, all platforms.

    Args:
        repository: has it.
        reference: a tag or digest; None for what the repository was opened for.

    Raises:
        ImageError: a document is not valid, or there are too many images.
        SourceError: the repository does not answer.
    """
    top, data = repository.get_manifest(reference)
    document = document_of(top, data)
    if isinstance(document, Manifest):
        return Leaves(top, data, document, [top], [])
    images: list[Descriptor] = []
    left_out: list[tuple[Descriptor, str]] = []
    pending = [(document, 1)]
    seen: set[str] = set()
    for index, depth in pending:
        wanted = images_of(index)
        kept = set(map(id, wanted))
        left_out += [(e, _reason(e)) for e in index.manifests if id(e) not in kept]
        images += [entry for entry in wanted if entry.media_type in MANIFESTS]
        nested = dict.fromkeys(e.digest for e in wanted if e.media_type in INDEXES)
        seen.update(entry.digest for entry in wanted)
        if len(seen) > MAX_IMAGES:
            raise LimitError(f"the index names more than {MAX_IMAGES} images")
        if nested and depth + 1 >= MAX_DEPTH:
            raise too_deep()
        for digest in nested:
            descriptor, nested_data = repository.get_manifest(digest)
            what = f"index {digest}"
            pending.append((parse_index(nested_data, descriptor.media_type, what=what), depth + 1))
    return Leaves(top, data, document, images, left_out)


def _reason(entry: Descriptor) -> str:
    """Return why an entry of an index is no image."""
    if _ATTESTATION in (entry.annotations or {}):
        return "it is an attestation"
    if entry.media_type not in MANIFESTS | INDEXES:
        return f"it is of the type {entry.media_type}"
    if entry.artifact_type:
        return f"it is an artifact of the type {cut(entry.artifact_type, MAX_TYPE)}"
    return "its platform is unknown"


def resolve_all(repository: Repository) -> tuple[Leaves, list[ResolvedImage]]:
    """Return what the repository's reference names, and its images, once each.

    Artifacts that look like images until they are read are among `Leaves.left_out`.

    Raises:
        As `resolve`.
    """
    with naming(repository.reference):
        found = leaves(repository)
        images: dict[str, ResolvedImage] = {}
        artifacts: list[tuple[Descriptor, str]] = []
        for entry in found.images:
            if entry.digest in images:
                continue
            descriptor, data = found.top, found.data
            if found.index is not None:
                descriptor, data = repository.get_manifest(entry.digest)
            document = document_of(descriptor, data)
            if isinstance(document, Index):
                raise ImageError(f"the index calls {entry.digest} an image, and it is an index")
            if found.index is not None and not is_image(document):
                artifacts.append((entry, "it is an artifact"))
            else:
                images[entry.digest] = load(repository, descriptor, document, data)
        kept = [entry for entry in found.images if entry.digest in images]
        left_out = [*found.left_out, *artifacts]
        return replace(found, images=kept, left_out=left_out), list(images.values())


def choose_in(repository: Repository, index: Index, wanted: Platform) -> Descriptor:
    """As `choose`, and look into entries without a platform where only they can tell."""
    return choose(_spread(repository, index, wanted), wanted)


def _spread(repository: Repository, index: Index, wanted: Platform) -> Index:
    """Return `index` with the platforms of entries that state none, if only these can decide.

    The contents of nested indexes take their place; an image is for what its config says.
    """
    nameless = [entry for entry in images_of(index) if entry.platform is None]
    fits = any(entry.platform and wanted.rank(entry.platform) == 0 for entry in index.manifests)
    if fits or len(nameless) < 2:
        return index
    if len(nameless) > MAX_NESTED:
        raise LimitError(f"more than {MAX_NESTED} entries of an index state no platform")
    entries = [entry for entry in index.manifests if entry not in nameless]
    fault: FirstreadError | None = None
    for entry in nameless:
        try:
            entries += _named(repository, entry)
        except (ImageError, NotFoundError) as exc:
            fault = exc  # it must not hide its neighbours
    if fault is not None and not entries:
        raise fault
    return msgspec.structs.replace(index, manifests=entries)


def _named(repository: Repository, entry: Descriptor) -> list[Descriptor]:
    """Return the images that an entry without a platform stands for, with their platforms."""
    descriptor, data = repository.get_manifest(entry.digest)
    document = document_of(descriptor, data)
    if isinstance(document, Index):
        return document.manifests
    if not is_image(document):
        return []
    image = load(repository, descriptor, document, data)
    return [msgspec.structs.replace(entry, platform=platform_of(image.config))]


def choose(index: Index, wanted: Platform) -> Descriptor:
    """Return the manifest of `index` that runs best on the platform `wanted`.

    Raises:
        UnsupportedError: there is none.
    """
    images = images_of(index)
    ranked = [
        (rank, entry)
        for entry in images
        if entry.platform and (rank := wanted.rank(entry.platform)) is not None
    ]
    if ranked:
        return min(ranked, key=lambda pair: pair[0])[1]
    nameless = [entry for entry in images if entry.platform is None]
    if len(nameless) == 1:  # a nested index, or an image without a platform
        return nameless[0]
    there = ", ".join(sorted({str(entry.platform) for entry in images if entry.platform}))
    raise UnsupportedError(
        f"there is no image for {wanted}",
        hint=f"choose one with --platform: {there}" if there else "the index names no platform",
    )


def images_of(index: Index) -> list[Descriptor]:
    """Return the entries of `index` that are images, or indexes of images.

    Artifacts do not count, unless there is nothing else: an attached image is an artifact, too. The
    type of a config makes none: descriptor.md wants it there if the manifest states no type.
    """
    entries = [
        entry
        for entry in index.manifests
        if entry.media_type in MANIFESTS | INDEXES
        and _ATTESTATION not in (entry.annotations or {})
        and not (entry.platform and entry.platform.os == entry.platform.architecture == "unknown")
    ]
    return [e for e in entries if not e.artifact_type or e.artifact_type in CONFIGS] or entries


def too_deep() -> LimitError:
    """Return the error for indexes that are nested too deeply."""
    return LimitError(f"more than {MAX_DEPTH} indexes lie within each other")


def load(
    repository: Repository,
    descriptor: Descriptor,
    manifest: Manifest,
    data: bytes,
    platform: Platform | None = None,
) -> ResolvedImage:
    """Return the image of a manifest, with its config.

    Args:
        repository: has the image.
        descriptor: of the manifest.
        manifest: the document.
        data: its bytes.
        platform: that the image must be for, if it states one.

    Raises:
        As `resolve`.
    """
    if not is_image(manifest):
        raise UnsupportedError(
            f"this is not a container image: its config is {manifest.config.media_type}",
            hint="name a container image; this is an artifact of another kind",
        )
    raw = repository.read_blob(manifest.config, MAX_CONFIG_SIZE)
    config = parse_config(raw)
    if platform is not None:
        _check_platform(config, platform)
    return ResolvedImage(descriptor, manifest, data, config, raw)


def is_image(manifest: Manifest) -> bool:
    """Return whether a manifest is that of a container image, not of an artifact."""
    docker = manifest.media_type == DOCKER_MANIFEST
    return manifest.config.media_type in (CONFIGS | OLD_CONFIGS if docker else CONFIGS)


def platform_of(config: dict[str, Any]) -> Platform:
    """Return the platform that a config states; missing parts are empty."""
    parts = [config.get(key) for key in ("os", "architecture", "variant")]
    os, architecture, variant = (part if isinstance(part, str) else "" for part in parts)
    return Platform(os=os, architecture=architecture, variant=variant or None)


def _check_platform(config: dict[str, Any], platform: Platform) -> None:
    """Raise UnsupportedError if the image states another platform."""
    offered = platform_of(config)
    if offered.os and offered.architecture and platform.rank(offered) is None:
        raise UnsupportedError(
            f"there is no image for {platform}", hint=f"this image is for {offered} only"
        )

# SPDX-License-Identifier: Apache-2.0
"""Documents of the OCI image specification and of docker's schema 2: manifest, index, descriptor.

Owns their types, validation and encoding; no I/O. Invariants: a document from `parse_manifest` has
valid digests, sizes and media types, whoever wrote it; `encode` gives the same bytes for equal
documents on every machine. An image's config stays an untyped dict, so that unknown fields survive.

Source: opencontainers/image-spec v1.1 (descriptor.md, manifest.md, image-index.md, config.md).
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, Literal

import msgspec

from firstread.errors import FirstreadError, ImageError, LimitError, NotFoundError, UnsupportedError
from firstread.oci import gojson, untrusted
from firstread.oci.imageconfig import ConfigFields
from firstread.oci.platform import Platform
from firstread.oci.untrusted import AnyDigest, Digest, MediaType, Size
from firstread.units import MiB

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_FOREIGN_LAYER: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_FOREIGN_LAYER: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"

EMPTY: Final = b"{}"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
"""The config of a manifest that is no image (image-spec v1.1, manifest.md)."""

MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
OLD_CONFIGS: Final = frozenset({"application/octet-stream", "application/json", "text/html"})
"""Config types of docker manifests from old registries and clients; docker accepts them."""
_SCHEMA1: Final = frozenset({DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED})
_FOREIGN: Final = (OCI_FOREIGN_LAYER, DOCKER_FOREIGN_LAYER)

MAX_MANIFEST_SIZE: Final = (
    4 * MiB
)  # what registries accept (distribution-spec, "Pushing Manifests")
MAX_CONFIG_SIZE: Final = 8 * MiB  # bytes

_ALGORITHMS: Final = ("sha256:", "sha512:")


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """The name of a blob or a manifest, and its size; `data` can carry the bytes themselves."""

    media_type: MediaType
    digest: Digest
    size: Size
    data: bytes | None = None
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    artifact_type: str | None = None


class Manifest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """One image: its config and its layers, lowest first."""

    # Defaults from factories are not omitted: docker's registry requires both fields.
    schema_version: Literal[2] = msgspec.field(default_factory=lambda: 2)
    media_type: MediaType = msgspec.field(default_factory=lambda: OCI_MANIFEST)
    artifact_type: str | None = None
    config: Descriptor
    layers: list[Descriptor]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """Several images, or indexes, usually one for each platform."""

    schema_version: Literal[2] = msgspec.field(default_factory=lambda: 2)
    media_type: MediaType = msgspec.field(default_factory=lambda: OCI_INDEX)
    artifact_type: str | None = None
    manifests: list[Descriptor]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class _Listed(Descriptor, frozen=True, kw_only=True):
    """An entry of an index as written: its digest may use an unknown algorithm."""

    digest: AnyDigest


class _Outline(msgspec.Struct, frozen=True, rename="camel"):
    """The fields that tell a manifest from an index, before either is trusted."""

    schema_version: int | None = None
    media_type: str | None = None
    manifests: Any = msgspec.UNSET
    layers: Any = msgspec.UNSET
    config: Any = msgspec.UNSET


def manifest_media_type(
    data: bytes, media_type: str | None = None, *, what: str = "manifest"
) -> str:
    """Return the media type of a manifest or index.

    Args:
        data: the document.
        media_type: from its descriptor or the registry; None or a generic type if unknown.
        what: names the document in messages.

    Raises:
        UnsupportedError: it uses docker's schema 1, or is not an image.
        ImageError: it is neither a manifest nor an index, or could be read as both.
    """
    return _media_type(_load(data, media_type, what), media_type, what)


def _load(data: bytes, media_type: str | None, what: str) -> Any:
    if len(data) > MAX_MANIFEST_SIZE:
        raise LimitError(f"{what} has {len(data)} bytes, more than {MAX_MANIFEST_SIZE}")
    if media_type in _SCHEMA1:
        raise _schema1(what)
    return untrusted.load(data, what)


def _media_type(document: Any, media_type: str | None, what: str) -> str:
    outline = untrusted.convert(document, _Outline, what)
    if outline.schema_version == 1 or outline.media_type in _SCHEMA1:
        raise _schema1(what)
    is_index = outline.manifests is not msgspec.UNSET  # null counts as present, as in Go
    is_image = outline.layers is not msgspec.UNSET or outline.config is not msgspec.UNSET
    if outline.schema_version != 2 and (outline.schema_version or not (is_index or is_image)):
        raise ImageError(f"{what} is not that of an image: its schemaVersion is not 2")
    if is_index and is_image:
        # CVE-2021-41190: one digest, and two images in it
        raise ImageError(f"{what} is ambiguous: it is an image and an index at once")
    declared = media_type if media_type in MANIFESTS | INDEXES else None
    if declared and outline.media_type and declared != outline.media_type:
        raise ImageError(f"{what} says it is {outline.media_type}, but is offered as {declared}")
    chosen = declared or outline.media_type or (OCI_INDEX if is_index else OCI_MANIFEST)
    if chosen not in MANIFESTS | INDEXES:
        raise UnsupportedError(f"{what} has the unknown media type {chosen!r}")
    if (chosen in INDEXES) != is_index:
        raise ImageError(f"{what} is not the {chosen} that it says it is")
    return chosen


def offered_media_type(data: bytes, offered: str, *, what: str = "manifest") -> str:
    """Return the media type of a document that a registry offers as `offered`.

    Docker and OCI have two names for one form, and some proxies offer a document under the name
    that it does not state itself. Then the document decides: its digest covers what it states.

    Args:
        data: the document.
        offered: by the registry.
        what: names the document in messages.

    Raises:
        As `manifest_media_type`.
    """
    document = _load(data, offered, what)
    own = untrusted.convert(document, _Outline, what).media_type
    alike = any(own in kind and offered in kind for kind in (MANIFESTS, INDEXES))
    return _media_type(document, own if alike else offered, what)


def _schema1(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{what} is of docker's schema 1, which is obsolete",
        hint="push the image again with a current tool, such as skopeo copy --format v2s2",
    )


def parse_manifest(
    data: bytes, media_type: str | None = None, *, what: str = "manifest"
) -> Manifest | Index:
    """Return the validated manifest or index in `data`; arguments as `manifest_media_type`.

    Raises:
        ImageError: it is invalid (LimitError: too long, UnsupportedError: of another kind).
    """
    loaded = _load(data, media_type, what)
    chosen = _media_type(loaded, media_type, what)
    if chosen in INDEXES:
        return _read_index(loaded, chosen, what)
    return untrusted.convert(gojson.normal(loaded, Manifest) | _stated(chosen), Manifest, what)


def _stated(media_type: str) -> dict[str, Any]:
    """Return the fields that a document need not state, since the others show what it is."""
    return {"schemaVersion": 2, "mediaType": media_type}


def _read_index(loaded: Any, media_type: str, what: str) -> Index:
    """Return an index without its unusable entries.

    A damaged entry, or one with a digest of an unknown algorithm (valid, says descriptor.md), must
    not cost the images beside it.
    """
    document = gojson.normal(loaded, Index)
    index = untrusted.convert(document | {"manifests": []} | _stated(media_type), Index, what)
    entries = untrusted.convert(document["manifests"], list[Any], what)
    listed = untrusted.decode_each(entries, _Listed, what, "$.manifests")
    usable = [_plain(entry) for entry in listed if entry.digest.startswith(_ALGORITHMS)]
    return msgspec.structs.replace(index, manifests=usable)


def _plain(entry: _Listed) -> Descriptor:
    """Return an entry as a descriptor; an empty platform counts as none."""
    fields = msgspec.structs.asdict(entry)
    if entry.platform is not None and not (entry.platform.os or entry.platform.architecture):
        fields["platform"] = None
    return Descriptor(**fields)


def prepare() -> None:
    """Find out the fields of all documents, which takes 9 ms, so that the first need not."""
    for kind in (Manifest, Index, list[_Listed], ConfigFields):
        gojson.normal(None, kind)


def parse_index(data: bytes, media_type: str = OCI_INDEX, *, what: str = "manifest") -> Index:
    """Return the validated index in `data`; arguments as `manifest_media_type`.

    Raises:
        ImageError: it is not a valid index.
    """
    document = parse_manifest(data, media_type, what=what)
    if not isinstance(document, Index):
        raise ImageError(f"{what} is not an index, but that of one image")
    return document


def parse_config(data: bytes) -> dict[str, Any]:
    """Return the image config in `data`, with each of its fields once.

    Raises:
        ImageError: it is not a JSON object.
    """
    if len(data) > MAX_CONFIG_SIZE:
        raise LimitError(f"image config has {len(data)} bytes, more than {MAX_CONFIG_SIZE}")
    return untrusted.written(data, ConfigFields, "image config")


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[Digest] = []
    type: Literal["layers", ""] = "layers"


def diff_ids(config: dict[str, Any]) -> list[str]:
    """Return the digests of the image's uncompressed layers, lowest first.

    As in Go, a config without a rootfs has none.

    Raises:
        ImageError: they are not digests.
    """
    rootfs = config.get("rootfs")
    if rootfs is None:
        return []
    return untrusted.convert(rootfs, _RootFs, "the rootfs of the image config").diff_ids


def missing_blob(blob: Descriptor) -> FirstreadError:
    """Return the error for a blob that is missing from its image's repository."""
    if blob.media_type.startswith(_FOREIGN):
        return UnsupportedError(
            "layer is not distributable, and the image's repository does not have it",
            layer=blob.digest,
            hint="copy the layer beside the image, with skopeo copy from where it is available",
        )
    return NotFoundError(
        f"blob {blob.digest} is missing", hint="the image is incomplete: push it again"
    )


def encode(document: object) -> bytes:
    """Return `document` (struct or dict) as JSON: sorted keys, no white space, UTF-8."""
    return msgspec.json.encode(document, order="sorted")


def sha256_digest(data: bytes | bytearray | memoryview) -> str:
    """Return ``sha256:…`` of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def embedded(descriptor: Descriptor) -> bytes | None:
    """Return the bytes that `descriptor` carries itself, if they match its digest.

    Source: image-spec v1.1, descriptor.md ("data"): such bytes must be verified like all others.
    """
    data = descriptor.data
    if data is None or len(data) != descriptor.size:
        return None
    matches = describe(data, descriptor.media_type, like=descriptor.digest)
    return data if matches.digest == descriptor.digest else None


def describe(data: bytes, media_type: str, *, like: str = "sha256:") -> Descriptor:
    """Return the descriptor of `data`, with a digest of the same algorithm as the digest `like`."""
    algorithm = like.partition(":")[0]
    digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    return Descriptor(media_type=media_type, digest=digest, size=len(data))

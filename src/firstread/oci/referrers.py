# SPDX-License-Identifier: Apache-2.0
"""Lists of referrers as documents: entries, and the tag under which clients keep them.

Pure; `firstread.registry.referrerlists` asks registries. Invariants: bounds on a foreign list come
before trust; its other entries survive our change of it, unknown fields included.

Source: distribution-spec v1.1, "Listing Referrers" and "Referrers Tag Schema".
"""

from __future__ import annotations

from typing import Any, Final

from firstread.errors import LimitError, UsageError
from firstread.oci.model import (
    MAX_MANIFEST_SIZE,
    OCI_INDEX,
    Descriptor,
    Index,
    Manifest,
    describe,
    encode,
    parse_index,
    parse_manifest,
)
from firstread.oci.untrusted import written
from firstread.units import KiB

MAX_ENTRIES: Final = 4096  # of one list, of all types
MAX_EMBEDDED: Final = 64 * KiB  # of a manifest inside its entry in a tag's list


def referrers_tag(digest: str) -> str:
    """Return the tag of the list of a manifest's referrers."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm[:32]}-{encoded[:64]}"


def is_about_a_digest(tag: str) -> bool:
    """Return whether clients keep something about a manifest at a tag, such as a signature."""
    algorithm, _, rest = tag.partition("-")
    encoded = rest.partition(".")[0]  # cosign adds .sig, .att or .sbom
    return algorithm in ("sha256", "sha512") and len(encoded) == 64 and encoded.isalnum()


def describe_referrer(data: bytes, media_type: str) -> tuple[Descriptor, Descriptor]:
    """Return the subject of a manifest, and its own entry in a list.

    Raises:
        UsageError: it has no subject.
        ImageError: it is not a manifest.
    """
    manifest = parse_manifest(data, media_type)
    if not isinstance(manifest, Manifest) or manifest.subject is None:
        raise UsageError("the manifest has no subject")
    plain = describe(data, media_type)
    entry = Descriptor(
        media_type=media_type,
        digest=plain.digest,
        size=plain.size,
        data=data if len(data) <= MAX_EMBEDDED else None,
        annotations=manifest.annotations,
        artifact_type=manifest.artifact_type or manifest.config.media_type,
    )
    return manifest.subject, entry


def of_type(data: bytes, artifact_type: str) -> tuple[list[Descriptor], int]:
    """Return the entries that may be of a type, and the number of all entries.

    An entry that states no type may be of any: skopeo 1.9 drops types when it copies a list.

    Raises:
        ImageError: it is not a list.
    """
    entries = parse_index(data).manifests
    if len(entries) > MAX_ENTRIES:
        raise LimitError(f"a list of referrers has {len(entries)} entries")
    fitting = [e for e in entries if not e.artifact_type or e.artifact_type == artifact_type]
    return fitting, len(entries)


def with_entry(old: bytes | None, entry: Descriptor) -> bytes | None:
    """Return the list `old` with `entry`; None if it is in the list already.

    Raises:
        ImageError: `old` is not a list.
        LimitError: it is full.
    """
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    if old is not None:
        if any(known.digest == entry.digest for known in parse_index(old).manifests):
            return None
        document = written(old, Index, "list of referrers")
    document["manifests"] = [*document["manifests"], entry]
    changed = encode(document)
    if len(changed) > MAX_MANIFEST_SIZE or len(document["manifests"]) > MAX_ENTRIES:
        raise LimitError("the list of referrers is full")
    return changed

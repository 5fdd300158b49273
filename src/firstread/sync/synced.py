# SPDX-License-Identifier: Apache-2.0
"""The documents of ``firstread sync`` (docs/json.md), and what a row of them says."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Final

from firstread.documents import DESCRIBED, Bytes, Digest, Document, ErrorDocument, Seconds
from firstread.errors import FirstreadError
from firstread.oci.reference import Reference

CONVERTED: Final = "converted"
PRESENT: Final = "present"
MISSING: Final = "missing"
SKIPPED: Final = "skipped"
FAILED: Final = "failed"


class SyncedImage(Document, kw_only=True):
    """What became of an image, for one platform.

    image: reference; a source that could not be looked up, as it was given
    platform: null if it is not known without reading the image
    result: `converted`, `present` (it was, from the same digest), `missing` (`--dry-run`: it would
        be converted), `skipped` (it is nothing to convert), `failed`
    source_digest: of what the name stood for, an index's if it is one; null if it was not looked up
    destination: reference of the result; null with `--attach`
    digest: of the converted image's manifest, if it is known
    seconds: that the conversion took
    size: all layers of the converted image
    packed_bytes: sector blobs that were packed for it; layers that were packed before need none
    reason: why it was skipped
    error: why it failed
    """

    image: str
    platform: str | None = None
    result: str
    source_digest: Digest | None = None
    destination: str | None = None
    digest: Digest | None = None
    seconds: Seconds = 0.0
    size: Bytes = 0
    packed_bytes: Bytes = 0
    reason: str | None = None
    error: Annotated[ErrorDocument | None, DESCRIBED] = None


class Synced(Document):
    """What a run of ``sync`` did.

    images: in the order of their names; each platform is one
    converted, present, missing, skipped, failed: how many of them
    seconds: wall-clock time
    """

    images: list[SyncedImage]
    converted: int
    present: int
    missing: int
    skipped: int
    failed: int
    seconds: Seconds

    @classmethod
    def of(cls, images: list[SyncedImage], seconds: float) -> Synced:
        """Return the document of these images."""
        count = Counter(image.result for image in images)
        return cls(
            sorted(images, key=lambda image: (image.image, image.platform or "")),
            converted=count[CONVERTED],
            present=count[PRESENT],
            missing=count[MISSING],
            skipped=count[SKIPPED],
            failed=count[FAILED],
            seconds=seconds,
        )


def failed(name: object, error: FirstreadError) -> SyncedImage:
    """Return the row of an image, or a source, that failed."""
    document = ErrorDocument(**error.to_dict())  # type: ignore[arg-type]
    return SyncedImage(image=str(name), result=FAILED, error=document)


def skipped(name: Reference, reason: str, platform: str | None = None) -> SyncedImage:
    """Return the row of an image that there is nothing to do for."""
    return SyncedImage(image=str(name), platform=platform, result=SKIPPED, reason=reason)

# SPDX-License-Identifier: Apache-2.0
"""Puts a manifest into a registry, whose blobs are all there.

Owns the request, one attempt, and the meaning of a refusal.

Facts about manifests:

* While another client puts the same blob or manifest, docker-registry 2.8 does not find it for a
  moment: it truncates the file that names it before it writes it. Then it refuses a manifest by
  DIGEST_INVALID or MANIFEST_BLOB_UNKNOWN. Both contradict what it has said, since the digest is
  that of the bytes and the blobs are there, so such a refusal is worth another attempt.

Source: distribution-spec v1.1, "Pushing Manifests".
"""

from __future__ import annotations

from typing import Final

from firstread.errors import SourceError, TransportError
from firstread.registry.answer import Answer
from firstread.registry.transport import SUCCESS, Transport

_CONTRADICTIONS: Final = ("DIGEST_INVALID", "BLOB_UNKNOWN")


def publish_manifest(
    transport: Transport, reference: str, data: bytes, media_type: str, what: str
) -> Answer:
    """Put a manifest or index; return what the registry says.

    Args:
        transport: to the repository.
        reference: a tag, or the digest of `data`.
        data: the document.
        media_type: of it.
        what: is being done, for messages: ``"cannot …"``.

    Raises:
        TransportError: it may work later.
        SourceError: the registry refuses.
    """
    try:
        return transport.request(
            "PUT",
            f"{transport.root}/manifests/{reference}",
            what=what,
            expect=SUCCESS,
            headers={"Content-Type": media_type},
            body=data,
        )
    except SourceError as exc:
        if not any(word in exc.message for word in _CONTRADICTIONS):
            raise
        raise TransportError(exc.message) from exc

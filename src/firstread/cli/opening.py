# SPDX-License-Identifier: Apache-2.0
"""Opens a converted image for a verb, and gives its errors the image's name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from firstread.errors import FirstreadError, from_os_error
from firstread.oci.platform import Platform
from firstread.oci.reference import Reference
from firstread.oci.repository import Repository
from firstread.oci.resolve import ResolvedImage
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.sectors.attached import resolve_converted
from firstread.sectors.image import BlockImage, fetch_image


@contextmanager
def opened_image(
    reference: Reference, options: AccessOptions, platform: Platform | None = None
) -> Iterator[tuple[Repository, ResolvedImage, BlockImage]]:
    """Open the converted image that `reference` names, or the one attached to it.

    A file without a name holds its metadata.

    Args:
        reference: of the image.
        options: access to it.
        platform: which image of an index; this machine's if None.

    Raises:
        FirstreadError: names the image, also for errors inside the ``with`` block.
    """
    try:
        with open_source(reference, options) as repository, tempfile.TemporaryFile() as metadata:
            resolved = resolve_converted(repository, platform)
            yield repository, resolved, fetch_image(repository, resolved.manifest, metadata)
    except FirstreadError as exc:
        exc.about(image=str(reference))
        raise
    except OSError as exc:
        raise from_os_error(exc, "cannot read the image").about(image=str(reference)) from exc

# SPDX-License-Identifier: Apache-2.0
"""``firstread verify``: every byte of a converted image, and its tree against the source's."""

from __future__ import annotations

import dataclasses
import time
from itertools import islice
from typing import TYPE_CHECKING

import click

from firstread.cli.options import PLATFORM, REFERENCE, access_options, json_option
from firstread.cli.output import report, show
from firstread.errors import DigestError
from firstread.units import counted, format_size

if TYPE_CHECKING:
    from firstread.convert.blobcheck import BlobCheck
    from firstread.erofs.tree import Node
    from firstread.oci.platform import Platform
    from firstread.oci.reference import Reference
    from firstread.oci.repository import Repository
    from firstread.oci.resolve import ResolvedImage
    from firstread.registry.options import AccessOptions
    from firstread.sectors.image import BlockImage

SHOWN = 20  # differences to list


@click.command()
@click.argument("reference", metavar="REF", type=REFERENCE)
@click.option("--source", type=REFERENCE, help="Compare with the tree of this image, its source.")
@click.option(
    "--platform",
    type=PLATFORM,
    help="Which image of an index, for both.  [default: this machine's]",
)
@access_options
@json_option
def command(
    reference: Reference,
    source: Reference | None,
    platform: Platform | None,
    access: AccessOptions,
    as_json: bool,
) -> None:
    """Read the converted image REF back and check every digest in it.

    With --source also compare its tree with the source's: types, modes, owners, times, extended
    attributes, links and contents.
    """
    from firstread.cli.opening import opened_image

    started = time.monotonic()
    with opened_image(reference, access, platform) as (repository, resolved, image):
        check, root = _check(repository, resolved, image)
        if source is not None:
            _compare(repository, image, check, root, source, platform, access)
    checked = check.checked
    if as_json:
        from firstread.cli.shown import ImageVerified

        show(
            ImageVerified(
                reference=str(reference),
                digest=resolved.descriptor.digest,
                source=str(source) if source else None,
                **dataclasses.asdict(checked),
                seconds=time.monotonic() - started,
            )
        )
    else:
        same = [f"its tree equals that of {source}"] if source else []
        report(
            [
                f"{reference}: {format_size(checked.bytes)} in"
                f" {counted(checked.sectors, 'sector')} and {counted(checked.frames, 'frame')}"
                " match their digests",
                *same,
            ]
        )


def _check(
    repository: Repository, resolved: ResolvedImage, image: BlockImage
) -> tuple[BlobCheck, Node]:
    from msgspec import structs

    from firstread.convert.blobcheck import BlobCheck
    from firstread.erofs.reader import read_tree
    from firstread.oci.model import MAX_CONFIG_SIZE, diff_ids

    ids = diff_ids(resolved.config)
    if len(ids) != len(resolved.manifest.layers):
        raise DigestError("the config does not name as many layers as the manifest")
    # The manifest contains it, so nobody has asked the repository for it.
    config = structs.replace(resolved.manifest.config, data=None)
    repository.read_blob(config, MAX_CONFIG_SIZE)
    if ids[0] != "sha256:" + image.digest():
        raise DigestError("the metadata does not match the config's diff_id")
    root = read_tree(image.erofs)
    check = BlobCheck(repository, image, root)
    for number, (blob, diff_id) in enumerate(zip(image.blobs, ids[1:], strict=True)):
        check.blob(number, blob, diff_id)
    return check, root


def _compare(
    repository: Repository,
    image: BlockImage,
    check: BlobCheck,
    root: Node,
    source: Reference,
    platform: Platform | None,
    access: AccessOptions,
) -> None:
    from firstread.convert.compare import differences, fingerprint_image, source_tree
    from firstread.convert.original import source_layers
    from firstread.oci.repository import naming
    from firstread.oci.resolve import resolve
    from firstread.registry.open import open_source
    from firstread.sectors.content import ContentReader

    piece_size = image.index.geometry.sector_size
    fingerprint_image(root, check, ContentReader.of(repository, image), piece_size)
    with naming(source), open_source(source, access) as opened:
        expected = source_tree(opened, source_layers(resolve(opened, platform)), piece_size)
    found = differences(expected, root)
    shown = list(islice(found, SHOWN))
    if shown:
        more = sum(1 for _ in found)
        lines = [*shown, *([f"and {more} more"] if more else [])]
        error = DigestError(
            f"its tree is not that of {source}:",
            hint="if it was made from this source, convert it again with --no-cache",
        )
        error.details = lines
        raise error

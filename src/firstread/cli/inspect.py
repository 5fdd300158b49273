# SPDX-License-Identifier: Apache-2.0
"""``firstread inspect``: the parts of a converted image."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from firstread.cli.options import REFERENCE, access_options, json_option, platform_option
from firstread.cli.output import report, show
from firstread.units import counted, format_size

if TYPE_CHECKING:
    from firstread.cli.shown import ImageShown
    from firstread.oci.platform import Platform
    from firstread.oci.reference import Reference
    from firstread.oci.resolve import ResolvedImage
    from firstread.registry.options import AccessOptions
    from firstread.sectors.image import BlockImage


@click.command()
@click.argument("reference", metavar="REF", type=REFERENCE)
@click.option("--files", is_flag=True, help="List the files of each sector.")
@platform_option
@access_options
@json_option
def command(
    reference: Reference,
    files: bool,
    platform: Platform | None,
    access: AccessOptions,
    as_json: bool,
) -> None:
    """Show the parts of the converted image REF, from its manifest and metadata alone."""
    from firstread.cli.opening import opened_image

    with opened_image(reference, access, platform) as (_, resolved, image):
        document = _describe(reference, resolved, image, files=files)
    if as_json:
        show(document)
    else:
        report(_lines(document))


def _describe(
    reference: Reference, resolved: ResolvedImage, image: BlockImage, *, files: bool
) -> ImageShown:
    from firstread.cli.shown import BlobShown, ImageShown, MetadataShown, SectorShown
    from firstread.sectors.image import HOT, PARAMETERS, SOURCE_DIFF_ID, SOURCE_DIGEST

    annotations = resolved.manifest.annotations or {}
    layers, sectors = resolved.manifest.layers, image.index.sectors
    used = Counter(sector.blob for sector in sectors)
    shown = [SectorShown(s.id.hex(), s.blob, s.offset, s.length, s.size) for s in sectors]
    if files:
        for sector, names in zip(shown, _files(image), strict=True):
            sector.files = names
    return ImageShown(
        reference=str(reference),
        digest=resolved.descriptor.digest,
        source_digest=annotations.get(SOURCE_DIGEST),
        parameters=annotations.get(PARAMETERS),
        sector_size=image.index.geometry.sector_size,
        frame_size=image.index.geometry.frame_size,
        size=sum(layer.size for layer in layers),
        uncompressed_size=sum(sector.size for sector in sectors),
        metadata=MetadataShown(
            digest=layers[0].digest,
            size=layers[0].size,
            uncompressed_size=image.erofs.size,
            inodes=image.erofs.superblock.inodes,
        ),
        blobs=[
            BlobShown(
                digest=blob.digest,
                size=blob.size,
                source_diff_id=(blob.annotations or {}).get(SOURCE_DIFF_ID),
                sectors=used[number],
                hot=(blob.annotations or {}).get(HOT),
            )
            for number, blob in enumerate(image.blobs)
        ],
        sectors=shown,
    )


def _files(image: BlockImage) -> list[list[str]]:
    """Return for each sector the paths of the files with data in it, in order of position."""
    from firstread.erofs.reader import read_tree
    from firstread.erofs.tree import HOLE, split_address, walk

    blocks: list[dict[bytes, int]] = [{} for _ in image.index.sectors]
    for path, node in walk(read_tree(image.erofs)):
        for address in node.chunks:
            if address != HOLE:
                sector, block = split_address(address)
                blocks[sector].setdefault(path, block)
    return [
        [
            "/" + path.decode(errors="backslashreplace")
            for path in sorted(firsts, key=firsts.__getitem__)
        ]
        for firsts in blocks
    ]


def _lines(shown: ImageShown) -> list[str]:
    metadata, sectors = shown.metadata, shown.sectors
    lines = [
        shown.reference,
        f"  digest    {shown.digest}",
        f"  source    {shown.source_digest or 'unknown'}",
        f"  size      {format_size(shown.size)} for {format_size(shown.uncompressed_size)}"
        f" in {counted(len(sectors), 'sector')} of {format_size(shown.sector_size)}",
        f"  metadata  {format_size(metadata.size)}"
        f" ({format_size(metadata.uncompressed_size)} uncompressed),"
        f" {counted(metadata.inodes, 'inode')}",
    ]
    lines += [
        f"  blob {number:<4} {blob.digest[:19]}  {format_size(blob.size):>10}"
        f"  {counted(blob.sectors, 'sector')}{'' if blob.hot is None else ', hot'}"
        for number, blob in enumerate(shown.blobs)
    ]
    for number, sector in enumerate(sectors):
        if isinstance(sector.files, list):
            lines.append(
                f"  sector {number}  {sector.id[:12]}  blob {sector.blob}"
                f" at {sector.offset}, {format_size(sector.length)}"
                f" for {format_size(sector.size)}"
            )
            lines += [f"    {name}" for name in sector.files]
    return lines

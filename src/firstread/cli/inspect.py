# SPDX-License-Identifier: Apache-2.0
"""``firstread inspect``: what a converted image is made of."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from firstread.cli.options import REFERENCE, access_options, json_option
from firstread.cli.output import report, show
from firstread.units import counted, format_size

if TYPE_CHECKING:
    from firstread.oci.options import AccessOptions
    from firstread.oci.reference import Reference
    from firstread.oci.resolve import ResolvedImage
    from firstread.sectors.format import SectorEntry
    from firstread.sectors.image import BlockImage


@click.command()
@click.argument("reference", metavar="REF", type=REFERENCE)
@click.option("--files", is_flag=True, help="List which files lie in which sector.")
@access_options
@json_option
def command(reference: Reference, files: bool, access: AccessOptions, as_json: bool) -> None:
    """Show what the converted image REF is made of, from its manifest and metadata alone."""
    from firstread.cli.opening import opened_image

    with opened_image(reference, access) as (_, resolved, image):
        document = _describe(reference, resolved, image, files=files)
    if as_json:
        show(document)
    else:
        report(_lines(document))


def _describe(
    reference: Reference, resolved: ResolvedImage, image: BlockImage, *, files: bool
) -> dict[str, Any]:
    """Return what ``--json`` prints (docs/json.md)."""
    from firstread.sectors.image import PARAMETERS, SOURCE_DIFF_ID, SOURCE_DIGEST

    annotations = resolved.manifest.annotations or {}
    layers, sectors = resolved.manifest.layers, image.index.sectors
    used = Counter(sector.blob for sector in sectors)
    document: dict[str, Any] = {
        "reference": str(reference),
        "digest": resolved.descriptor.digest,
        "source_digest": annotations.get(SOURCE_DIGEST),
        "parameters": annotations.get(PARAMETERS),
        "sector_size": image.index.geometry.sector_size,
        "frame_size": image.index.geometry.frame_size,
        "size": sum(layer.size for layer in layers),
        "uncompressed_size": sum(sector.size for sector in sectors),
        "metadata": {
            "digest": layers[0].digest,
            "size": layers[0].size,
            "uncompressed_size": image.erofs.size,
            "inodes": image.erofs.superblock.inodes,
        },
        "blobs": [
            {
                "digest": blob.digest,
                "size": blob.size,
                "source_diff_id": (blob.annotations or {}).get(SOURCE_DIFF_ID),
                "sectors": used[number],
            }
            for number, blob in enumerate(image.blobs)
        ],
        "sectors": [_sector(sector) for sector in sectors],
    }
    if files:
        for sector, names in zip(document["sectors"], _files(image), strict=True):
            sector["files"] = names
    return document


def _sector(sector: SectorEntry) -> dict[str, Any]:
    return {
        "id": sector.id.hex(),
        "blob": sector.blob,
        "offset": sector.offset,
        "length": sector.length,
        "size": sector.size,
    }


def _files(image: BlockImage) -> list[list[str]]:
    """Return for each sector the paths of the files that have data in it, in order of place."""
    from firstread.erofs.reader import read_tree
    from firstread.erofs.tree import HOLE, split_address, walk

    places: list[dict[bytes, int]] = [{} for _ in image.index.sectors]
    for path, node in walk(read_tree(image.erofs)):
        for address in node.chunks:
            if address != HOLE:
                sector, block = split_address(address)
                places[sector].setdefault(path, block)
    return [
        [
            "/" + path.decode(errors="backslashreplace")
            for path in sorted(place, key=place.__getitem__)
        ]
        for place in places
    ]


def _lines(document: dict[str, Any]) -> list[str]:
    metadata, sectors = document["metadata"], document["sectors"]
    lines = [
        document["reference"],
        f"  digest    {document['digest']}",
        f"  source    {document['source_digest'] or 'unknown'}",
        f"  size      {format_size(document['size'])} for"
        f" {format_size(document['uncompressed_size'])}"
        f" in {counted(len(sectors), 'sector')} of {format_size(document['sector_size'])}",
        f"  metadata  {format_size(metadata['size'])}"
        f" ({format_size(metadata['uncompressed_size'])} uncompressed),"
        f" {counted(metadata['inodes'], 'inode')}",
    ]
    lines += [
        f"  blob {number:<4} {blob['digest'][:19]}  {format_size(blob['size']):>10}"
        f"  {counted(blob['sectors'], 'sector')}"
        for number, blob in enumerate(document["blobs"])
    ]
    for number, sector in enumerate(sectors):
        if "files" in sector:
            lines.append(
                f"  sector {number}  {sector['id'][:12]}  blob {sector['blob']}"
                f" at {sector['offset']}, {format_size(sector['length'])}"
                f" for {format_size(sector['size'])}"
            )
            lines += [f"    {name}" for name in sector["files"]]
    return lines

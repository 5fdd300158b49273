# SPDX-License-Identifier: Apache-2.0
"""``firstread extract``: a converted image into a directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.options import REFERENCE, access_options, json_option, platform_option
from firstread.cli.output import report, show
from firstread.units import counted

if TYPE_CHECKING:
    from firstread.convert.extraction import LeftOut
    from firstread.oci.platform import Platform
    from firstread.oci.reference import Reference
    from firstread.registry.options import AccessOptions


@click.command()
@click.argument("reference", metavar="REF", type=REFERENCE)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--privileged",
    is_flag=True,
    help="Also make device nodes, set-user-id and set-group-id bits and file capabilities.",
)
@platform_option
@access_options
@json_option
def command(
    reference: Reference,
    directory: Path,
    privileged: bool,
    platform: Platform | None,
    access: AccessOptions,
    as_json: bool,
) -> None:
    """Unpack the converted image REF into DIR, a new or empty directory.

    Files get the image's owners and extended attributes, which needs root. Without --privileged,
    the command omits and counts everything that would grant rights on this machine.
    """
    from firstread.cli.opening import opened_image
    from firstread.convert.extraction import extract
    from firstread.erofs.reader import read_tree
    from firstread.sectors.content import ContentReader

    with opened_image(reference, access, platform) as (repository, resolved, image):
        content = ContentReader.of(repository, image)
        tree = read_tree(image.erofs)
        names, left_out = extract(tree, content, directory, privileged=privileged)
    if as_json:
        from firstread.cli.shown import ImageExtracted, LeftOutShown

        missing = LeftOutShown(**dataclasses.asdict(left_out))
        digest = resolved.descriptor.digest
        show(ImageExtracted(str(reference), digest, str(directory), names, missing))
    else:
        report([f"{directory}: {counted(names, 'name')} from {reference}", *_missing(left_out)])


def _missing(left_out: LeftOut) -> list[str]:
    kinds = {
        "set-id bits of {}": counted(left_out.set_ids, "program"),
        "capabilities of {}": counted(left_out.capabilities, "program"),
        "{}": counted(left_out.devices, "device"),
    }
    missing = [kind.format(count) for kind, count in kinds.items() if not count.startswith("0 ")]
    return [f"  left out  {', '.join(missing)}: --privileged makes them"] if missing else []

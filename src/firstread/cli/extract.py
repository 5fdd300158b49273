# SPDX-License-Identifier: Apache-2.0
"""``firstread extract``: a converted image into a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.options import REFERENCE, access_options, json_option
from firstread.cli.output import report, show

if TYPE_CHECKING:
    from firstread.oci.options import AccessOptions
    from firstread.oci.reference import Reference


@click.command()
@click.argument("reference", metavar="REF", type=REFERENCE)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@access_options
@json_option
def command(reference: Reference, directory: Path, access: AccessOptions, as_json: bool) -> None:
    """Unpack the converted image REF into DIR, a new or empty directory.

    Owners, devices and security attributes are set as the image has them, which needs root.
    """
    from firstread.cli.opening import opened_image
    from firstread.convert.extract import extract
    from firstread.erofs.reader import read_tree
    from firstread.sectors.content import ContentReader

    with opened_image(reference, access) as (repository, resolved, image):
        names = extract(read_tree(image.erofs), ContentReader(repository, image), directory)
    if as_json:
        show(
            {
                "reference": str(reference),
                "digest": resolved.descriptor.digest,
                "directory": str(directory),
                "names": names,
            }
        )
    else:
        report([f"{directory}: {names} names from {reference}"])

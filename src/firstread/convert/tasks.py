# SPDX-License-Identifier: Apache-2.0
"""The tasks of an image, for engines that run commands: what `convert` would have packed."""

from __future__ import annotations

from firstread.convert.conversion import ConvertOptions, ImageConversion
from firstread.convert.destination import check_destination
from firstread.convert.job import naming_image
from firstread.convert.layertask import LayerTask
from firstread.convert.original import source_layers
from firstread.oci.reference import Reference
from firstread.oci.resolve import resolve
from firstread.registry.open import open_destination, open_source


def layer_tasks(
    source: Reference, destination: Reference, options: ConvertOptions
) -> list[LayerTask]:
    """Return the tasks that pack the layers of an image for `destination`, but the known ones.

    Args:
        source: as for `convert`.
        destination: likewise.
        options: see `ConvertOptions`.

    Raises:
        FirstreadError: names the image.
    """
    check_destination(source, destination)
    with naming_image(source), open_source(source, options.source_options) as opened_source:
        layers = source_layers(resolve(opened_source, options.platform))
        with open_destination(destination, options.destination_options) as opened:
            work = ImageConversion(source, destination, options, opened_source, opened)
            return work.tasks(layers)

# SPDX-License-Identifier: Apache-2.0
"""``firstread pull``: an image for containerd, without its data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from firstread.cli.options import REFERENCE
from firstread.cli.output import report
from firstread.cli.progressdisplay import PeriodicLines
from firstread.errors import UsageError
from firstread.snapshotter.sockets import CONTAINERD


@click.command()
@click.argument("image", type=REFERENCE)
@click.option("--namespace", "-n", default="default", show_default=True, help="In containerd.")
@click.option(
    "--containerd",
    "address",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="CONTAINERD_ADDRESS",
    default=CONTAINERD,
    show_default=True,
    help="Socket of containerd.",
)
@click.option(
    "--snapshotter", default="firstread", show_default=True, help="Its name in containerd."
)
@click.option(
    "--layers",
    is_flag=True,
    help="Copy the layers of an image that is in containerd; it stays lazy.",
)
def command(image: Any, namespace: str, address: Path, snapshotter: str, layers: bool) -> None:
    """Pull IMAGE into containerd, without its data.

    This replaces the pull of clients that fetch whole images before they ask, such as ctr of
    containerd 1.6. Then 'ctr run --snapshotter firstread IMAGE ID' runs the image. Kubernetes and
    crictl need no such help.

    A lazy pull, by whichever client, leaves layers in the registry. With --layers, they are copied
    for clients that save or export IMAGE, or push what was built from it (docs/docker.md).
    """
    from firstread.snapshotter.containerdpull import pull
    from firstread.snapshotter.layercopy import copy_layers
    from firstread.units import counted, format_size

    if image.transport != "docker":
        raise UsageError(f"{image} is not in a registry", hint="push it to one first")
    steps = [""]
    begun = time.monotonic()
    with PeriodicLines(lambda: f"after {time.monotonic() - begun:.0f} s: {steps[-1]}"):
        if layers:
            count, size = copy_layers(image, address.absolute(), namespace, on_step=steps.append)
            said = f"copied {counted(count, 'layer')} of {image}, {format_size(size)}"
        else:
            name = pull(image, address.absolute(), namespace, snapshotter, on_step=steps.append)
            said = f"{name} is in containerd's namespace {namespace}"
    report([said])

# SPDX-License-Identifier: Apache-2.0
"""``firstread umount``: the end of a mount."""

from __future__ import annotations

import os
from pathlib import Path

import click

from firstread.cli.nodestate import daemon_of, recorded_mounts
from firstread.cli.options import node_options
from firstread.errors import UsageError


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--lazy", is_flag=True, help="Detach the mount now, even if it is busy.")
@node_options
def command(directory: Path, lazy: bool, root: Path, run_dir: Path) -> None:
    """Unmount the image at DIR. Fetched data stays in the store."""
    from firstread.control.client import Client

    place, was_alive = os.path.realpath(directory), Client(run_dir).alive()
    if not was_alive and place not in recorded_mounts(root):
        raise UsageError(
            f"{directory} is not a mount of firstread",
            hint=f"no mount is recorded below {root}, and no daemon runs in {run_dir}",
        )
    try:
        daemon_of(root, run_dir).umount(str(directory.absolute()), lazy=lazy)
    except UsageError:
        if was_alive or place in recorded_mounts(root):
            raise
        # It was lost, and the daemon that this command has started has taken it away.

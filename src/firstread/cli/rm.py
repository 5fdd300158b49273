# SPDX-License-Identifier: Apache-2.0
"""``firstread rm``: the removal of a container."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from firstread.cli.nodestate import container_store, for_each, release_mount
from firstread.cli.options import node_options


@click.command()
@click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Kill it first if it runs.")
@node_options
def command(containers: tuple[str, ...], force: bool, root: Path, run_dir: Path) -> None:
    """Remove each CONTAINER: its files, its log, its record."""
    from firstread.run.control import remove_container

    store = container_store(root)
    release = functools.partial(release_mount, root, run_dir)
    for_each(
        containers,
        store,
        lambda record: remove_container(store, record, force=force, on_unused=release),
    )

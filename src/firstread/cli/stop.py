# SPDX-License-Identifier: Apache-2.0
"""``firstread stop``: the orderly end of a container."""

from __future__ import annotations

from pathlib import Path

import click

from firstread.cli.nodestate import container_store, for_each
from firstread.cli.options import SecondsType, node_options


@click.command()
@click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True)
@click.option(
    "-t",
    "--time",
    "timeout_s",
    type=SecondsType(),
    default=10.0,
    show_default=True,
    help="Seconds until SIGKILL.",
)
@node_options
def command(containers: tuple[str, ...], timeout_s: float, root: Path, run_dir: Path) -> None:
    """Send each CONTAINER its stop signal, and kill it after a while if it still runs."""
    from firstread.run.control import stop_container

    store = container_store(root)
    for_each(containers, store, lambda record: stop_container(store, record, timeout_s))

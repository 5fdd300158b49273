# SPDX-License-Identifier: Apache-2.0
"""``firstread logs``: what a detached container has printed."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from firstread.cli.containers import container_store
from firstread.cli.options import node_options
from firstread.cli.output import writing


@click.command()
@click.argument("container")
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@click.option("-t", "--timestamps", is_flag=True, help="Put the time before each line.")
@node_options
def command(container: str, follow: bool, timestamps: bool, root: Path, run_dir: Path) -> None:
    """Show the output of the detached CONTAINER, named by name or id."""
    from firstread.run.control import read_container_log

    store = container_store(root)
    in_line: dict[str, bool] = {}
    with writing():
        for entry in read_container_log(store, store.find(container), follow=follow):
            stream = sys.stderr if entry.stream == "stderr" else sys.stdout
            # A line that was written in pieces has the time of its first.
            if timestamps and not in_line.get(entry.stream):
                stream.buffer.write(f"{entry.time} ".encode())
            in_line[entry.stream] = not entry.content.endswith(b"\n")
            stream.buffer.write(entry.content)
            stream.flush()

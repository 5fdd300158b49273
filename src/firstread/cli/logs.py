# SPDX-License-Identifier: Apache-2.0
"""``firstread logs``: the output of a detached container."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import click

from firstread.cli.nodestate import container_store
from firstread.cli.options import node_options
from firstread.cli.output import writing

ALL = -1


class LinesType(click.ParamType[int]):
    """A number of lines, or all."""

    name = "lines"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value in ("all", ALL):
            return ALL
        if not re.fullmatch("-?[0-9]{1,18}", str(value)):
            self.fail(f"{value!r} is neither a number of lines nor 'all'", param, ctx)
        return max(int(value), ALL)  # docker and kubectl accept -1 for all


@click.command()
@click.argument("container")
@click.option("-f", "--follow", is_flag=True, help="Continue until the container ends.")
@click.option("-t", "--timestamps", is_flag=True, help="Put the time before each line.")
@click.option(
    "-n",
    "--tail",
    type=LinesType(),
    default="all",
    show_default=True,
    help="Number of last lines to show; with --follow, all later ones, too.",
)
@click.option(
    "--since",
    metavar="TIME",
    help="Skip older output: 10m, 1h30m, 2026-01-31T12:00:00Z, or seconds since 1970.",
)
@node_options
def command(
    container: str,
    follow: bool,
    timestamps: bool,
    tail: int,
    since: str | None,
    root: Path,
    run_dir: Path,
) -> None:
    """Show the output of the detached CONTAINER, named by name or id."""
    from firstread.run.control import read_container_log
    from firstread.run.parse import parse_moment

    earliest = parse_moment(since, time.time()) if since is not None else 0.0
    store = container_store(root)
    entries = read_container_log(
        store,
        store.find(container),
        follow=follow,
        tail=None if tail == ALL else tail,
        since=earliest,
    )
    in_line: dict[str, bool] = {}
    with writing():
        for entry in entries:
            stream = sys.stderr if entry.stream == "stderr" else sys.stdout
            # A line in several parts has the time of the first.
            if timestamps and not in_line.get(entry.stream):
                stream.buffer.write(f"{entry.time} ".encode())
            in_line[entry.stream] = not entry.content.endswith(b"\n")
            stream.buffer.write(entry.content)
            stream.flush()

# SPDX-License-Identifier: Apache-2.0
"""``firstread exec``: another process in a container."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from firstread.cli.nodestate import container_store
from firstread.cli.options import node_options


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Keep standard input open.")
@click.option("-t", "--tty", is_flag=True, help="Give the process a terminal.")
@click.option(
    "-e",
    "--env",
    metavar="NAME[=VALUE]",
    multiple=True,
    help="Set a variable, or pass on the caller's.  [repeatable]",
)
@click.option(
    "--env-file", metavar="FILE", multiple=True, help="Read variables from a file.  [repeatable]"
)
@click.option("-u", "--user", metavar="USER[:GROUP]", help="User and group, by name or number.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory.")
@node_options
@click.argument("container")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="CMD...")
def command(root: Path, run_dir: Path, container: str, **flags: Any) -> int:
    """Run CMD in a running CONTAINER, in the environment of its first process.

    Options and exit codes are those of docker exec: the code is the command's; 125 if firstread
    itself fails, 126 if the command cannot be invoked, 127 if it is not found.
    """
    from firstread.run.commandline import hide_values
    from firstread.run.execute import ExecOptions, exec_in_container
    from firstread.run.options import check_workdir, parse_environment
    from firstread.signals import unwinding_on_signals

    hide_values(flags["env"])
    options = ExecOptions(
        command=flags["command"],
        interactive=flags["interactive"],
        tty=flags["tty"],
        env=parse_environment(flags, os.environ),
        user=flags["user"] or None,
        workdir=check_workdir(flags["workdir"]) if flags["workdir"] else None,
    )
    store = container_store(root)
    with unwinding_on_signals():
        return exec_in_container(store, store.find(container), options)

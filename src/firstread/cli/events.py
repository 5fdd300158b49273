# SPDX-License-Identifier: Apache-2.0
"""``firstread events``: what happens on this node, live."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from firstread.cli.options import json_option, node_options


@click.command()
@node_options
@json_option
def command(root: Path, run_dir: Path, as_json: bool) -> None:
    """Show reads of absent sectors, sectors that become present, and errors, as they happen."""
    from firstread.node.client import Client

    for event in Client(run_dir).events():
        if as_json:
            click.echo(json.dumps(event))
        else:
            clock = time.strftime("%H:%M:%S", time.localtime(event.pop("time")))
            kind = event.pop("event")
            words = "  ".join(f"{name}={value}" for name, value in event.items())
            click.echo(f"{clock}  {kind:8} {words}")

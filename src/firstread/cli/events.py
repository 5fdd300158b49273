# SPDX-License-Identifier: Apache-2.0
"""``firstread events``: the events of this node, live."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from firstread.cli.options import json_option, node_options
from firstread.cli.output import writing
from firstread.printable import printable


@click.command()
@node_options
@json_option
def command(root: Path, run_dir: Path, as_json: bool) -> None:
    """Show reads of absent sectors, sectors that become present, and errors, as they happen."""
    from firstread.control.client import Client

    with writing():
        for event in Client(run_dir).events():
            click.echo(json.dumps(event) if as_json else printable(_line(event)))


def _line(event: dict[str, Any]) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(event.pop("time")))
    kind = event.pop("event")
    words = "  ".join(f"{name}={value}" for name, value in event.items())
    return f"{clock}  {kind:8} {words}"

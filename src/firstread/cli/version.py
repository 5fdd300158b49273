# SPDX-License-Identifier: Apache-2.0
"""``firstread version``: which versions are at work here."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import click

from firstread import __version__
from firstread.cli.options import json_option, node_options
from firstread.cli.output import report, show

STATUS_S = 5.0  # for a daemon to answer


@click.command()
@node_options
@json_option
def command(root: Path, run_dir: Path, as_json: bool) -> None:
    """Show the versions of this command, of the daemon if one runs, and of the kernel."""
    from firstread.errors import FirstreadError
    from firstread.node.client import Client

    daemon, said = None, f"none runs in {run_dir}"
    client = Client(run_dir, timeout_s=STATUS_S)
    if client.alive():
        try:
            status = client.get("/status")
            daemon = {name: status["supervisor"][name] for name in ("version", "pid")}
            said = f"{daemon['version']} (process {daemon['pid']})"
        except FirstreadError as exc:
            said = f"does not say: {exc}"
    elif client.closed_to_us():
        said = f"unknown: this user may not ask in {run_dir}"
    system = os.uname()
    if as_json:
        show(
            {
                "version": __version__,
                "daemon": daemon,
                "kernel": system.release,
                "machine": system.machine,
                "python": platform.python_version(),
            }
        )
    else:
        report(
            [
                f"firstread  {__version__}",
                f"daemon     {said}",
                f"kernel     {system.sysname} {system.release} {system.machine}",
                f"python     {platform.python_version()}",
            ]
        )

# SPDX-License-Identifier: Apache-2.0
"""``firstread version``: the versions at work here."""

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
    from firstread.control.client import Client
    from firstread.errors import FirstreadError

    daemon, said = None, f"none runs in {run_dir}"
    client = Client(run_dir, timeout_s=STATUS_S)
    if client.alive():
        try:
            status = client.get("/status")
            daemon = status["supervisor"]
            said = f"{daemon['version']} (process {daemon['pid']})"
        except FirstreadError as exc:
            said = f"does not say: {exc}"
    elif client.closed_to_us():
        said = f"unknown: this user may not ask in {run_dir}"
    system = os.uname()
    if as_json:
        from firstread.cli.shown import DaemonVersion, Versions

        process = None if daemon is None else DaemonVersion(daemon["version"], daemon["pid"])
        python = platform.python_version()
        show(Versions(__version__, process, system.release, system.machine, python))
    else:
        report(
            [
                f"firstread  {__version__}",
                f"daemon     {said}",
                f"kernel     {system.sysname} {system.release} {system.machine}",
                f"python     {platform.python_version()}",
            ]
        )

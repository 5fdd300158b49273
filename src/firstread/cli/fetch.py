# SPDX-License-Identifier: Apache-2.0
"""``firstread fetch``: all of an image, now."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from firstread.cli.containers import recorded_mounts
from firstread.cli.options import json_option, node_options
from firstread.cli.output import complain, report, show
from firstread.cli.progress import INTERVAL_S
from firstread.errors import TransportError, UsageError

STUCK_S = 60.0  # without progress and with errors, after which waiting makes no sense


@click.command()
@click.argument("name", metavar="DIR|REF")
@click.option("--all", "everything", is_flag=True, help="All sectors (the only choice so far).")
@node_options
@json_option
def command(name: str, everything: bool, root: Path, run_dir: Path, as_json: bool) -> None:
    """Fetch all of the image mounted at DIR, or mounted from REF, and keep it on this node.

    Afterwards the mount needs its registry no more: status calls it self-sufficient.
    """
    from firstread.node.client import Client, connected

    if not everything:
        raise UsageError("say what to fetch", hint="firstread fetch --all DIR")
    if not Client(run_dir).alive() and not recorded_mounts(root):
        raise UsageError(
            f"{name} is not mounted", hint=f"nothing is, and no daemon runs in {run_dir}"
        )
    client = connected(root, run_dir)
    mount = _find(client.get("/status"), name)
    client.post("/pin", directory=mount["mountpoint"])
    counting = sys.stderr.isatty() and not as_json
    told = time.monotonic()
    best, since, errors, idle = -1, time.monotonic(), 0, 0
    while not mount["self_sufficient"]:
        asked = time.monotonic()
        mount = _find(client.get("/status"), mount["mountpoint"])
        if mount["present"] > best:
            best, since, errors, idle = mount["present"], asked, mount["fetch_errors"], 0
        else:
            # Twice: status counts what is present before it counts what is wanted.
            idle = 0 if mount["wanted"] else idle + 1
            fails = mount["fetch_errors"] != errors and asked - since > STUCK_S
            if idle > 1 or fails:
                why = mount["last_error"] or "the log of the daemon says why"
                raise TransportError(
                    f"{mount['sectors'] - best} sectors cannot be fetched: {why}",
                    image=mount["image"],
                )
        how_far = f"{mount['present']} of {mount['sectors']} sectors"
        if counting:
            click.echo(f"\r{how_far}", err=True, nl=False)
        elif not as_json and asked - told >= INTERVAL_S:
            told = asked
            complain([f"{how_far} are on this node"])
        time.sleep(max(0.1, 5 * (time.monotonic() - asked)))  # status costs more with more sectors
    if counting:
        click.echo(err=True)
    if as_json:
        show(mount)
    else:
        report([f"{mount['mountpoint']}: all {mount['sectors']} sectors are on this node"])


def _find(status: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the mount that `name` means: its directory, or its image."""
    place = str(Path(name).absolute())
    for mount in status["mounts"]:
        found: dict[str, Any] = mount
        if name in (mount["image"], mount["digest"]) or place == mount["mountpoint"]:
            return found
    from firstread.oci.reference import parse_reference

    wanted = str(parse_reference(name).absolute())
    for mount in status["mounts"]:
        found = mount
        if mount["image"] == wanted:
            return found
    raise UsageError(f"{name} is not mounted", hint="firstread status lists the mounts")

# SPDX-License-Identifier: Apache-2.0
"""``firstread fetch``: all of an image, now."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from firstread.cli.nodestate import daemon_of, recorded_mounts
from firstread.cli.options import json_option, node_options
from firstread.cli.output import complain, report, show
from firstread.cli.progressdisplay import INTERVAL_S
from firstread.errors import TransportError, UsageError

if TYPE_CHECKING:
    from firstread.control.client import Client

STUCK_S = 60.0  # without progress and with errors, until the command gives up


@click.command()
@click.argument("name", metavar="DIR|REF")
@click.option("--all", "everything", is_flag=True, help="All sectors (the only choice so far).")
@node_options
@json_option
def command(name: str, everything: bool, root: Path, run_dir: Path, as_json: bool) -> None:
    """Fetch the whole image mounted at DIR, or mounted from REF, and keep it on this node.

    Afterwards the mount no longer needs its registry: status calls it self-sufficient.
    """
    from firstread.control.client import Client

    if not everything:
        raise UsageError("say what to fetch", hint="firstread fetch --all DIR")
    if not Client(run_dir).alive() and not recorded_mounts(root):
        raise UsageError(
            f"{name} is not mounted", hint=f"nothing is, and no daemon runs in {run_dir}"
        )
    client = daemon_of(root, run_dir)
    mount = fetch_whole(client, name, quiet=as_json)
    if as_json:
        show(mount)
    else:
        report([f"{mount['mountpoint']}: all {mount['sectors']} sectors are on this node"])


def fetch_whole(client: Client, name: str, *, quiet: bool) -> dict[str, Any]:
    """Pin a mount, and wait until all of its image is on this node; return its status.

    Args:
        client: of the daemon.
        name: directory or image of the mount.
        quiet: show no progress.

    Raises:
        UsageError: nothing of ours is mounted there.
        TransportError: it cannot be fetched.
    """
    mount = find_mount(client.get("/status"), name)
    client.post("/pin", directory=mount["mountpoint"])
    with _Counter(quiet=quiet) as counter:
        watch = _Watch()
        while not mount["self_sufficient"]:
            asked = time.monotonic()
            mount = find_mount(client.get("/status"), mount["mountpoint"])
            watch.check(mount, asked)
            counter.show(f"{mount['present']} of {mount['sectors']} sectors", asked)
            # A status costs more with more sectors.
            time.sleep(max(0.1, 5 * (time.monotonic() - asked)))
    return mount


class _Watch:
    """Notices that fetching makes no progress any more."""

    def __init__(self) -> None:
        self._present = -1  # sectors, at the last progress
        self._since = time.monotonic()
        self._errors = 0
        self._idle = 0  # statuses without progress and without wanted sectors

    def check(self, mount: dict[str, Any], now: float) -> None:
        """Take a new status of the mount.

        Raises:
            TransportError: it fails, or does nothing, for too long.
        """
        if mount["present"] > self._present:
            self._present, self._since = mount["present"], now
            self._errors, self._idle = mount["fetch_errors"], 0
            return
        # Twice: status counts what is present before it counts what is wanted.
        self._idle = 0 if mount["wanted"] else self._idle + 1
        fails = mount["fetch_errors"] != self._errors and now - self._since > STUCK_S
        if self._idle > 1 or fails:
            why = mount["last_error"] or "the log of the daemon says why"
            raise TransportError(
                f"{mount['sectors'] - self._present} sectors cannot be fetched: {why}",
                image=mount["image"],
            )


class _Counter:
    """Shows progress on stderr: in place on a terminal, else a line every `INTERVAL_S`."""

    def __init__(self, *, quiet: bool) -> None:
        self._on_terminal = sys.stderr.isatty() and not quiet
        self._quiet = quiet
        self._shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._on_terminal and kind is None:
            click.echo(err=True)

    def show(self, text: str, now: float) -> None:
        if self._on_terminal:
            click.echo(f"\r{text}", err=True, nl=False)
        elif not self._quiet and now - self._shown >= INTERVAL_S:
            self._shown = now
            complain([f"{text} are on this node"])


def find_mount(status: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the mount whose directory or image is `name`.

    Raises:
        UsageError: there is none.
    """
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

# SPDX-License-Identifier: Apache-2.0
"""``firstread login``: credentials for mounts that live longer than a password."""

from __future__ import annotations

from pathlib import Path

import click

from firstread.cli.options import login_options, login_request, node_options
from firstread.cli.output import report
from firstread.errors import UsageError


@click.command()
@click.argument("scope", metavar="HOST[/REPOSITORY]")
@node_options
@login_options
def command(scope: str, root: Path, run_dir: Path, login: tuple[str, str] | None) -> None:
    """Give the daemon a password for a registry, or a new one in place of another.

    It is in the memory of the daemon only, goes before what files have, and holds for what is
    mounted already, too. When all processes of the daemon have ended it must be given again.
    """
    from firstread.node.client import connected
    from firstread.oci.reference import parse_reference

    if login is None:
        raise UsageError("say who it is", hint=f"firstread login {scope} --username NAME …")
    if "/" in scope:
        reference = parse_reference(scope)
        if reference.transport != "docker":
            raise UsageError(f"{scope} is no registry")
        scope = f"{reference.host}/{reference.repository}"
    elif not scope:
        raise UsageError(f"{scope!r} is neither HOST nor HOST/REPOSITORY")
    connected(root, run_dir).post("/login", scope=scope, login=login_request(login))
    report([f"the daemon shows {login[0]} to {scope}"])

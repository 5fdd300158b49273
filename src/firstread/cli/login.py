# SPDX-License-Identifier: Apache-2.0
"""``firstread login``: credentials for mounts that live longer than a password."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.options import (
    access_options,
    access_request,
    login_options,
    login_request,
    node_options,
)
from firstread.cli.output import report
from firstread.errors import UsageError

if TYPE_CHECKING:
    from firstread.oci.options import AccessOptions


@click.command()
@click.argument("scope", metavar="HOST[/REPOSITORY]")
@node_options
@access_options
@login_options
def command(
    scope: str,
    root: Path,
    run_dir: Path,
    access: AccessOptions,
    login: tuple[str, str] | None,
) -> None:
    """Give the daemon a password for a registry, or a new one in place of another.

    It is shown to the registry first, and kept only if that takes it: in the memory of the daemon,
    where it goes before what files have, and holds for what is mounted already, too. When all
    processes of the daemon have ended it must be given again.
    """
    from firstread.node.client import Client, connected
    from firstread.oci.login import try_login
    from firstread.oci.logins import Credentials
    from firstread.oci.reference import parse_reference
    from firstread.private import private_directory

    if login is None:
        raise UsageError("say who it is", hint=f"firstread login {scope} --username NAME …")
    if "/" in scope:
        reference = parse_reference(scope)
        if reference.transport != "docker":
            raise UsageError(f"{scope} is no registry")
        scope = f"{reference.host}/{reference.repository}"
    elif not scope:
        raise UsageError(f"{scope!r} is neither HOST nor HOST/REPOSITORY")
    if not Client(run_dir).alive():  # what is refused needs no daemon
        if run_dir.exists():
            private_directory(run_dir)  # before anything is shown to anybody
        try_login(scope, Credentials.of(*login), access)
    connected(root, run_dir).post(
        "/login", scope=scope, login=login_request(login), access=access_request(access)
    )
    report([f"the daemon shows {login[0]} to {scope}"])

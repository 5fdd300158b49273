# SPDX-License-Identifier: Apache-2.0
"""``firstread login``: credentials for mounts that live longer than a password."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.nodestate import daemon_of
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
    from firstread.registry.options import AccessOptions


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
    """Give the daemon a password for a registry, or replace one.

    The registry must accept the password first. The daemon then keeps it in memory, where it
    precedes those in files, and uses it for existing mounts, too. When all processes of the daemon
    have ended, it must be given again.
    """
    from firstread.control.client import Client
    from firstread.oci.reference import parse_reference
    from firstread.private import private_directory
    from firstread.registry.credentials import Credentials
    from firstread.registry.login import try_login

    if login is None:
        raise UsageError("name the user", hint=f"firstread login {scope} --username NAME …")
    if "/" in scope:
        reference = parse_reference(scope)
        if reference.transport != "docker":
            raise UsageError(f"{scope} is not a registry")
        scope = f"{reference.host}/{reference.repository}"
    elif not scope:
        raise UsageError(f"{scope!r} is neither HOST nor HOST/REPOSITORY")
    if not Client(run_dir).alive():  # a refused password needs no daemon
        if run_dir.exists():
            private_directory(run_dir)  # before the password leaves this process
        try_login(scope, Credentials.of(*login), access)
    daemon_of(root, run_dir).post(
        "/login", scope=scope, login=login_request(login), access=access_request(access)
    )
    report([f"the daemon shows {login[0]} to {scope}"])

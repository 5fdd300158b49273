# SPDX-License-Identifier: Apache-2.0
"""``firstread mount``: a converted image at a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firstread.cli.explain import explain_option, explained
from firstread.cli.nodestate import daemon_of
from firstread.cli.options import (
    REFERENCE,
    access_options,
    check_lazy,
    json_option,
    login_options,
    mount_request,
    node_options,
    policy_options,
    pull_option,
)
from firstread.cli.output import complain, report, show
from firstread.errors import FirstreadError
from firstread.idmaps import owner

if TYPE_CHECKING:
    from firstread.oci.reference import Reference
    from firstread.registry.options import AccessOptions


@click.command()
@click.argument("reference", metavar="REF", type=REFERENCE)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@pull_option
@explain_option
@policy_options
@node_options
@access_options
@login_options
@json_option
def command(
    reference: Reference,
    directory: Path,
    pull: str,
    explain: bool,
    root: Path,
    run_dir: Path,
    access: AccessOptions,
    policies: dict[str, Any],
    login: tuple[str, str] | None,
    as_json: bool,
) -> None:
    """Mount the converted image REF read-only at DIR, and fetch its data on demand."""
    client = daemon_of(root, run_dir)
    answer = client.mount(
        image=str(reference.absolute()),
        directory=str(directory.absolute()),
        **mount_request(pull, access, policies, login),
    )
    try:
        check_lazy(answer, policies)
    except FirstreadError:
        client.umount(answer["mountpoint"])
        raise
    if explain:
        complain(explained(answer))
    if as_json:
        show(answer)
    else:
        seconds = sum(answer["timeline"].values())
        place = answer["mountpoint"]
        lines = [f"{reference} is mounted at {place} ({seconds * 1000:.0f} ms)"]
        report([*lines, *([f"  seen by: firstread enter ls {place}"] if owner() else [])])

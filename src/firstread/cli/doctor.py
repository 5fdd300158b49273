# SPDX-License-Identifier: Apache-2.0
"""``firstread doctor``: whether this machine is a good node, from end to end."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.options import (
    DEFAULT_HOSTS_DIRS,
    REFERENCE,
    access_options,
    json_option,
    node_options,
)
from firstread.cli.output import report, show
from firstread.errors import NodeError

if TYPE_CHECKING:
    from firstread.config import RegistryTable
    from firstread.device.probe import Check
    from firstread.oci.options import AccessOptions
    from firstread.oci.reference import Reference

_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.command()
@click.argument("reference", type=REFERENCE, required=False)
@click.option(
    "--config",
    "config_path",
    envvar="FIRSTREAD_CONFIG",
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration (docs/node.md); that of the daemon that runs, else"
    " /etc/firstread/config.toml if it is there.",
)
@access_options
@node_options
@json_option
def command(
    reference: Reference | None,
    config_path: Path | None,
    access: AccessOptions,
    root: Path,
    run_dir: Path,
    as_json: bool,
) -> int:
    """Check this node, and say what to fix: device, configuration, store, limits, daemon, runtime.

    The device is tried on a tiny image below --root, which is gone afterwards. With a REFERENCE
    to an image, whether it can be had as the daemon would: credentials, registry, range requests.

    The exit code is 0 if nothing fails, 5 if something does; a warning is no failure.
    """
    from firstread.device.probe import probe
    from firstread.node.checks import check_configuration, check_node, daemon_status
    from firstread.node.reach import check_clock, check_image
    from firstread.run.checks import check_containers

    device = probe(root)
    status = daemon_status(run_dir)
    settings, configuration = check_configuration(config_path, status)
    checks = [*device, configuration, *check_node(root, run_dir, status), check_clock()]
    checks += check_containers()
    if reference is not None:
        checks += check_image(reference, _as_the_daemon(access, settings))
    usable = all(check.ok for check in device)
    if as_json:
        show(
            {
                "root": str(root),
                "device": "fanotify" if usable else None,
                "checks": [
                    {**dataclasses.asdict(check), "status": check.status} for check in checks
                ],
            }
        )
    else:
        report([*_lines(checks), _verdict(checks, root, usable=usable)])
    return 0 if all(check.ok for check in checks) else NodeError.exit_code


def _as_the_daemon(access: AccessOptions, settings: RegistryTable) -> AccessOptions:
    """Return how the daemon reaches registries, but for what the command line says."""
    own = access.hosts_dirs is DEFAULT_HOSTS_DIRS
    directory = Path(settings.credentials_dir) if settings.credentials_dir else None
    return dataclasses.replace(
        access,
        hosts_dirs=tuple(map(Path, settings.hosts_dirs)) if own else access.hosts_dirs,
        credentials_dir=access.credentials_dir or directory,
        connect_timeout=settings.connect_timeout_s,
        first_byte_timeout=settings.first_byte_timeout_s,
        read_timeout=settings.stall_timeout_s,
    )


def _lines(checks: list[Check]) -> list[str]:
    lines = []
    for check in checks:
        lines.append(f"{_MARKS[check.status]}  {check.name}: {check.detail}")
        lines += [f"      {check.fix}"] if check.fix else []
    return lines


def _verdict(checks: list[Check], root: Path, *, usable: bool) -> str:
    device = f"the fanotify device {'works' if usable else 'does not work'} with {root}"
    counts = {status: sum(check.status == status for check in checks) for status in _MARKS}
    return f"{device}; {counts['fail']} of {len(checks)} checks failed, {counts['warn']} warn"

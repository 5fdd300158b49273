# SPDX-License-Identifier: Apache-2.0
"""``firstread doctor``: whether this machine is a good node, from end to end."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.configoptions import config_option
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
    from firstread.doctor.finding import Finding
    from firstread.doctor.preflight import Preflight
    from firstread.oci.reference import Reference
    from firstread.registry.options import AccessOptions

_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.command()
@click.argument("reference", type=REFERENCE, required=False)
@config_option("that of the daemon that runs, else /etc/firstread/config.toml if it is there")
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
    """Check this node, and say what to fix: devices, configuration, store, limits, daemon, runtime.

    Each device is tried on a tiny image below --root, which is gone afterwards. With a REFERENCE
    to an image, whether it can be had as the daemon would: credentials, registry, range requests.

    The exit code is 0 if nothing fails, 5 if something does; a warning is no failure.
    """
    from firstread.doctor.preflight import preflight

    own_hosts = access.hosts_dirs is not DEFAULT_HOSTS_DIRS
    found = preflight(root, run_dir, config_path, reference, access, own_hosts=own_hosts)
    if as_json:
        from firstread.cli.shown import CheckShown, NodeChecked

        checks = [CheckShown(**dataclasses.asdict(f), status=f.status) for f in found.findings]
        show(NodeChecked(str(root), found.devices.works, checks))
    else:
        report([*_lines(found.findings), _verdict(found, root)])
    return 0 if all(finding.ok for finding in found.findings) else NodeError.exit_code


def _lines(findings: list[Finding]) -> list[str]:
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.status]}  {finding.name}: {finding.detail}")
        lines += [f"      {finding.fix}"] if finding.fix else []
    return lines


def _verdict(found: Preflight, root: Path) -> str:
    works = found.devices.works
    device = f"{f'the device {works} works' if works else 'no device works'} with {root}"
    counts = Counter(finding.status for finding in found.findings)
    return f"{device}; {counts['fail']} of {counts.total()} checks failed, {counts['warn']} warn"

# SPDX-License-Identifier: Apache-2.0
"""``firstread doctor``: whether this machine is a good node, from end to end."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.options import REFERENCE, access_options, json_option, node_options
from firstread.cli.output import report, show
from firstread.errors import NodeError

if TYPE_CHECKING:
    from firstread.device.probe import Check
    from firstread.oci.options import AccessOptions
    from firstread.oci.reference import Reference

_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.command()
@click.argument("reference", type=REFERENCE, required=False)
@access_options
@node_options
@json_option
def command(
    reference: Reference | None, access: AccessOptions, root: Path, run_dir: Path, as_json: bool
) -> int:
    """Check this node, and say what to fix: device, store, limits, clock, daemon, runtime.

    The device is tried on a tiny image below --root, which is gone afterwards. With a REFERENCE
    to a converted image, whether it can be had: credentials, registry, range requests.

    The exit code is 0 if nothing fails, 5 if something does; a warning is no failure.
    """
    from firstread.device.probe import probe
    from firstread.node.checks import check_node
    from firstread.node.reach import check_clock, check_image
    from firstread.run.checks import check_containers

    device = probe(root)
    checks = [*device, *check_node(root, run_dir), check_clock(), *check_containers()]
    if reference is not None:
        checks += check_image(reference, access)
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

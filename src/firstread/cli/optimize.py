# SPDX-License-Identifier: Apache-2.0
"""``firstread optimize``: hot sectors for a converted image, from traces."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.convert import registry_logins
from firstread.cli.hotlines import TRACE_HELP, TRACES, hot_lines
from firstread.cli.options import (
    PLATFORM,
    REFERENCE,
    access_options,
    json_option,
    login_options,
)
from firstread.cli.output import report, show
from firstread.units import format_size

if TYPE_CHECKING:
    from firstread.convert.outcome import Optimization
    from firstread.oci.platform import Platform
    from firstread.oci.reference import Reference
    from firstread.registry.options import AccessOptions


@click.command()
@click.argument("reference", metavar="REF", type=REFERENCE)
@click.argument("destination", metavar="[DEST]", type=REFERENCE, required=False)
@click.option("--trace", "traces", type=TRACES, multiple=True, help=TRACE_HELP)
@click.option(
    "--platform",
    type=PLATFORM,
    help="Which image of an index, such as linux/arm64.  [default: this machine's]",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Sectors compressed at a time.  [default: one for each CPU]",
)
@access_options
@login_options
@json_option
def command(
    reference: Reference,
    destination: Reference | None,
    traces: tuple[Path, ...],
    platform: Platform | None,
    jobs: int | None,
    access: AccessOptions,
    login: tuple[str, str] | None,
    as_json: bool,
) -> None:
    """Copy what a start reads into hot sectors of the converted image REF.

    Nodes fetch hot sectors first, in order. The blobs of layers stay as they are: only hot sectors,
    metadata, config and manifest are uploaded. Hot sectors of an earlier optimization go. Without
    --trace, the traces that are attached to the image say what a start reads. The result replaces
    REF, or gets the name DEST. If REF is an original with a converted image attached, the result is
    attached to it as well. A password on stdin is for the registry of DEST, or for that of REF if
    DEST is left out.
    """
    from firstread.convert.optimize import OptimizeOptions, optimize
    from firstread.memory import keep_large_buffers
    from firstread.signals import unwinding_on_signals
    from firstread.traces.tracedirs import read_traces

    logging.basicConfig(format="firstread: %(message)s", level=logging.WARNING)
    # Only the registry itself: a mirror's copy is no base for an image.
    logins = registry_logins(reference, destination, login)
    access = dataclasses.replace(access, mirrors=False, logins=logins)
    keep_large_buffers()
    options = OptimizeOptions(platform, access, jobs or len(os.sched_getaffinity(0)))
    with unwinding_on_signals(threads=True):
        result = optimize(reference, destination, read_traces(traces), options)
    if as_json:
        show(result)
    else:
        report(_lines(result))


def _lines(result: Optimization) -> list[str]:
    lines = [
        result.destination,
        f"  digest    {result.digest}{'  (as before)' if result.unchanged else ''}",
        *hot_lines(result.hot),
        f"  metadata  {format_size(result.metadata_size)}, fetched before a mount",
    ]
    if result.attached_to:
        lines.append(f"  attached  to {result.attached_to}")
        if result.chosen != result.digest:
            lines.append(
                f"  note      nodes take another conversion attached to it: {result.chosen}"
            )
    return [*lines, f"  took      {result.seconds:.1f} s"]

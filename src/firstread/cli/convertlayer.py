# SPDX-License-Identifier: Apache-2.0
"""``firstread convert-layer``: one task of a conversion, for engines that run commands."""

from __future__ import annotations

import sys

import click

from firstread.cli.options import json_option
from firstread.cli.output import report
from firstread.errors import UsageError, from_os_error


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Pack the layer that the task on stdin names, and put it into its repository.

    stdin is one task, as 'firstread convert --tasks' prints it; stdout is the OCI descriptor of the
    sector blob. A layer that somebody packed before is found there and not packed again, so a task
    may run any number of times, anywhere. --json changes only the form of errors: it puts them on
    stdout, too.

    This is the function that --engine calls; docs/cluster.md shows it in a workflow of Argo.
    """
    from firstread.convert.layertask import MAX_TASK_SIZE
    from firstread.convert.worker import run_task
    from firstread.signals import unwinding_on_signals

    try:
        text = sys.stdin.buffer.read(4 * MAX_TASK_SIZE)
    except OSError as exc:
        raise from_os_error(exc, "cannot read the task on stdin") from exc
    if not text.strip():
        raise UsageError(
            "there is no task on stdin",
            hint="firstread convert --tasks SOURCE DEST prints one for each layer",
        )
    with unwinding_on_signals(threads=True):
        report([run_task(text.strip().decode(errors="replace"))])

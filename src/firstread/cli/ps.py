# SPDX-License-Identifier: Apache-2.0
"""``firstread ps``: the containers of this node."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.nodestate import container_store
from firstread.cli.options import json_option, node_options
from firstread.cli.output import report, show, table

if TYPE_CHECKING:
    from firstread.cli.shown import ContainerShown
    from firstread.run.containers import Record

_COLUMNS = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES")


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Include containers that ended.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@node_options
@json_option
def command(everything: bool, quiet: bool, root: Path, run_dir: Path, as_json: bool) -> None:
    """List the running containers."""
    from firstread.run.containers import Status

    shown = set(Status) if everything else {Status.RUNNING, Status.CREATED}
    states = container_store(root).list_states()
    records = [(record, status) for record, status in states if status in shown]
    if as_json:
        from firstread.cli.shown import ContainersShown

        show(ContainersShown([_document(record, status.value) for record, status in records]))
    elif quiet:
        report(record.short_id for record, _ in records)
    else:
        report(table(_COLUMNS, (_row(record, status.value) for record, status in records)))


def _row(record: Record, status: str) -> tuple[str, ...]:
    command = shlex.join(record.command)
    ended = f" ({record.exit_code})" if record.exit_code is not None else ""
    return (
        record.short_id,
        record.image,
        command if len(command) <= 30 else command[:29] + "…",
        _ago(record.created),
        status + ended,
        record.name,
    )


def _ago(moment: float) -> str:
    seconds = max(0, int(time.time() - moment))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _document(record: Record, status: str) -> ContainerShown:
    from firstread.cli.shown import ContainerShown

    return ContainerShown(
        id=record.id,
        name=record.name,
        image=record.image,
        command=list(record.command),
        created=record.created,
        started=record.started,
        finished=record.finished,
        status=status,
        exit_code=record.exit_code,
        pid=record.process.pid if record.process else None,
        labels=dict(record.labels),
    )

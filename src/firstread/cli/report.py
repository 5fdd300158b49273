# SPDX-License-Identifier: Apache-2.0
"""``firstread report``: a start, or several, as one page of HTML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.options import json_option, node_options
from firstread.cli.output import check_output, report, show, write_whole
from firstread.errors import UsageError, from_os_error

if TYPE_CHECKING:
    from firstread.report.shownstart import Start
    from firstread.report.startrecord import StartRecord


@click.command()
@click.argument("names", metavar="[DIR|REF|FILE]...", nargs=-1)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the page here."
)
@node_options
@json_option
def command(
    names: tuple[str, ...], output: Path | None, root: Path, run_dir: Path, as_json: bool
) -> None:
    """Make a page about starts: what they waited for, fetched and read. Several are compared.

    A start is the image mounted at DIR or from REF, a trace, or the record that run --record or
    report --json has written. Without a name: every mount of this node.
    """
    from firstread.report.page import MOST_STARTS, page
    from firstread.report.shownstart import of_record

    names = names or tuple(_mounts(run_dir))
    if as_json:
        if output or len(names) != 1 or os.path.isfile(names[0]):
            raise UsageError("--json prints the record of one mount")
        show(_record(names[0], root, run_dir))
        return
    if output is None:
        raise UsageError("say where the page goes", hint="firstread report REF -o report.html")
    if not 0 < len(names) <= MOST_STARTS:
        raise UsageError(f"a page compares 1 to {MOST_STARTS} starts, not {len(names)}")
    check_output(output)
    starts: list[Start] = [
        _from_file(Path(name))
        if os.path.isfile(name)
        else of_record(_record(name, root, run_dir))
        for name in names
    ]  # fmt: skip
    write_whole(output, page(starts))
    report([f"{output}: a page about {', '.join(start.name for start in starts)}"])


def _mounts(run_dir: Path) -> list[str]:
    from firstread.control.client import Client

    mounts = Client(run_dir).get("/status")["mounts"]
    if not mounts:
        raise UsageError("nothing is mounted", hint="name a trace or a record of a start")
    return [mount["mountpoint"] for mount in mounts]


def _record(name: str, root: Path, run_dir: Path) -> StartRecord:
    """Return the record of a mount that stands."""
    from firstread.cli.fetch import find_mount
    from firstread.cli.nodestate import container_store
    from firstread.cli.recording import add_container, history_of, record_of
    from firstread.control.client import Client

    client = Client(run_dir)
    mount = find_mount(client.get("/status"), name)
    history = history_of(client, mount["mountpoint"])
    if mount["holders"]:
        containers = [each for each in container_store(root).list() if each.id in mount["holders"]]
        add_container(history, containers)
    return record_of(history, root)


def _from_file(path: Path) -> Start:
    """Return the start in a file: a record or a trace."""
    from firstread.report.shownstart import of_record, of_trace
    from firstread.report.startrecord import is_record, read_record
    from firstread.traces.savedtrace import load_trace

    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as exc:
        raise from_os_error(exc, f"cannot read {path}") from exc
    if is_record(head):
        return of_record(read_record(path), path.stem)
    return of_trace(load_trace(path), path.stem)

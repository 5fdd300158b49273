# SPDX-License-Identifier: Apache-2.0
"""``firstread cache``: what is on this node, with a daemon or without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firstread.cli.options import SIZE, json_option, node_options
from firstread.cli.output import report, show
from firstread.errors import NodeError
from firstread.units import counted, format_size

if TYPE_CHECKING:
    from firstread.node.client import Client
    from firstread.node.unattended import Unattended

Document = dict[str, Any]

_COLUMNS = ("IMAGE", "STATE", "SECTORS", "HERE", "ALONE", "USED")


@click.group()
def command() -> None:
    """List, prune and verify what is on this node; no daemon needs to run."""


@command.command("ls", short_help="List images, and what each has here.")
@node_options
@json_option
def list_images(root: Path, run_dir: Path, as_json: bool) -> None:
    """List images, and what each has on this node: alone, and shared with others."""
    document = _asked(root, run_dir, lambda c: c.get("/cache"), lambda u: u.listing())
    if as_json:
        show(document)
        return
    rows = [_COLUMNS, *map(_row, document["images"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    report([*lines, "", *_summary(document)])


@command.command("prune", short_help="Remove what is not mounted.")
@click.option(
    "--to",
    "keep_bytes",
    type=SIZE,
    metavar="SIZE",
    default="0",
    help="Stop when the sectors that are left have this size, such as 10GiB.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@node_options
@json_option
def prune(keep_bytes: int, dry_run: bool, root: Path, run_dir: Path, as_json: bool) -> None:
    """Remove images that are not mounted, and their sectors; those used longest ago go first.

    What a mounted image has stays. Files without bytes that no mounted image needs go always.
    """
    document = _asked(
        root,
        run_dir,
        lambda c: c.post("/cache/prune", keep_bytes=keep_bytes, dry_run=dry_run),
        lambda u: u.prune(keep_bytes, dry_run=dry_run),
    )
    if as_json:
        show(document)
        return
    images, sectors = (
        counted(len(document["images"]), "image"),
        counted(document["sectors"], "sector"),
    )
    would = "would be removed" if dry_run else "were removed"
    report([f"{images} and {sectors} ({format_size(document['bytes'])}) {would}"])


@command.command("verify", short_help="Check all of it against its digests.")
@click.option("--repair", is_flag=True, help="Fetch again what is damaged, or remove it.")
@node_options
@json_option
def verify(repair: bool, root: Path, run_dir: Path, as_json: bool) -> int:
    """Read all that is on this node from the disk, and check it against its digests.

    With --repair, damaged sectors of mounted images are emptied while their reads wait, and fetched
    again; what is not mounted is removed, and comes again with its next read. Mounts that stand
    without a daemon are left alone.

    The exit code is 0 if nothing is left that is damaged or could not be read, 5 otherwise.
    """
    from firstread.node.inspection import is_sound

    document = _asked(
        root,
        run_dir,
        lambda c: c.post("/cache/verify", repair=repair),
        lambda u: u.verify(repair=repair),
    )
    sound = is_sound(document)
    if as_json:
        show({**document, "ok": sound})
    else:
        report(_findings(document, sound=sound, repair=repair))
    return 0 if sound else NodeError.exit_code


def _asked(
    root: Path,
    run_dir: Path,
    attended: Callable[[Client], Document],
    unattended: Callable[[Unattended], Document],
) -> Document:
    """Ask the daemon, or do it here if there is none."""
    from firstread.node.client import Client

    client = Client(run_dir)
    if client.alive():
        return attended(client)
    from firstread.node.unattended import Unattended

    with Unattended.open(root) as cache:
        return unattended(cache)


def _row(image: Document) -> tuple[str, ...]:
    name = ", ".join(image["names"]) or image["digest"][:19]
    state = "damaged" if image["problem"] else "mounted" if image["mounts"] else "not mounted"
    return (
        name,
        "pinned" if image["pinned"] else state,
        f"{image['present']} of {image['sectors']}",
        format_size(image["bytes"]),
        format_size(image["alone_bytes"]),
        "now" if image["mounts"] else _ago(time.time() - image["last_used"]),
    )


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


def _summary(document: Document) -> list[str]:
    store, unclaimed = document["store"], document["unclaimed"]
    limit = f" of {format_size(store['limit_bytes'])}" if store["limit_bytes"] else ""
    of_files = f" of {store['limit_files']:,}" if store["limit_files"] else ""
    lines = [
        f"{counted(store['sectors'], 'sector')}, {format_size(store['bytes'])}{limit};"
        f" {format_size(store['free_bytes'])} are free",
        f"{format_size(store['metadata_bytes'])} of metadata;"
        f" {counted(store['files'], 'file')}{of_files}{_free_files(store)}",
    ]
    if unclaimed["sectors"]:
        lines.append(
            f"{counted(unclaimed['sectors'], 'sector')}, {format_size(unclaimed['bytes'])},"
            " of no image that is here: firstread cache prune removes them"
        )
    return lines


def _free_files(store: Document) -> str:
    if store["free_files"] is None:
        return ""
    return f"; the file system has room for {store['free_files']:,} more"


def _findings(document: Document, *, sound: bool, repair: bool) -> list[str]:
    became = {
        "damaged": "is damaged",
        "emptied": "was damaged, and is fetched again",
        "removed": "was damaged, and is removed",
        "unread": "could not be read",
    }
    lines = [
        f"sector {found['sector'][:16]}… of {found['image']} {became[found['outcome']]}"
        for found in document["damaged"]
    ]
    lines += [
        f"image {found['digest']} {became[found['outcome']]}: {found['problem']}"
        for found in document["images"]
    ]
    lines.append(
        f"{counted(document['checked'], 'sector')}, {format_size(document['checked_bytes'])},"
        f" checked: {len(document['damaged'])} damaged"
    )
    others = [
        f"{document[kind]} {text}"
        for kind, text in (
            ("partial", "are not whole"),
            ("busy", "were in use"),
            ("unclaimed", "are of no image that is here"),
            ("aside", "wait for a check since the last reboot"),
        )
        if document[kind]
    ]
    if others:
        lines.append(f"not checked: {', '.join(others)}")
    if not sound:
        lines.append(
            "what is left is mounted, and no daemon runs: start one, and repair again"
            if repair
            else "repair it with: firstread cache verify --repair"
        )
    return lines

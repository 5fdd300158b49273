# SPDX-License-Identifier: Apache-2.0
"""``firstread cache``: what is on this node, with a daemon or without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.options import SIZE, json_option, node_options
from firstread.cli.output import report, show, table
from firstread.errors import NodeError
from firstread.units import counted, format_size

if TYPE_CHECKING:
    from firstread.cache.report import ImageRow, Listing, StoreFigures, Verified
    from firstread.control.client import Client
    from firstread.daemon.offline import Unattended

_COLUMNS = ("IMAGE", "STATE", "SECTORS", "HERE", "ALONE", "USED")


@click.group()
def command() -> None:
    """List, prune and verify what is on this node; no daemon needs to run."""


@command.command("ls", short_help="List images and their sectors here.")
@node_options
@json_option
def list_images(root: Path, run_dir: Path, as_json: bool) -> None:
    """List images and their sectors on this node, alone and shared with others."""
    from firstread.cache.report import Listing
    from firstread.documents import decode

    found = _asked(root, run_dir, lambda c: c.get("/cache"), lambda u: u.listing())
    if as_json:
        show(found)
        return
    listing = decode(found, Listing)
    report([*table(_COLUMNS, map(_row, listing.images)), "", *_summary(listing)])


@command.command("prune", short_help="Remove unmounted images.")
@click.option(
    "--to",
    "keep_bytes",
    type=SIZE,
    metavar="SIZE",
    default="0",
    help="Stop when the remaining sectors have this size, such as 10GiB.",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@node_options
@json_option
def prune(keep_bytes: int, dry_run: bool, root: Path, run_dir: Path, as_json: bool) -> None:
    """Remove images that are not mounted, and their sectors, least recently used first.

    Sectors of mounted images stay. Empty files that no mounted image needs always go.
    """
    from firstread.cache.report import Pruned
    from firstread.documents import decode

    found = _asked(
        root,
        run_dir,
        lambda c: c.post("/cache/prune", keep_bytes=keep_bytes, dry_run=dry_run),
        lambda u: u.prune(keep_bytes, dry_run=dry_run),
    )
    if as_json:
        show(found)
        return
    pruned = decode(found, Pruned)
    images, sectors = counted(len(pruned.images), "image"), counted(pruned.sectors, "sector")
    would = "would be removed" if dry_run else "were removed"
    report([f"{images} and {sectors} ({format_size(pruned.bytes)}) {would}"])


@command.command("verify", short_help="Check everything against its digests.")
@click.option("--repair", is_flag=True, help="Fetch damaged sectors again, or remove them.")
@node_options
@json_option
def verify(repair: bool, root: Path, run_dir: Path, as_json: bool) -> int:
    """Read everything on this node from the disk, and check it against its digests.

    With --repair, the daemon empties damaged sectors of mounted images while their reads wait, and
    fetches them again; it removes those of other images, which their next read fetches. Without a
    daemon, mounts that still stand are left alone.

    The exit code is 0 if nothing remains damaged or unreadable, 5 otherwise.
    """
    from firstread.cache.report import Verified
    from firstread.documents import decode

    found = _asked(
        root,
        run_dir,
        lambda c: c.post("/cache/verify", repair=repair),
        lambda u: u.verify(repair=repair),
    )
    verified = decode(found, Verified)
    if as_json:
        show(found)
    else:
        report(_findings(verified, repair=repair))
    return 0 if verified.ok else NodeError.exit_code


def _asked(
    root: Path,
    run_dir: Path,
    attended: Callable[[Client], object],
    unattended: Callable[[Unattended], object],
) -> object:
    """Ask the daemon, or do it in this process if none runs."""
    from firstread.control.client import Client

    client = Client(run_dir)
    if client.alive():
        return attended(client)
    from firstread.daemon.offline import Unattended

    with Unattended.open(root) as cache:
        return unattended(cache)


def _row(image: ImageRow) -> tuple[str, ...]:
    name = ", ".join(image.names) or image.digest[:19]
    state = "damaged" if image.problem else "mounted" if image.mounts else "not mounted"
    return (
        name,
        "pinned" if image.pinned else state,
        f"{image.present} of {image.sectors}",
        format_size(image.bytes),
        format_size(image.alone_bytes),
        "now" if image.mounts else _ago(time.time() - image.last_used),
    )


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


def _summary(listing: Listing) -> list[str]:
    store, unclaimed = listing.store, listing.unclaimed
    limit = f" of {format_size(store.limit_bytes)}" if store.limit_bytes else ""
    of_files = f" of {store.limit_files:,}" if store.limit_files else ""
    lines = [
        f"{counted(store.sectors, 'sector')}, {format_size(store.bytes)}{limit};"
        f" {format_size(store.free_bytes)} are free",
        f"{format_size(store.metadata_bytes)} of metadata;"
        f" {counted(store.files, 'file')}{of_files}{_free_files(store)}",
    ]
    if unclaimed.sectors:
        lines.append(
            f"{counted(unclaimed.sectors, 'sector')}, {format_size(unclaimed.bytes)},"
            " of no image here: firstread cache prune removes them"
        )
    return lines


def _free_files(store: StoreFigures) -> str:
    if store.free_files is None:
        return ""
    return f"; the file system has room for {store.free_files:,} more"


def _findings(verified: Verified, *, repair: bool) -> list[str]:
    became = {
        "damaged": "is damaged",
        "emptied": "was damaged, and is fetched again",
        "removed": "was damaged, and is removed",
        "unread": "could not be read",
    }
    lines = [
        f"sector {found.sector[:16]}… of {found.image} {became[found.outcome]}"
        for found in verified.damaged
    ]
    lines += [
        f"image {found.digest} {became[found.outcome]}: {found.problem}"
        for found in verified.images
    ]
    lines.append(
        f"{counted(verified.checked, 'sector')}, {format_size(verified.checked_bytes)},"
        f" checked: {len(verified.damaged)} damaged"
    )
    others = {
        "are not whole": verified.partial,
        "were in use": verified.busy,
        "belong to no image here": verified.unclaimed,
        "wait for a check since the last reboot": verified.aside,
    }
    if any(others.values()):
        parts = [f"{count} {text}" for text, count in others.items() if count]
        lines.append(f"not checked: {', '.join(parts)}")
    if not verified.ok:
        lines.append(
            "the rest is mounted, and no daemon runs: start one, and repair again"
            if repair
            else "repair it with: firstread cache verify --repair"
        )
    return lines

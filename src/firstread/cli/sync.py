# SPDX-License-Identifier: Apache-2.0
"""``firstread sync``: the images of registries and clusters, converted.

Owns the two forms of the command; `firstread.cli.syncserve` has the one that waits for webhooks.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.forms import Forms
from firstread.cli.options import SecondsType, json_option
from firstread.cli.output import report, show, table
from firstread.cli.progressdisplay import PeriodicLines
from firstread.cli.syncserve import serve
from firstread.cli.synctarget import PATTERN, target_options
from firstread.errors import UsageError
from firstread.units import counted, format_size

if TYPE_CHECKING:
    from firstread.cli.synctarget import Chosen
    from firstread.sync.pattern import Pattern
    from firstread.sync.sources import Wanted
    from firstread.sync.synced import Synced, SyncedImage
    from firstread.sync.syncing import Tally

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_COLUMNS = ("IMAGE", "PLATFORM", "RESULT", "SECONDS", "PACKED", "SIZE")


@click.command(
    cls=Forms,
    forms={"serve": serve},
    epilog="'firstread sync serve' converts what registries tell it of by webhooks (docs/sync.md).",
)
@click.argument("places", nargs=-1, metavar="SOURCE... [DEST]")
@target_options
@click.option(
    "--from",
    "files",
    type=_FILE,
    multiple=True,
    help="File of SOURCEs, one a line; @FILE in the place of a SOURCE is the same. Repeatable.",
)
@click.option(
    "--kubeconfig",
    type=_FILE,
    help="The images that run in a Kubernetes cluster are sources, too.",
)
@click.option(
    "--context", default="", help="Context of the kubeconfig.  [default: its current one]"
)
@click.option("--namespace", default="", help="Only pods of this namespace.")
@click.option(
    "--only", type=PATTERN, multiple=True, help="Only images that fit this pattern; repeatable."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be converted.")
@click.option(
    "--watch",
    "watch_s",
    type=SecondsType(1),
    metavar="SECONDS",
    help="Do it again and again, with such a pause.",
)
@json_option
def command(
    places: tuple[str, ...],
    target: Callable[[tuple[str, ...]], AbstractContextManager[Chosen]],
    files: tuple[Path, ...],
    kubeconfig: Path | None,
    context: str,
    namespace: str,
    only: tuple[Pattern, ...],
    excluded: tuple[Pattern, ...],
    dry_run: bool,
    watch_s: float | None,
    as_json: bool,
) -> int:
    """Convert all images that SOURCEs name and that are not converted yet.

    A SOURCE is an image in a registry or a pattern, such as registry.example/team/*:v*, where *
    stands for any characters. DEST says where conversions go: the * of mirror.example/lazy/* is
    the repository of the source, and the tag stays. With --attach there is no DEST: they go beside
    their originals.

    All platforms of an index are converted. An image whose conversion was made of the same digest
    is left alone. An image that fails stops no other.

    The exit code is 0 if nothing failed, else that of the first error in the list.
    """
    from firstread.signals import unwinding_on_signals

    with unwinding_on_signals(threads=True), target(places) as chosen:
        wanted = _wanted(chosen.sources, files, kubeconfig, context, namespace)
        wanted = dataclasses.replace(wanted, only=only, excluded=excluded)
        while True:
            synced = _once(chosen, wanted, dry=dry_run, quiet=as_json)
            if as_json:
                show(synced)
            else:
                report(_lines(synced))
            if watch_s is None:
                return _exit_code(synced)
            time.sleep(watch_s)


def _wanted(
    texts: Sequence[str],
    files: Sequence[Path],
    kubeconfig: Path | None,
    context: str,
    namespace: str,
) -> Wanted:
    from firstread.sync.pattern import parse_source
    from firstread.sync.sources import Cluster, Wanted, read_names

    if (context or namespace) and kubeconfig is None:
        raise UsageError("--context and --namespace belong to a --kubeconfig")
    sources = []
    for text in texts:
        sources += read_names(Path(text[1:])) if text[:1] == "@" else [parse_source(text)]
    for path in files:
        sources += read_names(path)
    clusters = [Cluster(kubeconfig, context, namespace)] if kubeconfig else []
    if not (sources or clusters):
        raise UsageError(
            "there is no SOURCE",
            hint="firstread sync SOURCE... DEST, or firstread sync --attach SOURCE...",
        )
    return Wanted(sources, clusters)


def _once(chosen: Chosen, wanted: Wanted, *, dry: bool, quiet: bool) -> Synced:
    from firstread.sync.sources import find_names
    from firstread.sync.synced import Synced, failed
    from firstread.sync.syncing import Tally

    started, tally = time.monotonic(), Tally()
    with PeriodicLines(lambda: _progress(tally, started), show=not quiet):
        names = find_names(wanted, chosen.access)
        rows = chosen.sync.run(names.found, dry=dry, tally=tally)
    rows += [failed(source, error) for source, error in names.faults]
    return Synced.of(rows, time.monotonic() - started)


def _progress(tally: Tally, started: float) -> str:
    seconds = int(time.monotonic() - started)
    if not tally.to_convert:
        return f"after {seconds} s: looking at {counted(tally.images, 'image')}"
    failed = f", {tally.failed} failed" if tally.failed else ""
    return f"after {seconds} s: {tally.done} of {tally.to_convert} images converted{failed}"


def _exit_code(synced: Synced) -> int:
    return next((each.error.exit_code for each in synced.images if each.error is not None), 0)


def _lines(synced: Synced) -> list[str]:
    """Return the table of what was done or failed, and the numbers of all results."""
    shown = [each for each in synced.images if each.result not in ("present", "skipped")]
    if not shown:
        return list(_summary(synced))
    head, *rows = table(_COLUMNS, map(_row, shown))
    lines = [head]
    for row, each in zip(rows, shown, strict=True):
        lines.append(row)
        if each.error is not None:
            lines += [f"  {text}" for text in (each.error.message, each.error.hint) if text]
    return [*lines, "", *_summary(synced)]


def _row(each: SyncedImage) -> tuple[str, ...]:
    name = each.image.removeprefix("docker://")
    if each.result != "converted":
        word = "to convert" if each.result == "missing" else each.result
        return (name, each.platform or "-", word, "-", "-", "-")
    sizes = format_size(each.packed_bytes), format_size(each.size)
    return (name, each.platform or "-", each.result, f"{each.seconds:.1f}", *sizes)


def _summary(synced: Synced) -> Iterator[str]:
    counts = {
        "converted": synced.converted,
        "to convert": synced.missing,
        "converted before": synced.present,
        "skipped": synced.skipped,
        "failed": synced.failed,
    }
    words = [f"{count} {word}" for word, count in counts.items() if count]
    yield f"{', '.join(words) or 'nothing to do'}, in {synced.seconds:.1f} s"
    reasons = Counter(each.reason for each in synced.images if each.reason is not None)
    for reason, count in reasons.most_common():
        yield f"  {count} skipped: {reason}"

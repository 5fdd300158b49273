# SPDX-License-Identifier: Apache-2.0
"""``firstread convert``: an image in, a block-device image out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from firstread.cli.engineoptions import COMMANDS
from firstread.cli.hotlines import TRACE_HELP, TRACES, hot_lines
from firstread.cli.options import (
    PLATFORM,
    REFERENCE,
    access_options,
    json_option,
    login_options,
)
from firstread.cli.output import report, show
from firstread.cli.packing import packing_options
from firstread.errors import UsageError
from firstread.units import counted, format_size

if TYPE_CHECKING:
    from firstread.cli.packing import Packing
    from firstread.convert.conversion import ConvertOptions
    from firstread.convert.outcome import Attachments, Conversion, Conversions, Skipped
    from firstread.oci.platform import Platform
    from firstread.oci.reference import Reference
    from firstread.registry.logins import Logins
    from firstread.registry.options import AccessOptions

TAKE_ANOTHER = "nodes take another conversion attached to it"
MAX_NAMES, MAX_NAME = 16, 64  # platforms in a line, characters of each


class _PlatformsType(click.ParamType["Platform | str"]):
    """A platform, or ``all``."""

    name = "platform"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Platform | str:
        return value if value == "all" else PLATFORM.convert(value, param, ctx)


@click.command()
@click.argument("source", type=REFERENCE)
@click.argument("destination", metavar="DEST", type=REFERENCE, required=False)
@click.option(
    "--attach",
    is_flag=True,
    help="Attach the result to SOURCE itself, so that SOURCE names both.",
)
@click.option(
    "--platform",
    type=_PlatformsType(),
    help="Which image of an index, such as linux/arm64, or all.  [default: this machine's; with"
    " --attach every one for Linux]",
)
@click.option("--trace", "traces", type=TRACES, multiple=True, help=TRACE_HELP)
@packing_options
@click.option(
    "--tasks",
    is_flag=True,
    help="Pack nothing: print the tasks of its layers as JSON, for 'firstread convert-layer'.",
)
@click.option(
    "--no-cache",
    is_flag=True,
    help="Pack all layers again, without the cache (in FIRSTREAD_CACHE, else in"
    " ~/.cache/firstread).",
)
@access_options
@login_options
@json_option
def command(
    source: Reference,
    destination: Reference | None,
    attach: bool,
    platform: Platform | Literal["all"] | None,
    traces: tuple[Path, ...],
    packing: Packing,
    tasks: bool,
    no_cache: bool,
    access: AccessOptions,
    login: tuple[str, str] | None,
    as_json: bool,
) -> None:
    """Turn the image SOURCE into a block-device image and tag it as DEST.

    Write SOURCE and DEST as for skopeo: docker://registry/repository:tag (docker:// is optional),
    oci:DIRECTORY:TAG, oci-archive:FILE; SOURCE also docker-archive:FILE.

    A layer that this machine has packed before, or that the image at DEST contains, is neither
    downloaded nor packed again. A password on stdin is for the registry of DEST, or for that of
    SOURCE if DEST is on a disk or left out.

    With --platform all an index becomes an index of converted images; what it lacks is named.

    With --attach the result goes beside SOURCE, as an OCI referrer of its manifest: nodes with
    firstread find it by the name or digest of SOURCE, all others pull SOURCE as before. DEST is
    then an optional further name.
    """
    from firstread.convert.layercache import LayerCache, default_cache_dir
    from firstread.memory import keep_large_buffers
    from firstread.signals import unwinding_on_signals
    from firstread.traces.tracedirs import read_traces

    everything = platform == "all"
    _check(destination, attach=attach, tasks=tasks, everything=everything)
    if traces and not packing.static:
        raise UsageError(
            "--no-hot makes no hot sectors, which a trace is for",
            hint="leave out one of --no-hot and --trace",
        )
    # Only the registry itself: a mirror's copy is no base for a conversion.
    access = dataclasses.replace(
        access, mirrors=False, logins=registry_logins(source, destination, login)
    )
    packing = dataclasses.replace(packing, engine=COMMANDS) if tasks else packing
    places = {place.transport for place in (source, destination) if place is not None}
    options = dataclasses.replace(
        packing.options(access, login=login is not None, transports=places),
        platform=None if platform == "all" else platform,
        traces=read_traces(traces),
        cache=None if no_cache else LayerCache(default_cache_dir()),
        reuse=not no_cache,
    )
    keep_large_buffers()
    if tasks and destination is not None:
        _show_tasks(source, destination, options)
        return
    with unwinding_on_signals(threads=True):
        document, lines = _convert(
            source,
            destination,
            options,
            packing.engine,
            attach=attach,
            everything=everything,
            quiet=as_json,
        )
    if as_json:
        show(document)
    else:
        report(lines)


def _check(destination: Reference | None, *, attach: bool, tasks: bool, everything: bool) -> None:
    """Check that options fit together."""
    if destination is None and not attach:
        raise UsageError(
            "there is no DEST for the result",
            hint="firstread convert SOURCE DEST, or firstread convert --attach SOURCE",
        )
    if tasks and (attach or destination is None or everything):
        raise UsageError(
            "--tasks needs a DEST, where the tasks put the layers, and one platform",
            hint="see --help",
        )


def _convert(
    source: Reference,
    destination: Reference | None,
    options: ConvertOptions,
    engine: str,
    *,
    attach: bool,
    everything: bool,
    quiet: bool,
) -> tuple[object, list[str]]:
    """Convert; return the result as JSON, and as lines for people."""
    from firstread.cli.progressdisplay import LayerProgress
    from firstread.convert.attach import attach as convert_attached
    from firstread.convert.conversion import convert
    from firstread.convert.platforms import convert_all
    from firstread.engines.naming import opened_engine

    with opened_engine(engine) as executor, LayerProgress(quiet=quiet) as progress:
        if attach or destination is None:
            attached = convert_attached(
                source, options, destination=destination, progress=progress, executor=executor
            )
            return attached, _attached_lines(attached)
        if everything:
            results = convert_all(
                source, destination, options, progress=progress, executor=executor
            )
            return results, _lines_of_all(results)
        result = convert(source, destination, options, progress=progress, executor=executor)
        return result, _lines(result.destination, result)


def _show_tasks(source: Reference, destination: Reference, options: ConvertOptions) -> None:
    """Print the tasks of an image as a JSON array, one a line."""
    from firstread.convert.tasks import layer_tasks

    lines = [task.encode() for task in layer_tasks(source, destination, options)]
    report(["[", *(f"{line}," for line in lines[:-1]), *lines[-1:], "]"])


def _attached_lines(attached: Attachments) -> list[str]:
    lines = []
    for image, chosen in zip(attached.images, attached.chosen, strict=True):
        title = f"{attached.source} for {image.platform or 'an unknown platform'}"
        lines += [*_lines(title, image), f"  attached  to {image.attached_to}"]
        if chosen != image.digest:
            lines.append(f"  note      {TAKE_ANOTHER}: {chosen}")
    return [*lines, *_skipped_lines(attached.skipped)]


def _lines_of_all(results: Conversions) -> list[str]:
    lines = []
    for image in results.images:
        lines += _lines(f"{results.destination} for {image.platform or 'one platform'}", image)
    if len({image.digest for image in results.images} | {results.digest}) > 1:
        before = "  (as before)" if results.unchanged else ""
        images = counted(len(results.images), "image")
        lines.append(f"{results.destination}: {results.digest}, an index of {images}{before}")
    return [*lines, *_skipped_lines(results.skipped)]


def _skipped_lines(skipped: list[Skipped]) -> list[str]:
    """Return a line for each reason why entries of an index were left alone."""
    by_reason: dict[str, list[str]] = {}
    for entry in skipped:
        by_reason.setdefault(entry.reason, []).append(entry.platform or "no platform")
    lines = []
    for reason, platforms in list(by_reason.items())[:MAX_NAMES]:
        times = f" ({len(platforms)} times)" if len(platforms) > 1 else ""
        lines.append(f"{_names(dict.fromkeys(platforms))}: left alone, since {reason}{times}")
    return lines


def _names(names: Iterable[str]) -> str:
    found = [name[:MAX_NAME] for name in names]
    more = f" and {len(found) - MAX_NAMES} more" if len(found) > MAX_NAMES else ""
    return f"{', '.join(found[:MAX_NAMES])}{more}"


def registry_logins(
    source: Reference, destination: Reference | None, login: tuple[str, str] | None
) -> Logins | None:
    """Return the password for the one registry that it belongs to."""
    from firstread.registry.credentials import Credentials
    from firstread.registry.logins import Logins

    if login is None:
        return None
    place = destination if destination and destination.transport == "docker" else source
    if place.transport != "docker":
        raise UsageError("a password makes no sense here: there is no registry")
    logins = Logins()
    logins.put(place.host, Credentials.of(*login))
    return logins


def _lines(title: str, result: Conversion) -> list[str]:
    compared = f"the source's {format_size(result.source_size)}"
    if result.source_size:
        compared = f"{result.size / result.source_size:.2f} of {compared}"
    known = sum(layer.how == "known" for layer in result.layers)
    lines = [
        title,
        f"  digest    {result.digest}{'  (as before)' if result.unchanged else ''}",
        f"  layers    {len(result.layers)}, {known} of them packed before",
        f"  content   {format_size(result.content_size)}, {counted(result.inodes, 'inode')},"
        f" {counted(result.sectors, 'sector')} of {format_size(result.sector_size)}",
        f"  size      {format_size(result.size)}, {compared}",
        f"  metadata  {format_size(result.metadata_size)}, fetched before a mount",
        *hot_lines(result.hot),
    ]
    for layer in result.layers:
        if layer.dropped_xattrs:
            names = ", ".join(layer.dropped_xattrs)
            lines.append(f"  left out  extended attributes that an image cannot have: {names}")
    if result.other_platforms:
        others = _names(result.other_platforms)
        lines.append(f"  left out  {others}, also in the index: --platform chooses one, or all")
    packed = sum(layer.content_size for layer in result.layers if layer.how == "packed")
    rate = f", {format_size(packed / max(result.seconds, 1e-3))}/s of content" if packed else ""
    lines.append(f"  took      {result.seconds:.1f} s{rate}")
    return lines
